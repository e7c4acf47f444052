"""What a run leaves: the same figures wherever they are shown, and no secret."""

import hashlib
import re
import zipfile

import keras
import numpy as np
import pandas as pd
import pytest
from clone import FOLDS, LIMIT
from helpers import ROOT, files, run_python

import pipeline  # noqa: F401  registers the layer
from pipeline.competition import read_labels
from pipeline.metrics import FIGURES, wilson_interval

pytestmark = pytest.mark.slow


def test_the_submission_is_what_the_ensemble_predicts(project):
    path = project.folder / "submissions/submission.csv"
    ids, labels = read_labels(path, LIMIT)
    assert ids.tolist() == list(range(1, LIMIT + 1))
    probabilities = project.arrays("data/predictions.npz")["probabilities"]
    assert np.array_equal(labels, probabilities.argmax(axis=1))
    assert path.read_bytes().startswith(b"ImageId,Label\r\n1,")


def test_the_run_ends_with_a_summary(project):
    names = [*(f"folds/fold_{fold}" for fold in range(FOLDS)), "oof", "ensemble", "check"]
    shown = [f"{project.json(f'metrics/{name}.json')['accuracy']:.4f}" for name in names]
    summary = project.output[project.output.index("Running stage 'report'") :]
    assert all(
        word in summary
        for word in (*shown, "clean", "submissions/submission.csv", "make submit", "report.html")
    )


def test_no_row_is_trained_on_and_measured_with(project):
    digits = project.arrays("data/digits.npz")
    assert len(digits["images"]) == len(digits["test_images"]) == LIMIT
    in_mnist_test = digits["mnist_index"] >= 0
    assert 0 < in_mnist_test.sum() < LIMIT / 3
    assert np.array_equal(digits["folds"] == -1, in_mnist_test)
    mnist = project.arrays("data/mnist.npz")
    assert np.array_equal(
        mnist["test_images"][digits["mnist_index"][in_mnist_test]], digits["images"][in_mnist_test]
    )


def test_the_metrics(project):
    oof_figures, check, ensemble = (
        project.json(f"metrics/{name}.json") for name in ("oof", "check", "ensemble")
    )
    folds = [project.json(f"metrics/folds/fold_{fold}.json") for fold in range(FOLDS)]
    digits, oof = project.arrays("data/digits.npz"), project.arrays("data/oof.npz")
    used = digits["folds"] >= 0
    right = oof["probabilities"].argmax(axis=1) == digits["labels"]
    assert oof_figures["images"] == used.sum()
    assert oof_figures["accuracy"] == pytest.approx(right[used].mean())
    accuracies = [right[digits["folds"] == fold].mean() for fold in range(FOLDS)]
    assert [figures["accuracy"] for figures in folds] == pytest.approx(accuracies)
    assert all(tuple(figures) == FIGURES and figures["epochs"] == 2 for figures in folds)
    assert np.isnan(oof["probabilities"][~used]).all() and np.isfinite(oof["probabilities"][used]).all()

    assert check["images"] == 10_000 and check["log_loss"] > 0 and ensemble["images"] == LIMIT
    correct = round(10_000 * check["accuracy"])
    assert [check["low"], check["high"]] == wilson_interval(correct, 10_000)
    history = pd.read_csv(project.folder / "metrics/history.csv")
    assert history["epoch"].tolist() == [1, 2] * FOLDS and history["fold"].is_monotonic_increasing


def test_each_figure_is_shown_once(project):
    """What a detailed table sums up to is the figure in `metrics/`."""
    digits = (
        pd.read_csv(project.folder / "metrics/digits.csv").groupby("images_of")[["correct", "images"]].sum()
    )
    confusion = pd.read_csv(project.folder / "metrics/confusion.csv")
    right = confusion[confusion["label"] == confusion["predicted"]].groupby("images_of")["images"].sum()
    article = pd.read_csv(project.folder / "metrics/article.csv").iloc[-1]
    for name, part in (("oof", "out of fold"), ("check", "MNIST test")):
        figures = project.json(f"metrics/{name}.json")
        assert digits.loc[part, "images"] == figures["images"]
        assert right[part] / figures["images"] == pytest.approx(figures["accuracy"])
        assert digits.loc[part, "correct"] == right[part]
    assert project.json("metrics/article.json")["accuracy"] == pytest.approx(article["accuracy"])


