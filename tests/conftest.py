"""Fixtures with real digits, and the order of the tests."""

import fcntl
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # same bytes are promised on CPUs only

import numpy as np
import pytest
from helpers import ROOT

from pipeline.files import PipelineError, atomic_write
from pipeline.folds import TrainingData, make_folds
from pipeline.mnist import fetch_mnist, load_mnist, stand_in

# Folders and files with slow fixtures; with pytest-xdist, one process runs all tests of each. The other files
# fill up the processes in the end. The first process compiles the layer, which takes a minute; meanwhile the
# second tests what does not need the layer.
GROUPS = (
    "packages/fastlstm/",
    "tests/kaggle/",
    "tests/report/",
    "tests/stages/",
    "tests/training/test_runner.py",
)
# Files whose tests compile the layer anew; each is a group of its own, to fill up the processes in the end.
COMPILING = ("test_isa.py", "test_cache.py")


def group(nodeid):
    """The group of a test: itself, one of `GROUPS`, or its file."""
    file = nodeid.partition("::")[0]
    if file.endswith(COMPILING):
        return nodeid
    return next((name for name in GROUPS if file.startswith(name)), file)


def pytest_collection_modifyitems(items):
    """Sort tests by their group, `GROUPS` first."""
    items.sort(key=lambda item: (group(item.nodeid) not in GROUPS, group(item.nodeid)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Distribute groups of tests over the processes."""
    from xdist.scheduler import LoadScopeScheduling

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = group
    return scheduler


@pytest.fixture(scope="session")
def mnist(request):
    """The 70,000 digits, fetched once and saved in pytest's cache."""
    cached = request.config.cache.mkdir("mnist") / "mnist.npz"
    with open(cached.with_suffix(".lock"), "w") as lock:  # another test process may fetch them
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
    """A few hundred real digits in two folds; one row in ten is held out."""
    images, labels = (part[:400] for part in competition[0])
    return TrainingData(images, labels, make_folds(labels, 2, 0, np.arange(400) % 10 == 0))
