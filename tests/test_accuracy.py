"""What the figures mean: accuracy, log loss, and their intervals."""

import json

import numpy as np
import pytest

from pipeline.accuracy import expected_public_score, measure, wilson_interval


# Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
@pytest.mark.parametrize(("correct", "images", "interval"), [
    (81, 263, [0.2553, 0.3662]), (15, 148, [0.0624, 0.1605]), (0, 20, [0, 0.1611]),
    (1, 29, [0.0061, 0.1718])])
def test_wilson_interval_as_published(correct, images, interval):
    assert wilson_interval(correct, images) == pytest.approx(interval, abs=5e-5)


def test_expected_public_score_is_surer_of_more_rows():
    def width(images, rows):
        expected = expected_public_score(round(0.99 * images), images, rows)
        low, high = expected["interval_95"]
        assert 0 <= low < expected["score"] == 0.99 < high <= 1
        return high - low

    assert width(36_000, 28_000) < width(36_000, 2_800) < width(36_000, 280)
    assert width(36_000, 28_000) < width(400, 28_000)


def test_measure():
    probabilities = np.full((4, 10), 0.05)
    for row, digit in enumerate((0, 0, 7, 9)):
        probabilities[row, digit] = 0.55
    result = measure(probabilities, np.array([0, 3, 7, 9]))
    assert result["accuracy"] == 0.75 and result["correct"] == 3 and result["images"] == 4
    assert result["interval_95"] == wilson_interval(3, 4)
    assert result["log_loss"] == pytest.approx(-(3 * np.log(0.55) + np.log(0.05)) / 4)
    assert result["per_digit"] == {"0": 1.0, "3": 0.0, "7": 1.0, "9": 1.0}
    assert json.loads(json.dumps(result)) == result


def test_log_loss_of_a_sure_mistake_is_finite():
    sure = np.eye(10)[[1, 2]]
    assert measure(sure, np.array([1, 2]))["log_loss"] == 0
    assert measure(sure, np.array([1, 3]))["log_loss"] == pytest.approx(-np.log(1e-7) / 2)
