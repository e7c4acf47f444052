"""Statistics of the report, computed from labels and probabilities."""

import itertools
import math

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from pipeline.metrics import METRICS, wilson_interval
from pipeline.report.run import Predictions

BINS = 15  # bins of equal width; Guo et al. 2017 use 15
MOST_SUBSETS = 50  # limit of the subsets of networks to average, for each size


def best_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Find the temperature with the lowest log loss (Guo et al. 2017), from 0.1 to 10."""

    def loss(log_temperature):
        return METRICS["log_loss"](at_temperature(probabilities, np.exp(log_temperature)), labels)

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.1), np.log(10)), method="bounded").x))


def at_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logarithms of probabilities `(n, classes)` by a temperature."""
    powers = np.maximum(probabilities, 1e-12).astype(float) ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> tuple[pd.DataFrame, float]:
    """Compare confidence with accuracy.

    Returns:
        A table with one row per bin of confidence that is not empty: `confidence`, `accuracy`, `images`; and
        the expected calibration error, the mean distance of confidence and accuracy over all images.
    """
    confidence = probabilities.max(axis=1)
    table = pd.DataFrame({"confidence": confidence, "accuracy": probabilities.argmax(axis=1) == labels})
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    table = table.groupby(bins).agg(
        confidence=("confidence", "mean"), accuracy=("accuracy", "mean"), images=("accuracy", "size")
    )
    gaps = (table["confidence"] - table["accuracy"]).abs()
    return table, float((gaps * table["images"]).sum() / len(labels))


def confusion(part: Predictions) -> np.ndarray:
    """Count labels and predictions, `(classes, classes)`: rows are labels, columns are predictions."""
    counts = np.zeros((part.probabilities.shape[1],) * 2, int)
    np.add.at(counts, (part.labels, part.predicted), 1)
    return counts


def accuracy_by_digit(part: Predictions) -> pd.DataFrame:
    """One row per digit that occurs: `digit`, `images`, `correct`, `accuracy`, its interval `low`, `high`."""
    counts = confusion(part)
    rows = [
        [digit, images, correct, correct / images, *wilson_interval(correct, images)]
        for digit, (images, correct) in enumerate(zip(counts.sum(axis=1), np.diag(counts), strict=True))
        if images
    ]
    return pd.DataFrame(rows, columns=["digit", "images", "correct", "accuracy", "low", "high"])


def digit_table(parts: dict[str, Predictions]) -> pd.DataFrame:
    """Make the table `metrics/digits.csv` from `Run.parts`."""
    return pd.concat([accuracy_by_digit(part).assign(images_of=name) for name, part in parts.items()])


def confusion_table(parts: dict[str, Predictions]) -> pd.DataFrame:
    """Make the table `metrics/confusion.csv`: one row per label and prediction that occur together."""
    counts = pd.concat({name: pd.DataFrame(confusion(part).T).unstack() for name, part in parts.items()})
    return counts[counts > 0].rename_axis(["images_of", "label", "predicted"]).reset_index(name="images")


def averaging(each: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Score averages of networks, given their probabilities `(networks, n, classes)`.

    One row per number of `networks`, means over subsets: `accuracy`, its `lowest` and `highest`, `log_loss`.
    """
    rows = []
    for size in range(1, len(each) + 1 if len(labels) else 1):
        subsets = itertools.combinations(range(len(each)), size)
        if math.comb(len(each), size) > MOST_SUBSETS:
            random = np.random.default_rng(size)
            subsets = [random.choice(len(each), size, replace=False) for _ in range(MOST_SUBSETS)]
        averages = [each[list(subset)].mean(axis=0) for subset in subsets]
        accuracies = [METRICS["accuracy"](average, labels) for average in averages]
        log_loss = np.mean([METRICS["log_loss"](average, labels) for average in averages])
        rows.append([size, np.mean(accuracies), min(accuracies), max(accuracies), log_loss])
    return pd.DataFrame(rows, columns=["networks", "accuracy", "lowest", "highest", "log_loss"])


def failing_together(each: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Count the images that two networks both misread, `(networks, networks)`."""
    wrong = (each.argmax(axis=2) != labels).astype(int)
    return wrong @ wrong.T
