"""What is measured, and how sure it is: accuracy, log loss, intervals, and the tables in `metrics/`.

A JSON file of `metrics/` is a row of `dvc metrics show` and holds some of `FIGURES`, nothing else.
"""

import numpy as np
import pandas as pd
from scipy.stats import betabinom, binomtest

from pipeline.competition import CLASSES

# Kaggle scores the public leaderboard on about this share of test.csv.
PUBLIC_SHARE = 0.25
# The bounds are those of the 95 % interval; the log loss is in nats, the seconds of one core.
FIGURES = ("accuracy", "low", "high", "log_loss", "images", "epochs", "seconds")


def accuracy_and_loss(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Score predicted probabilities.

    Args:
        probabilities: `(n, 10)`, rows sum to 1.
        labels: `(n,)`, integers 0 to 9.

    Returns:
        Accuracy, and mean negative log likelihood in nats; a probability counts as at least 1e-7.
    """
    labels = np.asarray(labels, int)
    of_label = np.take_along_axis(np.asarray(probabilities, float), labels[:, None], axis=1)
    return (
        float(np.mean(np.argmax(probabilities, axis=1) == labels)),
        float(-np.mean(np.log(np.maximum(of_label, 1e-7)))),
    )


def worst_first(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The positions of wrong predictions, those surest of the wrong digit first; arguments as above."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]


def wilson_interval(correct: int, images: int) -> list[float]:
    """The 95 % interval of an accuracy (Wilson 1927), `[low, high]`."""
    interval = binomtest(int(correct), int(images)).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def evaluate(probabilities: np.ndarray, labels: np.ndarray, **more) -> dict:
    """The figures of a file of `metrics/`.

    Args:
        probabilities: `(n, 10)`.
        labels: `(n,)`.
        **more: `epochs`, `seconds`.
    """
    accuracy, log_loss = accuracy_and_loss(probabilities, labels)
    low, high = wilson_interval(round(accuracy * len(labels)), len(labels))
    return {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "log_loss": log_loss,
        "images": len(labels),
        **more,
    }


def averaging_gains(each: np.ndarray | list, labels: np.ndarray) -> np.ndarray:
    """What averaging gains in each row.

    Args:
        each: the models' probabilities, `(models, n, 10)`, or empty.
        labels: `(n,)`.

    Returns:
        Per row: 1 if the averaged prediction is correct, else 0, minus the fraction of models that are
        correct. Empty if `each` is.
    """
    if not len(each):
        return np.zeros(0)
    averaged = np.argmax(np.mean(each, axis=0), axis=1) == labels
    return averaged - np.mean(np.argmax(each, axis=2) == labels, axis=0)


def expected_public_score(correct: int, images: int, rows: int, gains: np.ndarray | tuple = ()) -> dict:
    """What the public leaderboard should show, from rows of `train.csv` that a model did not train on.

    The number of correct answers of single models among the scored rows is beta-binomial: the unknown
    accuracy has Jeffreys's prior, updated by the out-of-fold result, and the scored rows are a sample.
    Averaging the models adds its mean gain on rows that none of them trained on; the gain's own
    uncertainty (1.96 standard errors) is added to the interval in quadrature.

    Args:
        correct: correct out-of-fold predictions of single models.
        images: all out-of-fold predictions.
        rows: rows of `test.csv`.
        gains: see `averaging_gains`, on rows that no model trained on; empty if there are none.

    Returns:
        `accuracy`, `low` and `high`.
    """
    scored = max(1, round(rows * PUBLIC_SHARE))
    distribution = betabinom(scored, correct + 0.5, images - correct + 0.5)
    single, (low, high) = correct / images, distribution.ppf([0.025, 0.975]) / scored
    gain, error = (np.mean(gains), np.std(gains) / np.sqrt(len(gains))) if len(gains) else (0, 0)
    score = single + gain
    return {
        "accuracy": float(min(score, 1)),
        "low": float(max(score - np.hypot(single - low, 1.96 * error), 0)),
        "high": float(min(score + np.hypot(high - single, 1.96 * error), 1)),
    }


def fold_figures(data, oof: np.ndarray, history: pd.DataFrame) -> dict[str, dict]:
    """The figures of each fold, and of all together, by the names of the files in `metrics/`.

    Args:
        data: the `TrainingData`.
        oof: out-of-fold probabilities, `(n, 10)`.
        history: see `history_table`.
    """
    epochs, figures = int(history["epoch"].max()), {}
    for fold, of_fold in history.groupby("fold"):
        rows, seconds = data.split(fold)[1], round(float(of_fold["seconds"].sum()), 1)
        figures[f"folds/fold_{fold}"] = evaluate(oof[rows], data.labels[rows], epochs=epochs, seconds=seconds)
    rows, seconds = np.flatnonzero(data.folds >= 0), round(float(history["seconds"].sum()), 1)
    return {**figures, "oof": evaluate(oof[rows], data.labels[rows], epochs=epochs, seconds=seconds)}


def history_table(histories: dict) -> pd.DataFrame:
    """The table of `metrics/history.csv`: a row an epoch of a member.

    Args:
        histories: from each ensemble member to its epochs, see `train_epoch`.
    """
    rows = [
        {"member": str(member), "fold": member.fold, "architecture": member.architecture, **epoch}
        for member, epochs in histories.items()
        for epoch in epochs
    ]
    return pd.DataFrame(rows)


def oof_table(data, oof: np.ndarray) -> pd.DataFrame:
    """The table of `data/oof.csv`: a row a validated row of `train.csv`; arguments as of `fold_figures`."""
    rows = np.flatnonzero(data.folds >= 0)
    table = {
        "row": rows,
        "label": data.labels[rows],
        "fold": data.folds[rows],
        "prediction": oof[rows].argmax(axis=1),
    }
    return pd.DataFrame({**table, **{f"p{digit}": oof[rows, digit] for digit in range(CLASSES)}})
