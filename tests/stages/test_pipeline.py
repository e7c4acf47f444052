"""The whole pipeline, small, as DVC runs it in a fresh clone: what the README promises."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, run_python
from ruamel.yaml import YAML

import pipeline  # noqa: F401  registers the layer
from pipeline.accuracy import wilson_interval
from pipeline.competition import read_labels
from pipeline.folds import find_images
from pipeline.stages.check import mnist_test_images_trained_on

LIMIT, FOLDS = 600, 3
SMALL = {
    "download": {"source": "mnist"}, "prepare": {"limit": LIMIT, "folds": FOLDS},
    "model": {"reader": "turns", "layers": 2, "units": 16, "grid_layers": 3, "grid_units": 8},
    "train": {"epochs": 2, "batch_size": 64, "workers": 2},
    "article": {"steps": 20, "units": 16, "batch_size": 100},
}
STAGES = ("mnist", "download", "prepare", "train", "ensemble", "check", "submission", "report")


class Project:
    """A clone of the project, and the commands that its user types."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {
            **os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1"}
        self.environment.pop("PYTHONPATH", None)

    def run(self, command, status=0):
        done = subprocess.run(command.split(), cwd=self.folder, env=self.environment, text=True,
                              capture_output=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr if status == 0 else done.stderr

    def run_json(self, command):
        done = subprocess.run(command.split(), cwd=self.folder, env=self.environment, capture_output=True,
                              check=True)
        return json.loads(done.stdout)

    def stale(self):
        """The stages that `dvc repro` would run; the one that sends to Kaggle is never among them."""
        return {stage for stage in self.run_json("dvc status --json") if "submit" not in stage}

    def set(self, **sections):
        yaml, path = YAML(), self.folder / "params.yaml"
        params = yaml.load(path)
        for section, values in sections.items():
            if section in params:
                params[section].update(values)
        yaml.dump(params, path)

    def json(self, path):
        return json.loads((self.folder / path).read_bytes())

    def arrays(self, path):
        with np.load(self.folder / path) as file:
            return dict(file)

    def results(self):
        return {path: (self.folder / path).read_bytes()
                for path in ("data/predictions.npz", "data/oof.npz", "submissions/submission.csv")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The project after `dvc repro`, its results committed, as after the run of record."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True,
                            capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    project = Project(folder)
    for command in ("git init -q", "git config user.name Tester", "git config user.email tester@localhost"):
        project.run(command)
    project.set(**SMALL)
    for command in ("git add -A", "git commit -qm project"):
        project.run(command)
    project.output = project.run("dvc repro")
    for command in ("git add -A", "git commit -qm run"):
        project.run(command)
    yield project
    shutil.rmtree(folder)


@pytest.fixture
def project(finished):
    """The finished project; what a test changes in it is put back."""
    yield finished
    changed = finished.run("git status --porcelain")
    finished.run("git reset -q --hard")
    if "dvc.lock" in changed:
        finished.run("dvc checkout -q")


# The result


def test_the_submission_is_what_the_ensemble_predicts(project):
    path = project.folder / "submissions/submission.csv"
    ids, labels = read_labels(path, LIMIT)
    assert ids.tolist() == list(range(1, LIMIT + 1))
    probabilities = project.arrays("data/predictions.npz")["probabilities"]
    assert np.array_equal(labels, probabilities.argmax(axis=1))
    assert path.read_bytes().startswith(b"ImageId,Label\r\n1,")


def test_the_run_ends_with_a_summary(project):
    accuracies = [project.json("metrics/folds.json")[f"fold_{fold}"]["accuracy"] for fold in range(FOLDS)]
    shown = [f"{value:.4f}" for value in (
        *accuracies, project.json("metrics/folds.json")["oof_accuracy"],
        project.json("metrics/check.json")["accuracy"], *project.json("metrics/check.json")["interval_95"])]
    summary = project.output[project.output.index("Running stage 'report'"):]
    assert all(word in summary for word in (
        *shown, "MNIST", "clean", "submissions/submission.csv", "make submit"))


def test_no_row_is_trained_on_and_measured_with(project):
    digits = project.arrays("data/digits.npz")
    assert len(digits["images"]) == len(digits["test_images"]) == LIMIT
    in_mnist_test = digits["mnist_index"] >= 0
    assert 0 < in_mnist_test.sum() < LIMIT / 3
    assert np.array_equal(digits["folds"] == -1, in_mnist_test)
    mnist = project.arrays("data/mnist.npz")
    assert np.array_equal(mnist["test_images"][digits["mnist_index"][in_mnist_test]],
                          digits["images"][in_mnist_test])
    # A student, too, gets no image to train on that the check measures with.
    held_out = digits["test_held_out"]
    assert 0 < held_out.sum() < LIMIT / 3
    found = mnist["test_images"][digits["test_mnist_index"][held_out]]
    assert np.array_equal(found, digits["test_images"][held_out])
    assert np.all(find_images(digits["test_images"][~held_out], mnist["test_images"]) < 0)


def test_the_metrics(project):
    folds, check, ensemble = (project.json(f"metrics/{name}.json") for name in ("folds", "check", "ensemble"))
    digits, oof = project.arrays("data/digits.npz"), project.arrays("data/oof.npz")
    used = digits["folds"] >= 0
    right = oof["probabilities"].argmax(axis=1) == digits["labels"]
    assert folds["oof_images"] == used.sum() and folds["oof_accuracy"] == pytest.approx(right[used].mean())
    accuracies = [right[digits["folds"] == fold].mean() for fold in range(FOLDS)]
    assert [folds[f"fold_{fold}"]["accuracy"] for fold in range(FOLDS)] == pytest.approx(accuracies)
    assert folds["mean_accuracy"] == pytest.approx(np.mean(accuracies))
    assert folds["std_accuracy"] == pytest.approx(np.std(accuracies, ddof=1))
    assert all(folds[f"fold_{fold}"]["epochs"] == 2 for fold in range(FOLDS)) and f"fold_{FOLDS}" not in folds
    assert np.isnan(oof["probabilities"][~used]).all() and np.isfinite(oof["probabilities"][used]).all()

    assert check["contaminated"] is False and check["images"] == 10_000
    assert check["accuracy"] == check["correct"] / 10_000
    assert check["interval_95"] == wilson_interval(check["correct"], 10_000)
    assert check["log_loss"] > 0 and list(check["per_digit"]) == list("0123456789")
    assert 0 <= check["article_test_batch"]["ours"] <= 1
    assert ensemble["networks"] == FOLDS and ensemble["images"] == LIMIT

    history = pd.read_csv(project.folder / "metrics/history.csv")
    assert history["epoch"].tolist() == [1, 2] and {"loss", "val_loss", "val_accuracy"} <= set(history)
    confusion = pd.read_csv(project.folder / "metrics/confusion.csv")
    assert np.sum(confusion["actual"] == confusion["predicted"]) == check["correct"]
    for name in ("confusion.png", "mistakes.png"):
        assert (project.folder / "metrics" / name).read_bytes().startswith(b"\x89PNG")


def test_the_report_is_one_page_that_needs_no_network(project):
    page = (project.folder / "metrics/report.html").read_text()
    assert f"{project.json('metrics/check.json')['accuracy']:.4f}" in page
    assert page.count('src="data:image/png;base64,') == page.count("src=") >= 3
    assert "<link" not in page and "<script" not in page


def test_the_source_is_recorded(project):
    source = project.json("data/raw/source.json")
    assert source["source"] == "mnist" and source["seed"] == 2026
    for name, digest in source["sha256"].items():
        assert hashlib.sha256((project.folder / "data/raw" / name).read_bytes()).hexdigest() == digest


def test_the_ensemble_is_the_mean_of_the_folds(project):
    digits, oof = project.arrays("data/digits.npz"), project.arrays("data/oof.npz")["probabilities"]
    networks = [keras.models.load_model(project.folder / f"data/checkpoints/fold_{fold}.keras")
                for fold in range(FOLDS)]
    images = digits["test_images"].astype("float32")
    mean = np.mean([network.predict(images, verbose=0) for network in networks], axis=0)
    # The precision may be bfloat16.
    np.testing.assert_allclose(project.arrays("data/predictions.npz")["probabilities"], mean, atol=0.01)
    for fold, network in enumerate(networks):
        rows = digits["folds"] == fold
        own = network.predict(digits["images"][rows].astype("float32"), verbose=0)
        np.testing.assert_allclose(oof[rows], own, atol=0.01)


# What runs again, and what does not


def test_a_second_run_does_nothing(project):
    output = project.run("dvc repro")
    assert "Data and pipelines are up to date." in output and "Running stage" not in output


@pytest.mark.parametrize(("section", "name", "value", "runs", "runs_not"), [
    ("train", "learning_rate", 0.001, {"train"}, {"mnist", "download", "prepare"}),
    ("train", "pseudo_labels", True, {"train", "ensemble"}, {"mnist", "download", "prepare"}),
    ("train", "workers", 1, set(), set(STAGES)),
    ("model", "reader", "all", {"train", "ensemble"}, {"mnist", "download", "prepare"}),
    ("model", "shifts", True, {"train"}, {"mnist", "download", "prepare"}),
    ("prepare", "folds", 4, {"prepare", "train", "ensemble"}, {"mnist", "download"}),
    ("prepare", "limit", 500, {"prepare", "submission"}, {"mnist", "download"}),
    ("download", "seed", 7, {"download"}, {"mnist"}),
])
def test_a_changed_parameter_runs_what_depends_on_it(project, section, name, value, runs, runs_not):
    project.set(**{section: {name: value}})
    stale = project.stale()
    assert runs <= stale and not runs_not & stale


def test_what_changes_no_result_runs_nothing(project):
    for name in ("README.md", "params.yaml"):
        with open(project.folder / name, "a") as file:
            file.write("\n# A remark.\n")
    assert project.stale() == set()


def test_the_number_of_workers_changes_no_byte(project):
    before = project.results()
    project.set(train={"workers": 1})
    output = project.run("dvc repro -sf train ensemble submission")
    assert f"{FOLDS} folds, 1 at a time" in output
    assert project.results() == before


def test_preparing_again_changes_no_byte(project):
    before = (project.folder / "data/digits.npz").read_bytes()
    project.run("python -m pipeline.stages.prepare")
    assert (project.folder / "data/digits.npz").read_bytes() == before


# DVC's own commands


def test_dvc_shows_the_pipeline_and_its_results(project, tmp_path):
    dag = project.run("dvc dag --mermaid")
    assert all(f'"{stage}"' in dag for stage in STAGES)
    metrics = project.run_json("dvc metrics show --json")[""]["data"]
    check = project.json("metrics/check.json")
    del check["interval_95"]  # DVC leaves out lists
    assert metrics["metrics/check.json"]["data"] == check
    assert {"metrics/folds.json", "metrics/ensemble.json"} <= set(metrics)
    project.run(f"dvc plots show -o {tmp_path / 'plots'}")
    page = (tmp_path / "plots/index.html").read_text()
    assert all(word in page for word in ("val_loss", "val_accuracy", "confusion.png"))


def test_dvc_compares_parameters(project):
    project.set(train={"learning_rate": 0.125})
    changes = project.run_json("dvc params diff --json")["params.yaml"]
    assert list(changes) == ["train.learning_rate"] and changes["train.learning_rate"]["new"] == 0.125


def test_dvc_sends_nobody_usage_statistics(project):
    assert project.run("dvc config core.analytics").strip() == "false"


def test_an_experiment_that_trains_on_mnist_test_images_says_so(project):
    project.run("dvc exp run -S prepare.hold_out_mnist_test=false -S train.epochs=1")
    check, digits = project.json("metrics/check.json"), project.arrays("data/digits.npz")
    seen = digits["mnist_index"][digits["mnist_index"] >= 0]
    assert project.json("metrics/folds.json")["oof_images"] == LIMIT
    assert len(pd.read_csv(project.folder / "metrics/history.csv")) == 1
    assert check["contaminated"] is True and check["images"] == 10_000 - len(seen)
    network = keras.models.load_model(project.folder / "data/ensemble.keras")
    mnist = project.arrays("data/mnist.npz")
    predicted = network.predict(mnist["test_images"].astype("float32"), verbose=0).argmax(axis=1)
    right = predicted == mnist["test_labels"]
    # The precision may be bfloat16, so an image on the edge may fall to another side.
    assert check["contaminated_accuracy_on_all_images"] == pytest.approx(right.mean(), abs=0.002)
    assert check["accuracy"] == pytest.approx(np.delete(right, seen).mean(), abs=0.002)
    assert len(pd.read_csv(project.folder / "metrics/confusion.csv")) == check["images"]
    assert "contaminated" in (project.folder / "metrics/report.html").read_text()


# Stages on their own


@pytest.mark.parametrize(("folds", "test_trained_on", "seen"), [
    ([0, 1, -1], [False] * 3, {7}), ([0, 1, -1], [False, True, True], {7, 11}),
    ([-1, 1, -1], [True, False, False], set()), ([0, 1, 1], [True] * 3, {7, 9, 11})])
def test_the_mnist_test_images_that_a_network_trained_on(tmp_path, monkeypatch, folds, test_trained_on, seen):
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data/digits.npz", mnist_index=[7, -1, 9], test_mnist_index=[-1, 11, -1])
    np.savez(tmp_path / "data/oof.npz", folds=folds, test_trained_on=test_trained_on)
    monkeypatch.chdir(tmp_path)
    assert set(mnist_test_images_trained_on()) == seen


@pytest.fixture
def prepared(project, tmp_path):
    """A folder in which `prepare` and `submission` can run, with the project's files."""
    (tmp_path / "data/raw").mkdir(parents=True)
    for name in ("mnist.npz", "raw/train.csv", "raw/test.csv", "raw/sample_submission.csv"):
        (tmp_path / "data" / name).symlink_to(project.folder / "data" / name)
    shutil.copy(project.folder / "params.yaml", tmp_path)
    (tmp_path / "data/digits.npz").write_bytes(b"of an earlier run")
    return tmp_path


def refusal(stage, folder):
    """The one line that a stage ends with, having left everything as it was."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = run_python("-m", f"pipeline.stages.{stage}", cwd=folder)
    assert done.returncode == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"{stage}: ")
    return done.stderr


@pytest.mark.parametrize(("damage", "says"), [
    (None, "there is no such file"),
    (lambda whole: b"<!DOCTYPE html>\n<title>Sign in</title>", "is an HTML page"),
    (lambda whole: whole[:len(whole) // 2], "columns, expected 785"),
    (lambda whole: whole.replace(b",0,", b",256,", 1), "row 1, column pixel0: found '256'"),
    (lambda whole: whole.replace(b"pixel7,", b"pixel07,", 1), "column 'pixel7' is missing"),
], ids=["missing", "html", "cut off", "pixel", "column"])
def test_prepare_refuses_a_bad_train_csv(prepared, damage, says):
    path = prepared / "data/raw/train.csv"
    whole = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(whole))
    line = refusal("prepare", prepared)
    assert line.startswith("prepare: data/raw/train.csv: ") and says in line


def test_prepare_counts_the_rows_unless_there_is_a_limit(prepared):
    path = prepared / "data/raw/test.csv"
    lines = path.read_bytes().splitlines(True)
    path.unlink()
    path.write_bytes(b"".join(lines[:-1]))
    done = run_python("-m", "pipeline.stages.prepare", cwd=prepared)
    assert done.returncode == 0, done.stderr
    (prepared / "params.yaml").write_text(
        (prepared / "params.yaml").read_text().replace(f"limit: {LIMIT}", "limit: null"))
    assert "data/raw/test.csv: 27999 rows, expected 28000" in refusal("prepare", prepared)


@pytest.mark.parametrize("stage", ["prepare", "train", "submission"])
def test_stages_refuse_bad_parameters(prepared, stage):
    with open(prepared / "params.yaml", "a") as file:
        file.write("epochs: 3\n")
    assert "unknown key 'epochs'" in refusal(stage, prepared)


def test_the_submission_is_in_the_order_of_the_sample(prepared):
    (prepared / "params.yaml").write_text(
        (prepared / "params.yaml").read_text().replace(f"limit: {LIMIT}", "limit: null"))
    random = np.random.default_rng(0)
    probabilities = random.random((28_000, 10))
    np.savez(prepared / "data/predictions.npz", probabilities=probabilities)
    sample = prepared / "data/raw/sample_submission.csv"
    header, *rows = sample.read_bytes().splitlines(True)
    sample.unlink()
    sample.write_bytes(header + b"".join(random.permutation(rows)))
    done = run_python("-m", "pipeline.stages.submission", cwd=prepared)
    assert done.returncode == 0, done.stderr
    ids, labels = read_labels(prepared / "submissions/submission.csv")
    assert ids.tolist() == read_labels(sample)[0].tolist() != sorted(ids)
    assert np.array_equal(labels, probabilities.argmax(axis=1)[ids - 1])


@pytest.mark.parametrize("damage", [lambda p: p[:-1], lambda p: p * np.nan], ids=["too few", "no numbers"])
def test_the_submission_refuses_bad_predictions(prepared, damage):
    np.savez(prepared / "data/predictions.npz", probabilities=damage(np.full((LIMIT, 10), 0.1)))
    assert "data/predictions.npz" in refusal("submission", prepared)


@pytest.mark.parametrize(("stage", "file", "writer"), [
    ("train", "data/digits.npz", "prepare"), ("check", "data/mnist.npz", "mnist"),
    ("submission", "data/predictions.npz", "ensemble"), ("report", "data/raw/source.json", "download")])
@pytest.mark.parametrize("content", [None, b"of an earlier run", b""], ids=["missing", "damaged", "empty"])
def test_stages_refuse_files_that_no_stage_has_written(prepared, stage, file, writer, content):
    (prepared / file).unlink(missing_ok=True)
    if content is not None:
        (prepared / file).write_bytes(content)
    line = refusal(stage, prepared)
    assert line.startswith(f"{stage}: {file}: ") and repr(writer) in line


@pytest.mark.parametrize("command", ["prepare --help", "train --help", "prepare", "submission"])
def test_stages_that_run_no_network_do_not_load_tensorflow(prepared, command):
    np.savez(prepared / "data/predictions.npz", probabilities=np.full((LIMIT, 10), 0.1))
    name, *options = command.split()
    done = run_python("-X", "importtime", "-m", f"pipeline.stages.{name}", *options, cwd=prepared)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and {"numpy", "pipeline.params"} <= loaded
    assert not {"tensorflow", "keras"} & loaded
