"""Images for the tests, and the header that names the instruction set."""

import os
from types import SimpleNamespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
from fastlstm.isa import ISA, available


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: compiles the operations, or takes seconds")
    config.addinivalue_line("markers", "forced_isa: compiles for another instruction set, or anew")


def pytest_report_header():
    return f"fastlstm: compiled for {ISA}; test_isa.py tests {', '.join(available())}"


@pytest.fixture(scope="session")
def digits():
    """Images `(400, 28, 28)` uint8 of ten patterns with noise, and the patterns' numbers."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 10
    patterns = rng.integers(0, 200, (10, 28, 28))
    return SimpleNamespace(
        images=(patterns[labels] + rng.integers(0, 55, (400, 28, 28))).astype("uint8"), labels=labels
    )
