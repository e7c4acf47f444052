"""The training log: one line per epoch, and the table `metrics/history.csv`."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.files import write_csv
from pipeline.folds import HELD_OUT, TrainingData
from pipeline.params import Params
from pipeline.training.members import Member

INTERVAL = 1  # seconds between two writes of the table: on a cluster, dozens of epochs end in each second


def history_table(histories: dict[Member, Sequence[dict]]) -> pd.DataFrame:
    """The table of `metrics/history.csv` from each member's epochs: one row per epoch, see `train_epoch`."""
    rows = [
        {"member": str(member), "fold": member.fold, "architecture": member.architecture, **epoch}
        for member, epochs in histories.items()
        for epoch in epochs
    ]
    return pd.DataFrame(rows)


class TrainingProgress:
    """Prints each member's epochs as they finish, and writes them to `table` at most once per second."""

    def __init__(self, params: Params, data: TrainingData, members: list[Member], workers: int, table: Path):
        self.epochs, self.table = params.train.epochs, table
        self.histories = {member: [] for member in members}
        self.written, self.started, self.resumed_epochs = -INTERVAL, time.monotonic(), 0
        print(
            f"train: {len(members)} networks in {params.prepare.folds} folds, {workers} at a time, on "
            f"{np.sum(data.folds != HELD_OUT):,} images (each network leaves out those of its fold), "
            f"{params.train.precision}\n"
            "train: the first run compiles the layer, which takes up to a minute",
            flush=True,
        )

    def resumed(self, member: Member, history: Sequence[dict]) -> None:
        """Log the epochs that an earlier run finished."""
        self.histories[member].extend(history)
        self.resumed_epochs += len(history)
        print(f"{member}: resumes after epoch {len(history)}/{self.epochs}", flush=True)

    def finished(self, member: Member, epoch: dict) -> None:
        """Log and print the figures of a finished epoch."""
        self.histories[member].append(epoch)
        if time.monotonic() - self.written >= INTERVAL:
            write_csv(self.table, history_table(self.histories))
            self.written = time.monotonic()
        done = sum(map(len, self.histories.values()))
        total = len(self.histories) * self.epochs
        seconds = (time.monotonic() - self.started) * (total - done) / (done - self.resumed_epochs)
        print(
            f"{member}, epoch {epoch['epoch']}/{self.epochs}: loss {epoch['loss']:.3f}, "
            f"validation accuracy {epoch['val_accuracy']:.4f}, "
            f"{epoch['images'] / epoch['seconds']:,.0f} images/s, "
            f"{int(seconds) // 60}:{int(seconds) % 60:02d} left",
            flush=True,
        )
