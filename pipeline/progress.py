"""The display of a running training: live bars in a terminal, plain lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class TrainingProgress:
    """Shows each network's epochs as they finish; use as a context manager."""

    def __init__(self, names, epochs):
        """`names`: by network, in the order in which they are shown."""
        self.names, self.epochs = names, epochs
        self.started = time.monotonic()
        self.finished_before = None  # epochs that an earlier run had done
        self.done = dict.fromkeys(names, 0)
        self.live = sys.stdout.isatty()
        self.bars = Progress(
            TextColumn("{task.description}"), BarColumn(),
            TextColumn("{task.completed}/{task.total} epochs  {task.fields[figures]}"),
            console=Console(), disable=not self.live)

    def __enter__(self):
        self.bars.start()
        self.tasks = {network: self.bars.add_task(name, total=self.epochs, figures="waiting")
                      for network, name in self.names.items()}
        self.total = self.bars.add_task("all", total=len(self.names) * self.epochs, figures="")
        return self

    def __exit__(self, *_):
        self.bars.stop()

    def resumed(self, network, epochs):
        """An earlier run had finished this many epochs of the network."""
        self.done[network] = epochs
        self.bars.update(self.tasks[network], completed=epochs, figures="going on")
        if not self.live:
            print(f"{self.names[network]}: goes on after epoch {epochs}/{self.epochs}", flush=True)

    def finished(self, network, epoch):
        """`epoch`: the figures of the network's newest epoch, see `Trainer.train_epoch`."""
        if self.finished_before is None:
            self.finished_before = sum(self.done.values())
        self.done[network] = epoch["epoch"]
        figures = (f"loss {epoch['loss']:.3f}, validation accuracy {epoch['val_accuracy']:.4f}, "
                   f"{epoch['images'] / epoch['seconds']:,.0f} images/s")
        left = self._time_left()
        self.bars.update(self.tasks[network], completed=self.done[network], figures=figures)
        self.bars.update(self.total, completed=sum(self.done.values()), figures=f"{left} left")
        if not self.live:
            print(f"{self.names[network]}, epoch {self.done[network]}/{self.epochs}: {figures}, {left} left",
                  flush=True)

    def _time_left(self):
        done = sum(self.done.values())
        seconds = ((time.monotonic() - self.started) * (len(self.names) * self.epochs - done)
                   / (done - self.finished_before))
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
