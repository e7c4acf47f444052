"""The results of a run: submission, metrics, and the examples of the docs."""

import re
import shutil
import sys

import keras
import numpy as np
import pandas as pd
import pytest
from clone import FOLDS, LIMIT, RUN_STAGES, SMALL
from helpers import ROOT, run_python

from pipeline import article
from pipeline.files import save_arrays
from pipeline.metrics import wilson_interval
from pipeline.prediction import load_network

pytestmark = pytest.mark.slow
ARTICLE_STEPS = SMALL["article"]["steps"]


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
    digits = project.arrays("data/digits.npz")
    checkpoints = [project.folder / f"data/checkpoints/fold_{fold}.keras" for fold in range(FOLDS)]
    networks = [keras.models.load_model(path) for path in checkpoints]
    images = digits["test_images"].astype("float32")
    mean = np.mean([network.predict(images, verbose=0) for network in networks], axis=0)
    # The precision may be bfloat16.
    np.testing.assert_allclose(project.arrays("data/predictions.npz")["probabilities"], mean, atol=0.01)


RUN_CELLS = """
import json, os
os.chdir("notebooks")
for cell in json.load(open("inspect.ipynb"))["cells"]:
    if cell["cell_type"] == "code":
        exec("".join(cell["source"]))
print(climbed.sum(), len(worst))
"""


def test_the_python_of_the_docs_and_the_notebook_run(project):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/running.md").read_text(), re.DOTALL)
    done = run_python("-c", code + RUN_CELLS, cwd=project.folder, MPLBACKEND="Agg")
    assert done.returncode == 0, done.stderr
    (digits,) = re.findall(r"^\[([\d ]+)\]$", done.stdout, re.MULTILINE)
    shown = [int(digit) for digit in digits.split()]
    probabilities = project.arrays("data/check.npz")["probabilities"][:5]
    # The precision may be bfloat16.
    assert (probabilities[range(5), shown] >= probabilities.max(axis=1) - 0.02).all()

    weights, mistakes = done.stdout.splitlines()[-1].split()
    oof = project.json("metrics/oof.json")
    assert float(weights) == pytest.approx(1)
    assert int(mistakes) == round(oof["images"] * (1 - oof["accuracy"]))


def test_clean_test_images_that_were_trained_on_are_left_out_and_the_report_says_so(finished, tmp_path):
    """As with `prepare.hold_out_mnist_test: false`, but with the networks of the finished run."""
    for name in ("metrics", "data/raw"):
        shutil.copytree(finished.folder / name, tmp_path / name)
    for name in ("params.yaml", "data/clean.npz", "data/ensemble.keras", "submissions/submission.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(finished.folder / name, tmp_path / name)
    digits, oof = finished.arrays("data/digits.npz"), finished.arrays("data/oof.npz")
    seen = digits["test_index"][digits["test_index"] >= 0]
    digits["folds"] = np.maximum(digits["folds"], 0)
    save_arrays(tmp_path / "data/digits.npz", **digits)
    save_arrays(tmp_path / "data/oof.npz", probabilities=np.nan_to_num(oof["probabilities"], nan=0.1))
    done = run_python("-c", RUN_STAGES, "check", "report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    project = type(finished)(tmp_path)
    check, checked = project.json("metrics/check.json"), project.arrays("data/check.npz")
    assert np.flatnonzero(~checked["clean"]).tolist() == sorted(seen)
    correct = checked["probabilities"].argmax(axis=1) == project.arrays("data/clean.npz")["labels"]
    assert check["images"] == 10_000 - len(seen)
    assert check["accuracy"] == pytest.approx(np.delete(correct, seen).mean())
    for name in ("report.html", "report.md"):
        page = (tmp_path / "metrics" / name).read_text()
        assert "contaminated" in page and f"{correct.mean():.4f}" in page


ON_ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.execv(sys.executable, [sys.executable, "-m", "pipeline.stages.article"])
"""


def test_the_article_is_measured_on_the_way_and_has_the_same_bytes_on_one_core(project, mnist):
    curve = pd.read_csv(project.folder / "metrics/article.csv")
    printed = ["article_cost", "article_accuracy_batch"]
    assert list(curve) == ["step", "cost", "accuracy_batch", "accuracy", "log_loss", *printed]
    assert list(curve["step"]) == [0, 10, ARTICLE_STEPS - 1]
    assert curve["cost"].iloc[-1] < curve["cost"].iloc[0]
    assert curve["article_accuracy_batch"].tolist()[:2] == [0.168, 0.699]
    assert np.isnan(curve["article_accuracy_batch"][2])

    result, last = project.json("metrics/article.json"), curve.iloc[-1].drop(printed)
    assert result["accuracy"] == last["accuracy"] and result["images"] == 10_000
    assert result["low"] < result["accuracy"] < result["high"]
    assert result["log_loss"] == pytest.approx(last["log_loss"], rel=1e-5)
    again = article.measure(load_network(project.folder / "data/article.keras"), mnist)
    assert again == pytest.approx({name: last[name] for name in again}, rel=1e-5)

    results = [project.folder / name for name in ("metrics/article.csv", "data/article.keras")]
    before = [path.read_bytes() for path in results]
    project.run([sys.executable, "-c", ON_ONE_CORE])
    assert [path.read_bytes() for path in results] == before


def test_make_report_makes_the_page_again_and_says_where(project):
    page = project.folder / "metrics/report.html"
    page.unlink()
    assert project.run("make -o setup report").splitlines()[-1] == str(page) and page.exists()
