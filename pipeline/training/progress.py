"""The display of a running training: live bars in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from pipeline.folds import HELD_OUT, TrainingData
from pipeline.params import Params
from pipeline.training.logs import EpochLog
from pipeline.training.members import Member


class TrainingProgress:
    """Shows and logs each member's epochs as they finish; use as a context manager."""

    def __init__(
        self, params: Params, data: TrainingData, members: list[Member], workers: int, log: EpochLog
    ):
        self.log = log
        self.members, self.epochs = members, params.train.epochs
        self.heading = (
            f"train: {len(members)} networks in {params.prepare.folds} folds, {workers} at a time, on "
            f"{np.sum(data.folds != HELD_OUT):,} images (each fold leaves out its share), "
            f"{params.train.precision}"
        )
        self.started = time.monotonic()
        self.finished_before = None  # epochs that an earlier run had done
        self.done = dict.fromkeys(members, 0)
        console = Console()
        # Bars that the terminal has no lines for take time and show nothing.
        self.live = sys.stdout.isatty() and len(members) < console.height
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} epochs  {task.fields[figures]}"),
            console=console,
            disable=not self.live,
        )

    def __enter__(self):
        print(self.heading, flush=True)
        print("train: first the layer is compiled, for up to a minute if its code is new", flush=True)
        self.bars.start()
        self.tasks = {
            member: self.bars.add_task(str(member), total=self.epochs, figures="waiting")
            for member in self.members
        }
        self.total = self.bars.add_task("all", total=len(self.members) * self.epochs, figures="")
        return self

    def __exit__(self, *_):
        self.bars.stop()
        self.log.close()

    def resumed(self, member: Member, history: Sequence[dict]) -> None:
        """An earlier run had finished these epochs of the member, see `train_epoch`."""
        self.log.add(member, history)
        epochs = self.done[member] = len(history)
        self.bars.update(self.tasks[member], completed=epochs, figures="going on")
        if not self.live:
            print(f"{member}: goes on after epoch {epochs}/{self.epochs}", flush=True)

    def finished(self, member: Member, epoch: dict) -> None:
        """The member has finished an epoch with these figures, see `train_epoch`."""
        self.log.add(member, [epoch])
        if self.finished_before is None:
            self.finished_before = sum(self.done.values())
        self.done[member] = epoch["epoch"]
        figures = (
            f"loss {epoch['loss']:.3f}, validation accuracy {epoch['val_accuracy']:.4f}, "
            f"{epoch['images'] / epoch['seconds']:,.0f} images/s"
        )
        left = self._time_left()
        self.bars.update(self.tasks[member], completed=self.done[member], figures=figures)
        self.bars.update(self.total, completed=sum(self.done.values()), figures=f"{left} left")
        if not self.live:
            print(f"{member}, epoch {epoch['epoch']}/{self.epochs}: {figures}, {left} left", flush=True)

    def _time_left(self):
        done = sum(self.done.values())
        epochs_left = len(self.members) * self.epochs - done
        seconds = (time.monotonic() - self.started) * epochs_left / (done - self.finished_before)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
