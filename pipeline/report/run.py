"""A finished run as the report sees it, and the checks of the files that it comes from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.competition import CLASSES
from pipeline.files import PipelineError, explained, load_arrays, load_json
from pipeline.metrics import worst_first

# Of the tables in `metrics/`.
COLUMNS = {
    "history": (
        "member", "fold", "architecture", "epoch", "loss", "val_loss", "val_accuracy", "images", "seconds",
    ),
    "article": ("step", "accuracy_batch", "accuracy", "article_accuracy_batch"),
}  # fmt: skip


@dataclass(frozen=True)
class Predictions:
    """Labelled images and what was predicted for them.

    Attributes:
        images: `(n, 28, 28)` uint8.
        labels: `(n,)`.
        probabilities: `(n, 10)`.
        rows: `(n,)`, the images' numbers where they come from, from 0.
    """

    images: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    rows: np.ndarray

    @property
    def predicted(self):
        return self.probabilities.argmax(axis=1)

    @property
    def mistakes(self):
        return worst_first(self.probabilities, self.labels)


@dataclass(frozen=True)
class Run:
    """All that the report shows.

    Attributes:
        source: content of `data/raw/source.json`.
        metrics: content of the JSON files of `metrics/`, by name, the folds first.
        history: the table of `metrics/history.csv`.
        article: the table of `metrics/article.csv`.
        oof: the validated rows of `train.csv`, each predicted by its fold.
        test: the images of the MNIST test split that no network was trained on, predicted by the ensemble.
        each: what each fold's network predicts for `test`, `(folds, n, 10)`.
        accuracy_on_all: the ensemble's accuracy on the whole MNIST test split.
        folds, mnist_index: of all rows of `train.csv`, as in `data/digits.npz`.
        read: images whose reading is shown, their labels, and what the ensemble predicts.
        reading: see `read_in_part`; empty if no network reads rows.
    """

    source: dict
    metrics: dict[str, dict]
    history: pd.DataFrame
    article: pd.DataFrame
    oof: Predictions
    test: Predictions
    each: np.ndarray
    accuracy_on_all: float
    folds: np.ndarray
    mnist_index: np.ndarray
    read: tuple[np.ndarray, np.ndarray, np.ndarray]
    reading: np.ndarray


def load_figures(path: Path, stage: str, names: tuple[str, ...]) -> dict:
    """Read a JSON file of `metrics/`; raises PipelineError if it lacks a number of that name."""
    figures = load_json(path, stage)
    for name in names:
        value = figures.get(name) if isinstance(figures, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise PipelineError(f"{path}: has no number {name!r}; run the stage {stage!r} again")
    return figures


def load_table(path: Path, stage: str) -> pd.DataFrame:
    """Read a CSV file of `metrics/`; raises PipelineError if it has no rows or lacks one of `COLUMNS`."""
    with explained(path, stage, "a table"):
        table = pd.read_csv(path)
        missing = [name for name in COLUMNS[path.stem] if name not in table]
        if missing or table.empty:
            raise KeyError(f"has no column {missing[0]!r}" if missing else "has no rows")
    return table


def load_predictions(digits: Path, oof: Path, mnist: dict, check: Path) -> dict:
    """Read the arrays of a run: the attributes of `Run` from `oof` on.

    Args:
        digits: of the stage `prepare`.
        oof: of the stage `train`.
        mnist: the arrays of `load_mnist`.
        check: of the stage `check`.

    Raises:
        PipelineError: a file is missing or damaged, or the arrays are not of one run.
    """
    images, labels, folds, index = load_arrays(digits, "prepare", "images", "labels", "folds", "mnist_index")
    (probabilities,) = load_arrays(oof, "train", "probabilities")
    test_images, test_labels = mnist["test_images"], mnist["test_labels"]
    ensemble, each, clean, read, reading = load_arrays(
        check, "check", "probabilities", "each", "clean", "shown", "reading"
    )
    if probabilities.shape != (len(labels), CLASSES):
        raise PipelineError(f"{oof}: is of other rows than {digits}; run the stage 'train' again")
    if ensemble.shape != (len(test_labels), CLASSES) or each.shape[1:] != ensemble.shape:
        raise PipelineError(f"{check}: is not of the MNIST test split; run the stage 'check' again")
    used = np.flatnonzero(folds >= 0)
    kept = np.flatnonzero(clean)
    return {
        "oof": Predictions(images[used], labels[used], probabilities[used], used),
        "test": Predictions(test_images[kept], test_labels[kept], ensemble[kept], kept),
        "each": each[:, kept],
        "accuracy_on_all": float(np.mean(ensemble.argmax(axis=1) == test_labels)),
        "folds": folds,
        "mnist_index": index,
        "read": (test_images[read], test_labels[read], ensemble[read].argmax(axis=1)),
        "reading": reading,
    }
