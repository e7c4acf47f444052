"""What a running training leaves for others to watch: `metrics/history.csv`, and TensorBoard's logs."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.files import write_csv
from pipeline.metrics import history_table
from pipeline.training.members import Member

WATCHED = ("loss", "accuracy", "val_loss", "val_accuracy")
# Seconds between two writings of the table: that of a thousand networks takes a third of a second, and on a
# cluster dozens of epochs end in each second.
INTERVAL = 1


class EpochLog:
    """Keeps a table of all epochs so far up to date, and a TensorBoard run for each member."""

    def __init__(self, table: Path, tensorboard: Path | None = None):
        """Delete an earlier training's logs.

        Args:
            table: the CSV file; see `history_table`.
            tensorboard: the folder of the runs; None for no runs.
        """
        self.table, self.tensorboard = table, tensorboard
        self.histories, self.writers, self.written = {}, {}, -INTERVAL
        if tensorboard:
            shutil.rmtree(tensorboard, ignore_errors=True)

    def add(self, member: Member, epochs: Sequence[dict]) -> None:
        """Log finished epochs of a member, see `train_epoch`."""
        self.histories[member] = [*self.histories.get(member, ()), *epochs]
        if time.monotonic() - self.written >= INTERVAL:
            self._write()
        if self.tensorboard:
            writer = self._writer(member)
            for epoch in epochs:
                for name in WATCHED:
                    writer.add_scalar(name, epoch[name], epoch["epoch"])
            writer.flush()

    def close(self) -> None:
        if self.histories:
            self._write()
        for writer in self.writers.values():
            writer.close()

    def _write(self):
        write_csv(self.table, history_table(self.histories))
        self.written = time.monotonic()

    def _writer(self, member):
        from tensorboard.summary import Writer

        if member not in self.writers:
            name = str(member).replace(", ", "_").replace(" ", "_")
            self.writers[member] = Writer(str(self.tensorboard / name))
        return self.writers[member]
