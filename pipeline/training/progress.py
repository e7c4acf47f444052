"""The display of a running training, and the logs of its epochs: `metrics/history.csv` and TensorBoard's."""

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from pipeline.files import write_csv
from pipeline.folds import HELD_OUT, TrainingData
from pipeline.params import Params
from pipeline.training.members import Member

# Seconds between two writings of the table: that of a thousand networks takes a third of a second, and on a
# cluster dozens of epochs end in each second.
INTERVAL = 1


def history_table(histories: dict[Member, Sequence[dict]]) -> pd.DataFrame:
    """The table of `metrics/history.csv`: one row per epoch of a member.

    Args:
        histories: from each member to its epochs, see `train_epoch`.
    """
    rows = [
        {"member": str(member), "fold": member.fold, "architecture": member.architecture, **epoch}
        for member, epochs in histories.items()
        for epoch in epochs
    ]
    return pd.DataFrame(rows)


class TrainingProgress:
    """Shows and logs each member's epochs as they finish; use as a context manager.

    Args:
        params: the parameters.
        data: the rows of all folds.
        members: all that are trained.
        workers: how many are trained at a time.
        table: the CSV file that grows with the epochs, see `history_table`.
        tensorboard: a folder for TensorBoard, one run per member; None for no runs.
    """

    def __init__(
        self,
        params: Params,
        data: TrainingData,
        members: list[Member],
        workers: int,
        table: Path,
        tensorboard: Path | None = None,
    ):
        self.epochs, self.table, self.tensorboard = params.train.epochs, table, tensorboard
        self.heading = (
            f"train: {len(members)} networks in {params.prepare.folds} folds, {workers} at a time, on "
            f"{np.sum(data.folds != HELD_OUT):,} images (each fold leaves out its share), "
            f"{params.train.precision}\n"
            "train: first the layer is compiled, for up to a minute if its code is new"
        )
        self.histories = {member: [] for member in members}
        self.writers, self.written = {}, -INTERVAL
        self.started, self.resumed_epochs = time.monotonic(), 0
        console = Console()
        # Bars need a terminal that can move its cursor and has a line for each.
        self.live = sys.stdout.isatty() and not console.is_dumb_terminal and len(members) < console.height
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} epochs  {task.fields[figures]}"),
            console=console,
            disable=not self.live,
        )

    def __enter__(self):
        print(self.heading, flush=True)
        if self.tensorboard:
            shutil.rmtree(self.tensorboard, ignore_errors=True)
        self.bars.start()
        self.tasks = {
            member: self.bars.add_task(str(member), total=self.epochs, figures="waiting")
            for member in self.histories
        }
        self.total = self.bars.add_task("all", total=len(self.histories) * self.epochs, figures="")
        return self

    def __exit__(self, *_):
        self.bars.stop()
        self._write_table()
        for writer in self.writers.values():
            writer.close()

    def resumed(self, member: Member, history: Sequence[dict]) -> None:
        """An earlier run had finished these epochs of the member, see `train_epoch`."""
        self._log(member, history)
        self.resumed_epochs += len(history)
        self.bars.update(self.tasks[member], completed=len(history), figures="resumed")
        if not self.live:
            print(f"{member}: resumes after epoch {len(history)}/{self.epochs}", flush=True)

    def finished(self, member: Member, epoch: dict) -> None:
        """The member has finished an epoch with these figures, see `train_epoch`."""
        self._log(member, [epoch])
        done = sum(map(len, self.histories.values()))
        total = len(self.histories) * self.epochs
        seconds = (time.monotonic() - self.started) * (total - done) / (done - self.resumed_epochs)
        left = f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"
        figures = (
            f"loss {epoch['loss']:.3f}, validation accuracy {epoch['val_accuracy']:.4f}, "
            f"{epoch['images'] / epoch['seconds']:,.0f} images/s"
        )
        self.bars.update(self.tasks[member], completed=epoch["epoch"], figures=figures)
        self.bars.update(self.total, completed=done, figures=left)
        if not self.live:
            print(f"{member}, epoch {epoch['epoch']}/{self.epochs}: {figures}, {left}", flush=True)

    def _log(self, member, epochs):
        self.histories[member].extend(epochs)
        if time.monotonic() - self.written >= INTERVAL:
            self._write_table()
        if self.tensorboard:
            self._log_to_tensorboard(member, epochs)

    def _write_table(self):
        if any(self.histories.values()):
            write_csv(self.table, history_table(self.histories))
            self.written = time.monotonic()

    def _log_to_tensorboard(self, member, epochs):
        from tensorboard.summary import Writer

        if member not in self.writers:
            name = str(member).replace(", ", "_").replace(" ", "_")
            self.writers[member] = Writer(str(self.tensorboard / name))
        for epoch in epochs:
            for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
                self.writers[member].add_scalar(name, epoch[name], epoch["epoch"])
        self.writers[member].flush()
