"""What is measured, and how sure it is: the arithmetic of training, `ensemble` and `check`."""

import numpy as np
from scipy.stats import betabinom, binomtest

CLASSES = 10
# Kaggle scores the public leaderboard on about this share of test.csv.
PUBLIC_SHARE = 0.25


def score(probabilities, labels):
    """Accuracy and log loss of probabilities `(n, 10)` against labels `(n,)`.

    The log loss is the mean of -ln(p of the true digit), a p counting as at least 1e-7.
    """
    labels = np.asarray(labels, int)
    own = np.take_along_axis(np.asarray(probabilities, float), labels[:, None], axis=1)
    return (float(np.mean(np.argmax(probabilities, axis=1) == labels)),
            float(-np.mean(np.log(np.maximum(own, 1e-7)))))


def wilson_interval(correct, images):
    """The 95 % interval of an accuracy (Wilson 1927), `[low, high]`."""
    interval = binomtest(int(correct), int(images)).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def measure(probabilities, labels):
    """Accuracy of probabilities `(n, 10)` against labels `(n,)`, as `metrics/check.json` has it."""
    predicted = np.argmax(probabilities, axis=1)
    right = predicted == labels
    accuracy, log_loss = score(probabilities, labels)
    return {
        "accuracy": accuracy,
        "correct": int(right.sum()),
        "images": len(labels),
        "interval_95": wilson_interval(right.sum(), len(labels)),
        "log_loss": log_loss,
        "per_digit": {
            str(digit): float(right[labels == digit].mean())
            for digit in range(CLASSES) if (labels == digit).any()
        },
    }


def averaging_gains(each, labels):
    """For each row: is the mean of the networks right (1 or 0), less the share of them that are.

    Args:
        each: the networks' probabilities `(networks, n, 10)`, or empty; labels: `(n,)`.
    """
    if not len(each):
        return np.zeros(0)
    averaged = np.argmax(np.mean(each, axis=0), axis=1) == labels
    return averaged - np.mean(np.argmax(each, axis=2) == labels, axis=0)


def expected_public_score(correct, images, rows, gains=()):
    """What the public leaderboard should show, from rows of `train.csv` that a network did not train on.

    The number of right answers of single networks among the scored rows is beta-binomial: the unknown
    accuracy has Jeffreys's prior, updated by the out-of-fold result, and the rows scored are a sample.
    Averaging the networks adds its mean gain on rows that none of them trained on; the gain's own
    uncertainty (1.96 standard errors) is added to the interval in quadrature. Students have trained on most
    rows of `test.csv`, labelled by their teachers; whether they read these better or worse is not known.

    Args:
        correct, images: the out-of-fold result of single networks; rows: rows of `test.csv`.
        gains: for each row that no network trained on, 1 or 0 for the ensemble's answer being right,
            less the share of the networks that are; none where there are no such rows.
    """
    scored = max(1, round(rows * PUBLIC_SHARE))
    distribution = betabinom(scored, correct + 0.5, images - correct + 0.5)
    single, (low, high) = correct / images, distribution.ppf([0.025, 0.975]) / scored
    gain, error = (np.mean(gains), np.std(gains) / np.sqrt(len(gains))) if len(gains) else (0, 0)
    score = single + gain
    return {
        "score": float(min(score, 1)),
        "interval_95": [float(max(score - np.hypot(single - low, 1.96 * error), 0)),
                        float(min(score + np.hypot(high - single, 1.96 * error), 1))],
        "single_networks": single,
        "gain_of_averaging": float(gain),
        "gain_images": len(gains),
    }
