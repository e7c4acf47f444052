"""Accuracy, log loss, their intervals, and the expected public score."""

import json

import numpy as np
import pytest

from pipeline.metrics import METRICS, averaging_gains, evaluate, expected_public_score, wilson_interval


# Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
@pytest.mark.parametrize(
    ("correct", "images", "interval"),
    [
        (81, 263, [0.2553, 0.3662]),
        (15, 148, [0.0624, 0.1605]),
        (0, 20, [0, 0.1611]),
        (1, 29, [0.0061, 0.1718]),
    ],
)
def test_wilson_interval_as_published(correct, images, interval):
    assert wilson_interval(correct, images) == pytest.approx(interval, abs=5e-5)


def test_expected_public_score_is_surer_of_more_rows():
    def width(images, rows):
        expected = expected_public_score(round(0.99 * images), images, rows)
        low, high = expected["low"], expected["high"]
        assert 0 <= low < expected["accuracy"] == 0.99 < high <= 1
        return high - low

    assert width(36_000, 28_000) < width(36_000, 2_800) < width(36_000, 280)
    assert width(36_000, 28_000) < width(400, 28_000)


def test_averaging_moves_the_expected_score_by_what_it_gained_elsewhere():
    # Three networks, each with one different mistake in 100 rows; the average makes none.
    labels = np.arange(100) % 10
    each = np.repeat(np.eye(10)[labels][None], 3, axis=0)
    for network in range(3):
        each[network, network] = np.eye(10)[9]
    gains = averaging_gains(each, labels)
    assert gains.mean() == pytest.approx(0.01)

    single = expected_public_score(990, 1000, 28_000, averaging_gains([], np.zeros(0, int)))
    averaged = expected_public_score(990, 1000, 28_000, gains)
    assert single["accuracy"] == 0.99 and averaged["accuracy"] == pytest.approx(1.0)
    assert averaged["high"] == 1
    # 100 rows give a wider interval than 1000.
    assert averaged["accuracy"] - averaged["low"] > single["accuracy"] - single["low"]


def test_evaluate(monkeypatch):
    probabilities = np.full((4, 10), 0.05)
    probabilities[range(4), [0, 0, 7, 9]] = 0.55
    labels = np.array([0, 3, 7, 9])
    result = evaluate(probabilities, labels, seconds=1.5)
    assert result["accuracy"] == 0.75 and result["images"] == 4 and result["seconds"] == 1.5
    assert [result["low"], result["high"]] == wilson_interval(3, 4)
    assert result["log_loss"] == pytest.approx(-(3 * np.log(0.55) + np.log(0.05)) / 4)
    assert json.loads(json.dumps(result)) == result

    monkeypatch.setitem(METRICS, "brier", lambda p, y: np.float32(((p - np.eye(10)[y]) ** 2).mean()))
    more = json.loads(json.dumps(evaluate(probabilities, labels, seconds=1.5)))
    assert more.pop("brier") > 0 and more == result


def test_log_loss_of_a_sure_mistake_is_finite():
    sure = np.eye(10)[[1, 2]]
    assert evaluate(sure, np.array([1, 2]))["log_loss"] == 0
    assert evaluate(sure, np.array([1, 3]))["log_loss"] == pytest.approx(-np.log(1e-7) / 2)
