"""Images for the tests, and the header that names the instruction set."""

import os
import runpy
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: compiles the operations, or takes seconds")
    config.addinivalue_line("markers", "forced_isa: compiles for another instruction set, or anew")


def pytest_report_header():
    # By its path: the package would import TensorFlow, also in a process that only distributes tests.
    isa = runpy.run_path(str(Path(find_spec("fastlstm").origin).with_name("isa.py")))
    return f"fastlstm: compiled for {isa['ISA']}; test_isa.py tests {', '.join(isa['available']())}"


@pytest.fixture(scope="session")
def digits():
    """Images `(400, 28, 28)` uint8 of ten patterns with noise, and the patterns' numbers."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 10
    patterns = rng.integers(0, 200, (10, 28, 28))
    return SimpleNamespace(
        images=(patterns[labels] + rng.integers(0, 55, (400, 28, 28))).astype("uint8"), labels=labels
    )
