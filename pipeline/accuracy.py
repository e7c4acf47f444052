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


def expected_public_score(correct, images, rows):
    """What the public leaderboard should show, from how often held-out rows were right.

    The number of right answers among the scored rows is beta-binomial: the unknown accuracy has
    Jeffreys's prior, updated by the out-of-fold result, and the rows scored are a sample.

    Args:
        correct, images: the out-of-fold result; rows: rows of `test.csv`.
    """
    scored = max(1, round(rows * PUBLIC_SHARE))
    distribution = betabinom(scored, correct + 0.5, images - correct + 0.5)
    low, high = distribution.ppf([0.025, 0.975])
    return {"score": correct / images, "interval_95": [float(low / scored), float(high / scored)]}
