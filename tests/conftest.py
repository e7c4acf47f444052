"""What all tests share: real digits, and how they are dealt out to processes (`pytest -n 2`)."""

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

# Kept together and begun first, for they take longest: what compiles the layer anew, one instruction set
# after another, and the folders whose tests share a run of the pipeline or a trained network.
LONGEST = ("bilstm/test_isa.py", "bilstm/test_layer.py", "stages", "training", "kaggle")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests of a group run in one process, in their order; the other files are a group each."""

    def group(item):
        path = item.path.relative_to(ROOT / "tests").as_posix()
        return next((name for name in LONGEST if path.startswith(name)), path)

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: LONGEST.index(group(item)) if group(item) in LONGEST else len(LONGEST))


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
