"""Statistics of predictions with known answers."""

import numpy as np
import pytest

from pipeline.report import analysis


def sure(digits, confidence):
    """Probabilities of `confidence` for the given digits, the rest spread evenly."""
    confidence = np.broadcast_to(confidence, len(digits))[:, None]
    return np.where(np.eye(10)[digits] > 0, confidence, (1 - confidence) / 9)


def test_the_temperature_corrects_predictions_that_are_too_unsure():
    # Right in 95 of 100, with a confidence of only 0.6.
    labels = np.zeros(1000, int)
    probabilities = sure(np.where(np.arange(1000) % 20 == 0, 1, 0), 0.6)
    temperature = analysis.best_temperature(probabilities, labels)
    calibrated = analysis.at_temperature(probabilities, temperature)
    assert temperature < 1 and calibrated.max(axis=1) == pytest.approx(0.95, abs=0.01)
    assert (calibrated.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    assert analysis.reliability(probabilities, labels)[1] == pytest.approx(0.35)
    assert analysis.reliability(calibrated, labels)[1] == pytest.approx(0, abs=0.01)


def test_the_calibration_error_is_the_mean_gap_of_the_bins():
    # 3 images at 0.9, 2 of them right; 1 at 0.5, which is right.
    table, error = analysis.reliability(sure([0, 0, 1, 2], [0.9, 0.9, 0.9, 0.5]), np.array([0, 0, 0, 2]))
    assert table["images"].tolist() == [1, 3] and table["accuracy"].tolist() == pytest.approx([1, 2 / 3])
    assert error == pytest.approx((3 * abs(0.9 - 2 / 3) + 0.5) / 4)


def test_averaging_helps_where_networks_fail_on_different_images():
    labels = np.zeros(3, int)
    each = np.stack([sure(digits, 0.8) for digits in ([1, 0, 0], [0, 1, 0], [0, 0, 1])])
    assert analysis.averaging(each, labels)["accuracy"].iloc[[0, -1]].tolist() == pytest.approx([2 / 3, 1])
    many = analysis.averaging(np.repeat(each, 5, axis=0), labels)
    assert len(many) == 15
    # Subsets are taken from everywhere: five networks are seldom all of the same kind.
    assert many["accuracy"].iloc[4] > many["lowest"].iloc[4]
    assert analysis.failing_together(each, labels).tolist() == np.eye(3).tolist()
