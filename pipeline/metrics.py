"""What is measured, and how sure it is: accuracy, log loss, intervals, and the tables in `metrics/`."""

import statistics

import numpy as np
import pandas as pd
from scipy.stats import betabinom, binomtest

from pipeline.competition import CLASSES

# Kaggle scores the public leaderboard on about this share of test.csv.
PUBLIC_SHARE = 0.25


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


def wilson_interval(correct: int, images: int) -> list[float]:
    """The 95 % interval of an accuracy (Wilson 1927), `[low, high]`."""
    interval = binomtest(int(correct), int(images)).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def evaluate(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    """The figures of `metrics/check.json`, of probabilities `(n, 10)` and labels `(n,)`."""
    correct = np.argmax(probabilities, axis=1) == labels
    accuracy, log_loss = accuracy_and_loss(probabilities, labels)
    return {
        "accuracy": accuracy,
        "correct": int(correct.sum()),
        "images": len(labels),
        "interval_95": wilson_interval(correct.sum(), len(labels)),
        "log_loss": log_loss,
        "per_digit": {
            str(digit): float(correct[labels == digit].mean())
            for digit in range(CLASSES)
            if (labels == digit).any()
        },
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
    """
    scored = max(1, round(rows * PUBLIC_SHARE))
    distribution = betabinom(scored, correct + 0.5, images - correct + 0.5)
    single, (low, high) = correct / images, distribution.ppf([0.025, 0.975]) / scored
    gain, error = (np.mean(gains), np.std(gains) / np.sqrt(len(gains))) if len(gains) else (0, 0)
    score = single + gain
    return {
        "score": float(min(score, 1)),
        "interval_95": [
            float(max(score - np.hypot(single - low, 1.96 * error), 0)),
            float(min(score + np.hypot(high - single, 1.96 * error), 1)),
        ],
        "single_networks": single,
        "gain_of_averaging": float(gain),
        "gain_images": len(gains),
    }


def fold_table(data, oof: np.ndarray, histories: dict) -> dict:
    """The content of `metrics/folds.json`: the figures of all folds together, then of each.

    Args:
        data: the `TrainingData`.
        oof: out-of-fold probabilities, `(n, 10)`.
        histories: from each ensemble member to its epochs, see `train_epoch`.
    """
    folds = {}
    for fold in range(data.folds.max() + 1):
        rows = data.split(fold)[1]
        accuracy, loss = accuracy_and_loss(oof[rows], data.labels[rows])
        members = [member for member in histories if member.fold == fold]
        epochs = [epoch for member in members for epoch in histories[member]]
        seconds = sum(epoch["seconds"] for epoch in epochs)
        folds[f"fold_{fold}"] = {
            "architecture": ", ".join(member.architecture for member in members),
            "accuracy": accuracy,
            "loss": loss,
            "images": len(rows),
            "epochs": len(histories[members[0]]),
            "seconds": round(seconds, 1),
            "images_per_second": round(sum(epoch["images"] for epoch in epochs) / seconds),
        }
    rows = np.flatnonzero(data.folds >= 0)
    accuracy, loss = accuracy_and_loss(oof[rows], data.labels[rows])
    return {
        "oof_accuracy": accuracy,
        "oof_loss": loss,
        "oof_images": len(rows),
        "std_accuracy": statistics.stdev(fold["accuracy"] for fold in folds.values()),
        **folds,
    }


def history_table(histories: dict) -> pd.DataFrame:
    """The table of `metrics/history.csv`: a row an epoch; means over all members, then over each fold's.

    Args:
        histories: from each ensemble member to its epochs, see `train_epoch`.
    """

    def means(name, members):
        epochs = zip(*(histories[member] for member in members), strict=True)
        return [statistics.mean(member[name] for member in epoch) for epoch in epochs]

    table = {"epoch": range(1, len(next(iter(histories.values()))) + 1)}
    for name in ("loss", "val_loss", "accuracy", "val_accuracy"):
        table[name] = means(name, histories)
    for fold in sorted({member.fold for member in histories}):
        of_fold = [member for member in histories if member.fold == fold]
        table[f"val_accuracy_{fold}"] = means("val_accuracy", of_fold)
    return pd.DataFrame(table)
