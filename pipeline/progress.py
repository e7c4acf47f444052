"""The display of a running training: live bars in a terminal, plain lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class TrainingProgress:
    """Shows each network's epochs as they finish; use as a context manager."""

    def __init__(self, networks, epochs):
        self.networks, self.epochs = networks, epochs  # the networks' names
        self.started = time.monotonic()
        self.finished_before = None  # epochs that an earlier run had done
        self.done = [0] * len(networks)
        self.live = sys.stdout.isatty()
        self.bars = Progress(
            TextColumn("{task.description}"), BarColumn(),
            TextColumn("{task.completed}/{task.total} epochs  {task.fields[figures]}"),
            console=Console(), disable=not self.live)

    def __enter__(self):
        self.bars.start()
        self.tasks = [self.bars.add_task(name, total=self.epochs, figures="waiting")
                      for name in self.networks]
        self.total = self.bars.add_task("all", total=len(self.networks) * self.epochs, figures="")
        return self

    def __exit__(self, *_):
        self.bars.stop()

    def resumed(self, number, epochs):
        """An earlier run had finished this many epochs of the network."""
        self.done[number] = epochs
        self.bars.update(self.tasks[number], completed=epochs, figures="going on")
        if not self.live:
            print(f"{self.networks[number]}: goes on after epoch {epochs}/{self.epochs}", flush=True)

    def finished(self, number, epoch):
        """`epoch`: the figures of the network's newest epoch, see `Trainer.train_epoch`."""
        if self.finished_before is None:
            self.finished_before = sum(self.done)
        self.done[number] = epoch["epoch"]
        figures = (f"loss {epoch['loss']:.3f}, validation accuracy {epoch['val_accuracy']:.4f}, "
                   f"{epoch['images'] / epoch['seconds']:,.0f} images/s")
        left = self._time_left()
        self.bars.update(self.tasks[number], completed=self.done[number], figures=figures)
        self.bars.update(self.total, completed=sum(self.done), figures=f"{left} left")
        if not self.live:
            print(f"{self.networks[number]}, epoch {self.done[number]}/{self.epochs}: {figures}, {left} left",
                  flush=True)

    def _time_left(self):
        done = sum(self.done)
        seconds = ((time.monotonic() - self.started) * (len(self.networks) * self.epochs - done)
                   / (done - self.finished_before))
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
