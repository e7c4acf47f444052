"""What the tests share: real digits, a small recipe, and commands in processes of their own."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# What is promised byte for byte is promised of the processor.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
import pytest

from pipeline.files import PipelineError, replacing
from pipeline.folds import make_folds
from pipeline.mnist import fetch_mnist, load_mnist, stand_in
from pipeline.params import load_params
from pipeline.training import Digits, Recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def mnist(request):
    """The 70,000 digits, fetched once and kept in pytest's cache."""
    kept = request.config.cache.mkdir("mnist") / "mnist.npz"
    for path in (ROOT / "data/mnist.npz", kept):
        try:
            return load_mnist(path)
        except PipelineError:
            continue
    arrays, _ = fetch_mnist()
    with replacing(kept) as beside:
        np.savez(beside, **arrays)
    return arrays


@pytest.fixture(scope="session")
def competition(mnist):
    """Images and labels of `train.csv` and of `test.csv`, at full size."""
    return stand_in(mnist, 2026, (42_000, 28_000))


@pytest.fixture(scope="session")
def digits(competition):
    """A few hundred real digits in two folds, one row in ten held out, and some without a label."""
    (images, labels), (test_images, _) = competition
    images, labels = images[:400], labels[:400]
    return Digits(images, labels, make_folds(labels, 2, 0, np.arange(400) % 10 == 0), test_images[:200])


def small_recipe(**changes):
    """The committed recipe, of a network small enough to train in a moment."""
    params = load_params(ROOT / "params.yaml")
    values = {
        "seed": params.seed, **params.prepare.model_dump(), **params.model.model_dump(),
        **params.train.model_dump(),
        "reader": "turns", "layers": 2, "units": 16, "grid_layers": 3, "grid_units": 8, "epochs": 3,
        "batch_size": 32, "learning_rate": 0.01, "precision": "float32", **changes,
    }
    return Recipe(**{field.name: values[field.name] for field in dataclasses.fields(Recipe)})


def run_python(*arguments, cwd=ROOT, **environment):
    """Run this Python with the project importable from any folder."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment})
