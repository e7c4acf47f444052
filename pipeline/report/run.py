"""A finished run, read from the files of the other stages, and summarized in words."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.competition import Competition
from pipeline.files import load_arrays, load_json, sha256
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


def load_times(folder: Path, oof: Path) -> dict[str, dict]:
    """Read the records of the stages' last runs on this machine, `<stage>.json`, by stage.

    That of the training is left out if it did not write `oof`: then DVC restored the result of another run.
    """
    paths = {stage: folder / f"{stage}.json" for stage in STAGES}
    times = {stage: load_json(path, stage) for stage, path in paths.items() if path.exists()}
    if "train" in times and times["train"].get("oof") != sha256(oof):
        del times["train"]
    return times


def check_in_words(check: dict, on_all: float | None) -> str:
    """Describe the content of `metrics/check.json`, given also the accuracy on the whole clean test set."""
    text = (
        f"accuracy {check['accuracy']:.4f} on {check['images']:,} images that no network was trained on "
        f"(95 % interval {check['low']:.4f} to {check['high']:.4f})"
    )
    if on_all in (None, check["accuracy"]):
        return text
    return f"{text}. On all images: {on_all:.4f}, contaminated (prepare.hold_out_mnist_test is false)"


def origin_in_words(source: dict) -> str:
    """Describe the origin of the digits by the content of `data/raw/source.json`."""
    return {
        "kaggle": f"Kaggle's own files ({source['competition']})",
        "folder": f"files from a folder ({source['competition']})",
        "mnist": f"MNIST as a stand-in (shuffled with seed {source.get('seed')})",
        "mnist-60k": "MNIST's own split: 60,000 training images, and its test split as test.csv",
    }[source["source"]]


def summary(run: Run, submission: Path, limited: bool) -> str:
    """Make the lines that close a run.

    Args:
        submission: path of the file to submit.
        limited: whether it lacks rows of test.csv.
    """
    submit = "make submit"
    if run.source["source"].startswith("mnist"):
        submit = "not possible with MNIST: add Kaggle credentials, set download.source: kaggle, make submit"
    elif limited:
        submit = "not this one: prepare.limit is set"
    oof, score, check = (run.metrics[name] for name in ("oof", "ensemble", "check"))
    folds = [figures["accuracy"] for name, figures in run.metrics.items() if name.startswith("folds/")]
    gain = score["accuracy"] - oof["accuracy"]
    gain = f"{gain:+.4f} from averaging" if abs(gain) > 1e-9 else "no gain from averaging included"
    interval = f"{score['low']:.4f} to {score['high']:.4f}"
    check = check_in_words(check, run.accuracy_on_all) if check["images"] else "none"
    lines = {
        "data": origin_in_words(run.source),
        "folds": ", ".join(f"{accuracy:.4f}" for accuracy in folds),
        "out of fold": f"{oof['accuracy']:.4f} on {oof['images']:,} images, each fold alone",
        run.competition.test_name or "clean test set": check,
        "public score": f"{score['accuracy']:.4f} expected, {interval}; {gain}",
        "submission": submission,
        "submit it": submit,
    }
    return "\n".join(f"{name:17} {text}" for name, text in lines.items())
