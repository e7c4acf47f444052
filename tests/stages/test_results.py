"""The results of a run: submission, metrics, and the examples of the docs."""

import re

import keras
import numpy as np
import pandas as pd
import pytest
from clone import FOLDS, LIMIT
from helpers import ROOT, run_python

import pipeline.architectures  # noqa: F401  registers the layers
from pipeline.metrics import wilson_interval

pytestmark = pytest.mark.slow


def test_the_submission_is_what_the_ensemble_predicts(project):
    path = project.folder / "submissions/submission.csv"
    table = pd.read_csv(path)
    assert table["ImageId"].tolist() == list(range(1, LIMIT + 1))
    probabilities = project.arrays("data/predictions.npz")["probabilities"]
    assert np.array_equal(table["Label"], probabilities.argmax(axis=1))
    assert path.read_bytes().startswith(b"ImageId,Label\r\n1,")


def test_the_run_ends_with_a_summary(project):
    summary = project.output[project.output.index("Running stage 'report'") :]
    accuracies = [f"{project.json(f'metrics/{name}.json')['accuracy']:.4f}" for name in ("oof", "check")]
    assert all(
        word in summary
        for word in (*accuracies, "no network was trained on", "submissions/submission.csv", "make submit")
    )


def test_no_row_is_trained_on_and_measured_with(project):
    digits, clean = project.arrays("data/digits.npz"), project.arrays("data/clean.npz")
    assert len(digits["images"]) == len(digits["test_images"]) == LIMIT
    in_clean = digits["test_index"] >= 0
    assert 0 < in_clean.sum() < LIMIT / 3
    assert np.array_equal(digits["folds"] == -1, in_clean)
    assert np.array_equal(clean["images"][digits["test_index"][in_clean]], digits["images"][in_clean])


def test_the_metrics(project):
    out_of_fold, check, ensemble = (
        project.json(f"metrics/{name}.json") for name in ("oof", "check", "ensemble")
    )
    folds = [project.json(f"metrics/folds/fold_{fold}.json") for fold in range(FOLDS)]
    digits, oof = project.arrays("data/digits.npz"), project.arrays("data/oof.npz")
    used = digits["folds"] >= 0
    correct = oof["probabilities"].argmax(axis=1) == digits["labels"]
    assert out_of_fold["images"] == used.sum()
    assert out_of_fold["accuracy"] == pytest.approx(correct[used].mean())
    accuracies = [correct[digits["folds"] == fold].mean() for fold in range(FOLDS)]
    assert [figures["accuracy"] for figures in folds] == pytest.approx(accuracies)
    assert all(figures["epochs"] == 2 for figures in folds)
    assert np.isnan(oof["probabilities"][~used]).all() and np.isfinite(oof["probabilities"][used]).all()

    assert check["images"] == 10_000 and check["log_loss"] > 0 and ensemble["images"] == LIMIT
    interval = wilson_interval(round(10_000 * check["accuracy"]), 10_000)
    assert [check["low"], check["high"]] == interval
    history = pd.read_csv(project.folder / "metrics/history.csv")
    assert history["epoch"].tolist() == [1, 2] * FOLDS and history["fold"].is_monotonic_increasing


def test_the_ensemble_is_the_mean_of_the_folds(project):
    digits, oof = project.arrays("data/digits.npz"), project.arrays("data/oof.npz")["probabilities"]
    checkpoints = [project.folder / f"data/checkpoints/fold_{fold}.keras" for fold in range(FOLDS)]
    networks = [keras.models.load_model(path) for path in checkpoints]
    images = digits["test_images"].astype("float32")
    mean = np.mean([network.predict(images, verbose=0) for network in networks], axis=0)
    # The precision may be bfloat16.
    np.testing.assert_allclose(project.arrays("data/predictions.npz")["probabilities"], mean, atol=0.01)
    for fold, network in enumerate(networks):
        rows = digits["folds"] == fold
        own = network.predict(digits["images"][rows].astype("float32"), verbose=0)
        np.testing.assert_allclose(oof[rows], own, atol=0.01)


def test_the_python_of_the_docs_runs(project):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/running.md").read_text(), re.DOTALL)
    done = run_python("-c", code, cwd=project.folder)
    assert done.returncode == 0, done.stderr
    # Above it is Keras's progress bar.
    shown = [int(digit) for digit in done.stdout.splitlines()[-1].strip("[]").split()]
    probabilities = project.arrays("data/check.npz")["probabilities"][:5]
    # The precision may be bfloat16.
    assert (probabilities[range(5), shown] >= probabilities.max(axis=1) - 0.02).all()


RUN_CELLS = """
import json
for cell in json.load(open("inspect.ipynb"))["cells"]:
    if cell["cell_type"] == "code":
        exec("".join(cell["source"]))
print(climbed.sum(), len(worst))
"""


def test_the_notebook_runs(project):
    done = run_python("-c", RUN_CELLS, cwd=project.folder / "notebooks", MPLBACKEND="Agg")
    assert done.returncode == 0, done.stderr
    weights, mistakes = done.stdout.split()
    oof = project.json("metrics/oof.json")
    assert float(weights) == pytest.approx(1)
    assert int(mistakes) == round(oof["images"] * (1 - oof["accuracy"]))


def test_make_report_makes_the_page_again_and_says_where(project):
    page = project.folder / "metrics/report.html"
    page.unlink()
    assert project.run("make -o setup report").splitlines()[-1] == str(page) and page.exists()
