"""The display of a running training: live bars in a terminal, plain lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class TrainingProgress:
    """Shows each fold's epochs as they finish; use as a context manager."""

    def __init__(self, folds, epochs):
        self.folds, self.epochs = folds, epochs
        self.started = time.monotonic()
        self.finished_before = None  # epochs that an earlier run had done
        self.done = [0] * folds
        self.live = sys.stdout.isatty()
        self.bars = Progress(
            TextColumn("fold {task.description}"), BarColumn(),
            TextColumn("{task.completed}/{task.total} epochs  {task.fields[figures]}"),
            console=Console(), disable=not self.live)

    def __enter__(self):
        self.bars.start()
        self.tasks = [self.bars.add_task(str(fold), total=self.epochs, figures="waiting")
                      for fold in range(self.folds)]
        self.total = self.bars.add_task("all", total=self.folds * self.epochs, figures="")
        return self

    def __exit__(self, *_):
        self.bars.stop()

    def resumed(self, fold, epochs):
        """An earlier run had finished this many epochs of the fold."""
        self.done[fold] = epochs
        self.bars.update(self.tasks[fold], completed=epochs, figures="going on")
        if not self.live:
            print(f"fold {fold}: goes on after epoch {epochs}/{self.epochs}", flush=True)

    def finished(self, fold, epoch):
        """`epoch`: the figures of the fold's newest epoch, see `Trainer.train_epoch`."""
        if self.finished_before is None:
            self.finished_before = sum(self.done)
        self.done[fold] = epoch["epoch"]
        figures = (f"loss {epoch['loss']:.3f}, validation accuracy {epoch['val_accuracy']:.4f}, "
                   f"{epoch['images'] / epoch['seconds']:,.0f} images/s")
        left = self._time_left()
        self.bars.update(self.tasks[fold], completed=self.done[fold], figures=figures)
        self.bars.update(self.total, completed=sum(self.done), figures=f"{left} left")
        if not self.live:
            print(f"fold {fold}, epoch {self.done[fold]}/{self.epochs}: {figures}, {left} left",
                  flush=True)

    def _time_left(self):
        done = sum(self.done)
        seconds = ((time.monotonic() - self.started) * (self.folds * self.epochs - done)
                   / (done - self.finished_before))
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