def test_the_tables_of_rows_are_the_arrays(project):
    digits, oof = project.arrays("data/digits.npz"), project.arrays("data/oof.npz")
    folds, predicted = (pd.read_csv(project.folder / f"data/{name}.csv") for name in ("folds", "oof"))
    assert (
        folds["row"].tolist() == list(range(LIMIT)) and folds["label"].tolist() == digits["labels"].tolist()
    )
    assert folds["fold"].tolist() == digits["folds"].tolist()
    assert folds["mnist_test_index"].tolist() == digits["mnist_index"].tolist()
    assert predicted["row"].tolist() == np.flatnonzero(digits["folds"] >= 0).tolist()
    probabilities = oof["probabilities"][predicted["row"]]
    np.testing.assert_allclose(predicted.filter(regex="^p.$"), probabilities, rtol=1e-5)
    assert predicted["prediction"].tolist() == probabilities.argmax(axis=1).tolist()


def test_the_source_is_recorded(project):
    source = project.json("data/raw/source.json")
    assert source["source"] == "mnist" and source["seed"] == 2026
    for name, digest in source["sha256"].items():
        assert hashlib.sha256((project.folder / "data/raw" / name).read_bytes()).hexdigest() == digest


def test_the_ensemble_is_the_mean_of_the_folds(project):
    digits, oof = project.arrays("data/digits.npz"), project.arrays("data/oof.npz")["probabilities"]
    networks = [
        keras.models.load_model(project.folder / f"data/checkpoints/fold_{fold}.keras")
        for fold in range(FOLDS)
    ]
    images = digits["test_images"].astype("float32")
    mean = np.mean([network.predict(images, verbose=0) for network in networks], axis=0)
    # The precision may be bfloat16.
    np.testing.assert_allclose(project.arrays("data/predictions.npz")["probabilities"], mean, atol=0.01)
    for fold, network in enumerate(networks):
        rows = digits["folds"] == fold
        own = network.predict(digits["images"][rows].astype("float32"), verbose=0)
        np.testing.assert_allclose(oof[rows], own, atol=0.01)


def test_no_file_message_or_command_line_has_the_credentials(project):
    secret = project.environment["KAGGLE_KEY"]
    contents = files(project.folder) | files(project.home / "tmp")
    for path in filter(zipfile.is_zipfile, (project.folder / "data").rglob("*")):
        with zipfile.ZipFile(path) as archive:
            contents |= {path / name: archive.read(name) for name in archive.namelist()}
    found = [path for path, content in contents.items() if secret.encode() in content]
    assert found == [] and secret not in project.output
    lines = project.command_lines
    assert any(b"pipeline.stages.train" in line for line in lines)
    assert not [line for line in lines if secret.encode() in line]


def test_the_python_of_the_docs_runs(project):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/running.md").read_text(), re.DOTALL)
    cache = project.environment["NUMBA_CACHE_DIR"]
    done = run_python("-c", code, cwd=project.folder, NUMBA_CACHE_DIR=cache)
    assert done.returncode == 0, done.stderr
    # Above it is Keras's progress bar.
    shown = [int(digit) for digit in done.stdout.splitlines()[-1].strip("[]").split()]
    probabilities = project.arrays("data/check.npz")["probabilities"][:5]
    # The precision may be bfloat16.
    assert (probabilities[range(5), shown] >= probabilities.max(axis=1) - 0.02).all()


RUN_CELLS = """
import json
cells = json.load(open("inspect.ipynb"))["cells"]
assert len(cells) <= 30
for cell in cells:
    if cell["cell_type"] == "code":
        exec("".join(cell["source"]))
print(climbed.sum(), len(worst))
"""


def test_the_notebook_runs(project):
    done = run_python("-c", RUN_CELLS, cwd=project.folder / "notebooks", MPLBACKEND="Agg")
    assert done.returncode == 0, done.stderr
    weights, mistakes = done.stdout.split()
    wrong = round(
        project.json("metrics/oof.json")["images"] * (1 - project.json("metrics/oof.json")["accuracy"])
    )
    assert float(weights) == pytest.approx(1) and int(mistakes) == wrong


def test_make_report_makes_the_page_again_and_says_where(project, monkeypatch):
    """Whichever backend of Matplotlib the shell, or a notebook, has chosen."""
    monkeypatch.setitem(project.environment, "MPLBACKEND", "module://no_such_module")
    page, picture = (project.folder / "metrics" / name for name in ("report.html", "confusion.png"))
    before = picture.read_bytes()
    page.unlink()
    assert project.run("make -o setup report").splitlines()[-1] == str(page) and page.exists()
    assert picture.read_bytes() == before
