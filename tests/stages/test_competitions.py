"""Whole runs on other competitions' files: only params.yaml differs, besides an entry in COMPETITIONS."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers import run_python, small_params
from ruamel.yaml import YAML

pytestmark = pytest.mark.slow

LIMIT, TESTS = 300, 40
IDS = np.random.default_rng(0).permutation(np.arange(TESTS) * 7 + 100)  # of Kannada-MNIST
RUN = """
import importlib
import os
from dataclasses import replace

import pipeline.stages
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pipeline.competition import COMPETITIONS, Competition
from pipeline.prediction import use_one_thread_per_operation
from pipeline.training.engines import ENGINES

use_one_thread_per_operation()
ENGINES["local"] = lambda *_: nullcontext((ThreadPoolExecutor(1), 1))  # this process is faster than a new one
COMPETITIONS["pixels-from-1"] = Competition("pixels-from-1", first_pixel=1)
COMPETITIONS["Kannada-MNIST"] = replace(COMPETITIONS["Kannada-MNIST"], rows=None)
for folder in "kannada", "without_clean_test":
    os.chdir(folder)
    for stage in "download prepare train evaluate ensemble check submission report".split():
        importlib.import_module(f"pipeline.stages.{stage}").main()
    os.chdir("..")
"""


def write_csv(path, first, labels, images, first_pixel=0):
    pixels = images.reshape(len(images), -1)
    columns = [f"pixel{number + first_pixel}" for number in range(pixels.shape[1])]
    table = pd.DataFrame(pixels, columns=columns)
    if first:
        table.insert(0, first, labels)
    table.to_csv(path, index=False)


def write_inputs(folder, slug):
    """Write what the stages need besides the competition's files, which are in `folder / "kaggle"`."""
    params = small_params(
        download={"source": "folder", "folder": "kaggle", "competition": slug},
        prepare={"limit": LIMIT, "folds": 2},
        model={"architecture": "rows", "layers": 1, "units": 16},
        train={"epochs": 1, "batch_size": 32, "precision": "float32"},
        compute={"workers": 1},
    )
    YAML(typ="safe").dump(params.model_dump(), folder / "params.yaml")
    # The article's figures, which depend on no competition.
    (folder / "metrics").mkdir()
    figures = {"accuracy": 0.9, "low": 0.8, "high": 0.95, "log_loss": 0.3, "images": 10_000, "seconds": 1.0}
    (folder / "metrics/article.json").write_text(json.dumps(figures))
    curve = {"step": [0, 10], "accuracy_batch": 0.9, "accuracy": 0.9, "article_accuracy_batch": [0.1, 0.7]}
    pd.DataFrame(curve).to_csv(folder / "metrics/article.csv", index=False)


def write_kannada(folder, competition):
    (images, labels), (test_images, test_labels) = competition
    write_csv(folder / "train.csv", "label", labels[: LIMIT + 20], images[: LIMIT + 20])
    write_csv(folder / "test.csv", "id", IDS, test_images[:TESTS])
    # The clean test set contains 10 rows of train.csv, on which no network may be trained.
    clean = np.concatenate([test_images[100:150], images[:10]])
    clean_labels = np.concatenate([test_labels[100:150], labels[:10]])
    write_csv(folder / "Dig-MNIST.csv", "label", clean_labels, clean)
    sample = pd.DataFrame({"id": np.sort(IDS), "label": 0})
    sample.to_csv(folder / "sample_submission.csv", index=False)


def write_without_clean_test(folder, competition):
    (images, labels), (test_images, _) = competition
    write_csv(folder / "train.csv", "label", labels[:LIMIT], images[:LIMIT], first_pixel=1)
    write_csv(folder / "test.csv", None, None, test_images[:TESTS], first_pixel=1)
    sample = pd.DataFrame({"ImageId": np.arange(1, TESTS + 1), "Label": 0})
    sample.to_csv(folder / "sample_submission.csv", index=False)


@pytest.fixture(scope="module")
def runs(competition, tmp_path_factory):
    """The folder of both runs, and what they printed."""
    folder = tmp_path_factory.mktemp("competitions")
    for name, slug, write in (
        ("kannada", "Kannada-MNIST", write_kannada),
        ("without_clean_test", "pixels-from-1", write_without_clean_test),
    ):
        (folder / name / "kaggle").mkdir(parents=True)
        write(folder / name / "kaggle", competition)
        write_inputs(folder / name, slug)
    done = run_python("-c", RUN, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_kannada_mnist(runs):
    folder, output = runs[0] / "kannada", runs[1]
    assert "10 rows of train.csv are images of the Dig-MNIST.csv: held out" in output
    submission = pd.read_csv(folder / "submissions/submission.csv")
    assert list(submission) == ["id", "label"] and submission["id"].tolist() == sorted(IDS)
    with np.load(folder / "data/predictions.npz") as file:
        predicted = pd.Series(file["probabilities"].argmax(axis=1), index=IDS)
    assert submission["label"].tolist() == predicted[np.sort(IDS)].tolist()
    check = json.loads((folder / "metrics/check.json").read_text())
    assert check["images"] == 60 and check["low"] < check["accuracy"] < check["high"]
    assert json.loads((folder / "metrics/oof.json").read_text())["images"] == LIMIT - 10
    for name in ("report.html", "report.md"):
        page = (folder / "metrics" / name).read_text()
        assert "Dig-MNIST.csv" in page and "MNIST test split" not in page


def test_a_competition_without_a_clean_test_set(runs):
    folder, output = runs[0] / "without_clean_test", runs[1]
    assert "has no clean test set" in output
    assert json.loads((folder / "metrics/check.json").read_text()) == {"images": 0}
    assert len(pd.read_csv(folder / "submissions/submission.csv")) == TESTS
    assert "MNIST test split" not in (folder / "metrics/report.html").read_text()
