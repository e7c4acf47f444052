"""Digits for the tests of the layer, which needs neither MNIST nor the rest of the pipeline."""

from types import SimpleNamespace

import numpy as np
import pytest
from fastlstm.isa import ISA, available
from sklearn.datasets import load_digits


def pytest_report_header():
    return f"BiLSTM layer: compiled for {ISA}; test_isa.py tests {', '.join(available())}"


@pytest.fixture(scope="session")
def digits():
    """Scikit-learn's scans of 8 by 8 pixels, enlarged to images `(400, 28, 28)` uint8, and labels."""
    scans, labels = load_digits(return_X_y=True)
    scans = (scans[:400].reshape(-1, 8, 8) * (255 / 16)).astype("uint8")
    images = np.pad(scans.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))
    return SimpleNamespace(images=images, labels=labels[:400])
