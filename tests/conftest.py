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
    "packages/fastlstm/tests/test_isa.py",
    "packages/fastlstm/tests/test_numbers.py",
    "packages/fastlstm/tests/test_use.py",
    "stages/",
    "training/",
    "kaggle/",
)


def pytest_collection_modifyitems(items):
    def rank(item):
        file = item.nodeid.removeprefix("tests/")
        return next((n for n, start in enumerate(LONGEST) if file.startswith(start)), len(LONGEST))

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep tests in one process that share what takes long to make: a file's, and those of all stages."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return "stages" if "/stages/" in file else file

    return Scheduling(config, log)


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
