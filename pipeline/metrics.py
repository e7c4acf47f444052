"""Metrics and confidence intervals.

A JSON file in `metrics/` is one row of `dvc metrics show`. To add a metric, add one line to `METRICS`.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import betabinom, binomtest

LOWEST_PROBABILITY = 1e-7


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows in which the most probable class is the label."""
    return np.mean(np.argmax(probabilities, axis=1) == labels)


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log likelihood in nats; a probability counts as at least LOWEST_PROBABILITY."""
    labels = np.asarray(labels, int)
    of_label = np.take_along_axis(np.asarray(probabilities, float), labels[:, None], axis=1)
    return -np.mean(np.log(np.maximum(of_label, LOWEST_PROBABILITY)))


# Name -> function of probabilities `(n, classes)`, rows sum to 1, and labels `(n,)`, integers from 0.
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"accuracy": accuracy, "log_loss": log_loss}


def evaluate(probabilities: np.ndarray, labels: np.ndarray, **more) -> dict:
    """The content of a file in `metrics/`, from probabilities `(n, classes)` and labels `(n,)`.

    Returns:
        Every metric; `low` and `high`, the 95 % interval of the accuracy; `images`, which is n; and `more`,
        further figures such as `seconds`.
    """
    metrics = {name: float(metric(probabilities, labels)) for name, metric in METRICS.items()}
    low, high = wilson_interval(round(metrics["accuracy"] * len(labels)), len(labels))
    interval = {"accuracy": metrics["accuracy"], "low": low, "high": high}
    return {**interval, **metrics, "images": len(labels), **more}


def worst_first(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Positions of wrong predictions, by descending probability of the wrong class; arguments as above."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]


def wilson_interval(correct: int, images: int) -> list[float]:
    """The 95 % interval of an accuracy (Wilson 1927), `[low, high]`."""
    interval = binomtest(int(correct), int(images)).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def averaging_gains(each: np.ndarray | list, labels: np.ndarray) -> np.ndarray:
    """Gain of averaging: 1 or 0 for the averaged prediction, minus the fraction of models that are correct.

    From the models' probabilities `(models, n, classes)` and labels `(n,)` to `(n,)`, or from empty to empty.
    """
    if not len(each):
        return np.zeros(0)
    averaged = np.argmax(np.mean(each, axis=0), axis=1) == labels
    return averaged - np.mean(np.argmax(each, axis=2) == labels, axis=0)


def expected_public_score(correct: int, images: int, scored: int, gains=()) -> dict[str, float]:
    """Predict the public leaderboard's accuracy from rows of `train.csv` that a model did not train on.

    The number of correct answers of single models among the scored rows is beta-binomial: the unknown
    accuracy has Jeffreys's prior, updated by the out-of-fold result, and the scored rows are a sample.
    Averaging the models adds its mean gain on rows that none of them trained on. The gain's own
    uncertainty (1.96 standard errors) is added to the interval in quadrature.

    Args:
        correct: correct out-of-fold predictions of single models.
        images: all out-of-fold predictions.
        scored: rows of `test.csv` that the public leaderboard scores.
        gains: see `averaging_gains`, on rows that no model trained on; empty if there are none.
    """
    distribution = betabinom(scored, correct + 0.5, images - correct + 0.5)
    single, (low, high) = correct / images, distribution.ppf([0.025, 0.975]) / scored
    gain, error = (np.mean(gains), np.std(gains) / np.sqrt(len(gains))) if len(gains) else (0, 0)
    score = single + gain
    return {
        "accuracy": float(min(score, 1)),
        "low": float(max(score - np.hypot(single - low, 1.96 * error), 0)),
        "high": float(min(score + np.hypot(high - single, 1.96 * error), 1)),
    }
