"""What all tests share: real digits; and which tests begin first."""

import fcntl
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# What is promised byte for byte is promised of the processor.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
import pytest
from helpers import ROOT

from pipeline.files import PipelineError, atomic_write
from pipeline.folds import TrainingData, make_folds
from pipeline.mnist import fetch_mnist, load_mnist, stand_in

# What takes longest begins first: it compiles the layer, or shares a run of the pipeline or trained networks.
LONGEST = (
    "bilstm/test_isa.py",
    "bilstm/test_numbers.py",
    "bilstm/test_use.py",
    "stages/",
    "training/",
    "kaggle/",
)


# pytest-xdist reads the groups, in a hook of the same name.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Sort the tests, and keep those together that share fixtures: a file's, and all of the stages."""

    def rank(item):
        file = item.nodeid.removeprefix("tests/")
        return next((n for n, start in enumerate(LONGEST) if file.startswith(start)), len(LONGEST))

    items.sort(key=rank)
    for item in items:
        folder, file = item.path.parent.name, item.path.stem
        item.add_marker(pytest.mark.xdist_group("stages" if folder == "stages" else file))


@pytest.fixture(scope="session")
def mnist(request):
    """The 70,000 digits, fetched once and kept in pytest's cache."""
    cached = request.config.cache.mkdir("mnist") / "mnist.npz"
    # One process fetches them for all.
    with open(cached.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in (ROOT / "data/mnist.npz", cached):
            try:
                return load_mnist(path)
            except PipelineError:
                continue
        arrays, _ = fetch_mnist()
        with atomic_write(cached) as tmp:
            np.savez(tmp, **arrays)
        return arrays


@pytest.fixture(scope="session")
def competition(mnist):
    """Images and labels of `train.csv` and of `test.csv`, at full size."""
    return stand_in(mnist, 2026, (42_000, 28_000))


@pytest.fixture(scope="session")
def digits(competition):
    """A few hundred real digits in two folds, one row in ten held out."""
    images, labels = (part[:400] for part in competition[0])
    return TrainingData(images, labels, make_folds(labels, 2, 0, np.arange(400) % 10 == 0))
