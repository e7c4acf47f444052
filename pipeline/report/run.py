"""A finished run, read from the files of the other stages."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.competition import Competition
from pipeline.files import load_arrays, load_json
from pipeline.metrics import METRICS, worst_first

STAGES = ["mnist", "download", "prepare", "train", "evaluate", "ensemble", "check", "article", "submission"]


@dataclass(frozen=True)
class Predictions:
    """Labelled images and their predicted probabilities."""

    images: np.ndarray  # `(n, size, size)` uint8
    labels: np.ndarray  # `(n,)`
    probabilities: np.ndarray  # `(n, classes)`
    rows: np.ndarray  # `(n,)`, each image's row in its file, from 0

    @property
    def predicted(self) -> np.ndarray:
        return self.probabilities.argmax(axis=1)

    @property
    def mistakes(self) -> np.ndarray:
        return worst_first(self.probabilities, self.labels)


@dataclass(frozen=True)
class Run:
    """Everything that the report shows."""

    competition: Competition  # the competition of `source`
    source: dict  # content of `data/raw/source.json`
    metrics: dict[str, dict]  # content of the JSON files in `metrics/`, by name, the folds first
    history: pd.DataFrame  # the table `metrics/history.csv`
    article: pd.DataFrame  # the table `metrics/article.csv`
    oof: Predictions  # the validated rows of `train.csv`, each predicted by its fold
    test: Predictions  # clean test images that no network was trained on, by the ensemble; may be empty
    each: np.ndarray  # predictions of each fold's network for `test`, `(folds, n, classes)`
    accuracy_on_all: float | None  # on the whole clean test set, if networks were trained on a part of it
    folds: np.ndarray  # `(rows,)`, the fold of each row of `train.csv`; -1 means held out
    test_index: np.ndarray  # `(rows,)`, the identical image of the clean test set; -1 means none

    @property
    def on_mnist(self) -> bool:
        """Whether the clean test set is MNIST's, for which there are published accuracies."""
        return self.competition.test == "mnist"

    @property
    def parts(self) -> dict[str, Predictions]:
        """Predictions on labelled images by name: out of fold, and the clean test set if there is one."""
        parts = {"out of fold": self.oof}
        return parts | {self.competition.test_name: self.test} if len(self.test.labels) else parts


def load_predictions(digits: Path, oof: Path, clean: Path, check: Path) -> dict:
    """Read the fields of `Run` from `oof` on."""
    images, labels, folds, index = load_arrays(digits, "prepare", "images", "labels", "folds", "test_index")
    (probabilities,) = load_arrays(oof, "train", "probabilities")
    test_images, test_labels = load_arrays(clean, "prepare", "images", "labels")
    ensemble, each, is_clean = load_arrays(check, "check", "probabilities", "each", "clean")
    used, tested = np.flatnonzero(folds >= 0), np.flatnonzero(is_clean)
    return {
        "oof": Predictions(images[used], labels[used], probabilities[used], used),
        "test": Predictions(test_images[tested], test_labels[tested], ensemble[tested], tested),
        "each": each[:, tested],
        "accuracy_on_all": None if is_clean.all() else METRICS["accuracy"](ensemble, test_labels),
        "folds": folds,
        "test_index": index,
    }


def load_times(folder: Path) -> dict[str, dict]:
    """Read the records of the stages' last runs on this machine, `<stage>.json`, by stage."""
    paths = {stage: folder / f"{stage}.json" for stage in STAGES}
    return {stage: load_json(path, stage) for stage, path in paths.items() if path.exists()}
