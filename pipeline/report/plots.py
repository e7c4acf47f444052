"""The pictures of the stages `check`, `article` and `report`."""

import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from pipeline.competition import CLASSES

# A backend that the shell or a notebook has chosen may need a display, or not exist here.
os.environ["MPLBACKEND"] = "Agg"
from matplotlib.figure import Figure

MOST_MISTAKES = 60
COLUMNS = 10
ACCURACY_TICKS = (0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)


def _save(figure, target):
    figure.savefig(target, dpi=110, format="png")


def draw_confusion(path: Path, labels: np.ndarray, predicted: np.ndarray) -> None:
    """The confusion matrix as counts, correct answers greyed out."""
    counts = confusion_matrix(labels, predicted, labels=range(CLASSES))
    mistakes = counts - np.diag(np.diag(counts))
    figure = Figure(figsize=(6, 5.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=max(mistakes.max(), 4))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "0.6" if row == column else "black"
            axes.text(column, row, count, ha="center", va="center", fontsize=9, color=color)
    axes.set(
        xticks=range(CLASSES),
        yticks=range(CLASSES),
        xlabel="predicted digit",
        ylabel="true digit",
        title=f"{mistakes.sum()} mistakes on {len(labels):,} MNIST test images",
    )
    _save(figure, path)


def draw_mistakes(path: Path, images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """The images that were misread, the most confident mistakes first."""
    predicted = np.argmax(probabilities, axis=1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]
    shown = wrong[:MOST_MISTAKES]
    rows = max(1, -(-len(shown) // COLUMNS))
    size = (COLUMNS, 1.35 * rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, number in zip(grid.flat, shown, strict=False):
        sure = f"{probabilities[number].max():.0%}"
        axes.imshow(images[number], cmap="gray_r")
        axes.set_title(f"{labels[number]} read as {predicted[number]}\n{sure} sure", fontsize=7)
    which = f"The {len(shown)} surest of" if len(shown) < len(wrong) else "All"
    figure.suptitle(f"{which} {len(wrong)} mistakes, the surest first", fontsize=10)
    _save(figure, path)


def draw_article(path: Path, table: pd.DataFrame, printed: dict[int, tuple[float, float]]) -> None:
    """Accuracy by step of the article's system, run again, and the article's own points.

    Args:
        path: the file to write.
        table: of `metrics/article.csv`.
        printed: step -> the article's cost and accuracy.
    """
    printed = {step: accuracy for step, (_, accuracy) in printed.items() if step <= table["step"].max()}
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(table["step"], table["accuracy_batch"], linewidth=1, label="run again: first 1,000 test images")
    axes.plot(table["step"], table["accuracy"], label="run again: all 10,000 test images")
    axes.plot(printed.keys(), printed.values(), "kx", label="printed in the article: 1,000 test images")
    # Spreads out what lies close to 1.
    axes.set_yscale("logit", nonpositive="clip")
    axes.set_yticks(ACCURACY_TICKS, [f"{tick:g}" for tick in ACCURACY_TICKS])
    axes.set_yticks([], minor=True)
    axes.set(xlabel="step", ylabel="accuracy", ylim=(0.08, 0.998))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    _save(figure, path)


def history_png(history: pd.DataFrame) -> bytes:
    """Loss and validation error by epoch, from the table of `metrics/history.csv`."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(history["epoch"], history["loss"], label="training")
    left.plot(history["epoch"], history["val_loss"], label="validation")
    title = "training: smoothed labels; distorted in all epochs but the last"
    left.set(xlabel="epoch", ylabel="loss", yscale="log", title=title)
    left.legend()
    for name in (column for column in history if column.startswith("val_accuracy_")):
        right.plot(history["epoch"], 1 - history[name], label=f"fold {name.rpartition('_')[2]}")
    title = "2,000 images of each fold, all after the last epoch"
    right.set(xlabel="epoch", ylabel="validation error", yscale="log", title=title)
    right.legend()
    target = io.BytesIO()
    _save(figure, target)
    return target.getvalue()
