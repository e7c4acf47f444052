"""What the report computes from labels and probabilities."""

import itertools

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.stats import entropy
from sklearn.metrics import confusion_matrix

from pipeline.competition import CLASSES
from pipeline.metrics import accuracy_and_loss, wilson_interval
from pipeline.report.run import Predictions, Run

# Bins of equal width; Guo et al. 2017 use 15.
BINS = 15
# Subsets of the networks that are averaged, at most, for each size.
SUBSETS = 50
# A label counts as doubtful if the calibrated probability of another digit is at least this.
DOUBTFUL = 0.9


def best_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of the lowest log loss (Guo et al. 2017), from 0.1 to 10."""

    def loss(log_temperature):
        return accuracy_and_loss(at_temperature(probabilities, np.exp(log_temperature)), labels)[1]

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.1), np.log(10)), method="bounded").x))


def at_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities `(n, 10)` after dividing their logarithms by the temperature."""
    powers = np.maximum(probabilities, 1e-12).astype(float) ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> tuple[pd.DataFrame, float]:
    """How often predictions are right, by their confidence.

    Returns:
        A row for each bin that is not empty: `confidence`, `accuracy` and `images`; and the expected
        calibration error, their mean distance.
    """
    confidence = probabilities.max(axis=1)
    table = pd.DataFrame({"confidence": confidence, "accuracy": probabilities.argmax(axis=1) == labels})
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    table = table.groupby(bins).agg(
        confidence=("confidence", "mean"), accuracy=("accuracy", "mean"), images=("accuracy", "size")
    )
    gaps = (table["confidence"] - table["accuracy"]).abs()
    return table, float((gaps * table["images"]).sum() / len(labels))


def confusion(predictions: Predictions) -> np.ndarray:
    """Counts `(10, 10)`: a row a label, a column a prediction."""
    return confusion_matrix(predictions.labels, predictions.predicted, labels=range(CLASSES))


def accuracy_by_digit(predictions: Predictions) -> pd.DataFrame:
    """A row a digit that occurs: `digit`, `images`, `correct`, `accuracy`, and its interval `low`, `high`."""
    counts = confusion(predictions)
    rows = []
    for digit, images in enumerate(counts.sum(axis=1)):
        if images:
            correct = counts[digit, digit]
            rows.append([digit, images, correct, correct / images, *wilson_interval(correct, images)])
    return pd.DataFrame(rows, columns=["digit", "images", "correct", "accuracy", "low", "high"])


def digit_table(run: Run) -> pd.DataFrame:
    """The table of `metrics/digits.csv`: `accuracy_by_digit` of both sets of images."""
    parts = {"out of fold": run.oof, "MNIST test": run.test}
    return pd.concat([accuracy_by_digit(part).assign(images_of=name) for name, part in parts.items()])


def confusion_table(run: Run) -> pd.DataFrame:
    """The table of `metrics/confusion.csv`: a row a label and prediction that occur together."""
    parts = {"out of fold": run.oof, "MNIST test": run.test}
    counts = pd.concat({name: pd.DataFrame(confusion(part).T).unstack() for name, part in parts.items()})
    return counts[counts > 0].rename_axis(["images_of", "label", "predicted"]).reset_index(name="images")


def averaging(each: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Accuracy and log loss by the number of networks averaged, as means over subsets of the networks.

    Args:
        each: `(networks, n, 10)`.
        labels: `(n,)`.

    Returns:
        A row a number: `networks`, `subsets`, `accuracy`, `lowest`, `highest` (accuracy), `log_loss`.
    """
    random, rows = np.random.default_rng(0), []
    for size in range(1, len(each) + 1):
        subsets = list(itertools.islice(itertools.combinations(range(len(each)), size), 10 * SUBSETS))
        if len(subsets) > SUBSETS:
            subsets = [random.choice(len(each), size, replace=False) for _ in range(SUBSETS)]
        scores = [accuracy_and_loss(each[list(subset)].mean(axis=0), labels) for subset in subsets]
        accuracies, losses = zip(*scores, strict=True)
        mean = float(np.mean(accuracies))
        rows.append([size, len(subsets), mean, min(accuracies), max(accuracies), float(np.mean(losses))])
    return pd.DataFrame(rows, columns=["networks", "subsets", "accuracy", "lowest", "highest", "log_loss"])


def failing_together(each: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many images two networks both get wrong `(networks, networks)`; on the diagonal, one alone."""
    wrong = (each.argmax(axis=2) != labels).astype(int)
    return wrong @ wrong.T


def disagreement(each: np.ndarray) -> np.ndarray:
    """How much the networks disagree on each image, `(n,)` in nats.

    It is the mean Kullback-Leibler divergence of the networks' probabilities from their average.
    """
    return entropy(each.mean(axis=0), axis=-1) - entropy(each, axis=-1).mean(axis=0)


def doubtful_labels(predictions: Predictions, temperature: float) -> np.ndarray:
    """Which labels may be wrong: the positions of the surest mistakes, the surest first."""
    wrong = predictions.mistakes
    calibrated = at_temperature(predictions.probabilities[wrong], temperature).max(axis=1)
    return wrong[calibrated >= DOUBTFUL]
