"""A progress bar on stderr for what Kaggle makes the user wait for."""

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn


def progress_bar(*columns: ProgressColumn) -> Progress:
    """Make a bar that disappears when done, and never shows up in a file.

    Args:
        *columns: shown to the right of the bar.
    """
    # Said outright, because FORCE_COLOR makes rich take a log file for a terminal.
    terminal = sys.stderr.isatty()
    console = Console(stderr=True, force_terminal=terminal)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        console=console,
        transient=True,
        disable=not terminal,
    )
