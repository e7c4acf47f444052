"""The whole pipeline, small, as DVC runs it in a fresh clone, and each stage on its own.

One file, because the processes that share the tests get whole files, and all of these share one run.
"""

import hashlib
import importlib
import re
import shutil
import subprocess

import keras
import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, run_python
from ruamel.yaml import YAML

import pipeline  # noqa: F401  registers the layer
from pipeline.competition import read_labels
from pipeline.files import PipelineError
from pipeline.metrics import wilson_interval
from pipeline.stages.check import mnist_test_images_trained_on

FOLDS, LIMIT = 3, 600
STAGES = ("mnist", "download", "prepare", "train", "ensemble", "check", "submission", "report")

pytestmark = pytest.mark.slow


def test_the_submission_is_what_the_ensemble_predicts(project):
    path = project.folder / "submissions/submission.csv"
    ids, labels = read_labels(path, LIMIT)
    assert ids.tolist() == list(range(1, LIMIT + 1))
    probabilities = project.arrays("data/predictions.npz")["probabilities"]
    assert np.array_equal(labels, probabilities.argmax(axis=1))
    assert path.read_bytes().startswith(b"ImageId,Label\r\n1,")


def test_the_run_ends_with_a_summary(project):
    accuracies = [project.json("metrics/folds.json")[f"fold_{fold}"]["accuracy"] for fold in range(FOLDS)]
    shown = [
        f"{value:.4f}"
        for value in (
            *accuracies,
            project.json("metrics/folds.json")["oof_accuracy"],
            project.json("metrics/check.json")["accuracy"],
            *project.json("metrics/check.json")["interval_95"],
        )
    ]
    summary = project.output[project.output.index("Running stage 'report'") :]
    assert all(
        word in summary for word in (*shown, "MNIST", "clean", "submissions/submission.csv", "make submit")
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
    folds, check, ensemble = (project.json(f"metrics/{name}.json") for name in ("folds", "check", "ensemble"))
    digits, oof = project.arrays("data/digits.npz"), project.arrays("data/oof.npz")
    used = digits["folds"] >= 0
    right = oof["probabilities"].argmax(axis=1) == digits["labels"]
    assert folds["oof_images"] == used.sum() and folds["oof_accuracy"] == pytest.approx(right[used].mean())
    accuracies = [right[digits["folds"] == fold].mean() for fold in range(FOLDS)]
    assert [folds[f"fold_{fold}"]["accuracy"] for fold in range(FOLDS)] == pytest.approx(accuracies)
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


def test_no_file_or_message_has_the_credentials(project):
    secret = project.environment["KAGGLE_KEY"]
    found = [path for path, content in files(project.folder).items() if secret.encode() in content]
    assert found == [] and secret not in project.output


# What runs again, and what does not


def test_a_second_run_does_nothing(project):
    output = project.run("dvc repro")
    assert "Data and pipelines are up to date." in output and "Running stage" not in output


# A parameter, and the stages whose command, result or message depends on it.
DEPENDENTS = {
    "seed": {"prepare", "train"},
    "download.seed": {"download"},
    "prepare.limit": {"prepare", "submission"},
    "prepare.folds": {"prepare", "train", "ensemble"},
    "prepare.hold_out_mnist_test": {"prepare"},
    "model.architecture": {"train", "ensemble"},
    "model.tta": {"train"},
    "augment.shift": {"train"},
    "train.learning_rate": {"train"},
    "train.seeds": {"train", "ensemble"},
    "compute.engine": set(),
    "compute.workers": set(),
    "article.steps": {"article"},
}


@pytest.mark.parametrize("name", DEPENDENTS)
def test_what_depends_on_a_parameter(name):
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    section = name.partition(".")[0]
    found = {stage for stage, content in stages.items() if {name, section} & set(content.get("params", []))}
    assert found == DEPENDENTS[name]


def test_a_changed_parameter_runs_what_depends_on_it(project):
    project.set(train={"learning_rate": 0.001})
    stale = project.stale()
    assert "train" in stale and not {"mnist", "download", "prepare"} & stale


def test_what_changes_no_result_runs_nothing(project):
    project.set(compute={"workers": 1})
    names = ("README.md", "params.yaml", "pipeline/training/runner.py", "pipeline/training/progress.py")
    for name in names:
        with open(project.folder / name, "a") as file:
            file.write("\n# A remark.\n")
    assert project.stale() == set()


def test_preparing_again_changes_no_byte(project):
    before = (project.folder / "data/digits.npz").read_bytes()
    project.run("python -m pipeline.stages.prepare")
    assert (project.folder / "data/digits.npz").read_bytes() == before


# Odd machines


def test_a_stage_depends_on_no_setting_that_it_inherits(project, tmp_path, monkeypatch):
    """As of a notebook's shell, and of another project's keras.json and matplotlibrc."""
    (tmp_path / "keras.json").write_text('{"image_data_format": "channels_first", "floatx": "float16"}')
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    odd = {
        "KERAS_HOME": str(tmp_path),
        "KERAS_BACKEND": "jax",
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "TF_NUM_INTEROP_THREADS": "",
        "NUMBA_DISABLE_JIT": "1",
        "MATPLOTLIBRC": str(tmp_path),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    for name, value in odd.items():
        monkeypatch.setitem(project.environment, name, value)
    before = files(project.folder / "data") | files(project.folder / "metrics")
    project.run("python -m pipeline.stages.ensemble")
    project.run("python -m pipeline.stages.check")
    after = files(project.folder / "data") | files(project.folder / "metrics")
    assert {path.name for path in before if before[path] != after.get(path)} <= {"ensemble.json"}  # times


@pytest.mark.parametrize("stage", ["download", "prepare", "ensemble", "check"])
def test_a_disk_that_is_full_is_one_line(project, stage):
    """As of a limit to the size of files, which any user can set."""
    before = files(project.folder)
    command = f"ulimit -f 10; exec python -m pipeline.stages.{stage}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=project.folder, env=project.environment, text=True, capture_output=True
    )
    assert done.returncode == 1 and files(project.folder) == before
    assert re.fullmatch(rf"{stage}: .*File too large\n", done.stderr)


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
    assert "contaminated" in (project.folder / "metrics/report.html").read_text()


# Each stage on its own: what it refuses, in one line, leaving everything as it was.


@pytest.mark.parametrize(("folds", "seen"), [([0, 1, -1], {7}), ([-1, 1, -1], set()), ([0, 1, 1], {7, 9})])
def test_the_mnist_test_images_that_a_network_trained_on(tmp_path, monkeypatch, folds, seen):
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data/digits.npz", mnist_index=[7, -1, 9], folds=folds)
    monkeypatch.chdir(tmp_path)
    assert set(mnist_test_images_trained_on()) == seen


@pytest.fixture
def prepared(finished, tmp_path, monkeypatch):
    """A folder in which `prepare` and `submission` can run, with the project's files."""
    (tmp_path / "data/raw").mkdir(parents=True)
    for name in ("mnist.npz", "raw/train.csv", "raw/test.csv", "raw/sample_submission.csv"):
        (tmp_path / "data" / name).symlink_to(finished.folder / "data" / name)
    shutil.copy(finished.folder / "params.yaml", tmp_path)
    (tmp_path / "data/digits.npz").write_bytes(b"of an earlier run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(stage, folder):
    """The line that a stage refuses with, having left everything as it was."""
    before = files(folder)
    with pytest.raises(PipelineError) as error:
        importlib.import_module(f"pipeline.stages.{stage}").main()
    assert files(folder) == before and "\n" not in str(error.value)
    return str(error.value)


def test_an_error_is_one_line_and_an_exit_status(prepared):
    (prepared / "data/raw/train.csv").unlink()
    before = files(prepared)
    done = run_python("-m", "pipeline.stages.prepare", cwd=prepared)
    assert done.returncode == 1 and files(prepared) == before
    assert done.stderr == "prepare: data/raw/train.csv: there is no such file\n"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (None, "there is no such file"),
        (lambda whole: b"<!DOCTYPE html>\n<title>Sign in</title>", "is an HTML page"),
        (lambda whole: whole[: len(whole) // 2], "columns, expected 785"),
        (lambda whole: whole.replace(b",0,", b",256,", 1), "row 1, column pixel0: found '256'"),
        (lambda whole: whole.replace(b"pixel7,", b"pixel07,", 1), "column 'pixel7' is missing"),
    ],
    ids=["missing", "html", "cut off", "pixel", "column"],
)
def test_prepare_refuses_a_bad_train_csv(prepared, damage, says):
    path = prepared / "data/raw/train.csv"
    whole = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(whole))
    line = refusal("prepare", prepared)
    assert line.startswith("data/raw/train.csv: ") and says in line


def test_prepare_counts_the_rows_unless_there_is_a_limit(prepared):
    path = prepared / "data/raw/test.csv"
    lines = path.read_bytes().splitlines(True)
    path.unlink()
    path.write_bytes(b"".join(lines[:-1]))
    importlib.import_module("pipeline.stages.prepare").main()
    (prepared / "params.yaml").write_text(
        (prepared / "params.yaml").read_text().replace(f"limit: {LIMIT}", "limit: null")
    )
    assert "data/raw/test.csv: 27999 rows, expected 28000" in refusal("prepare", prepared)


@pytest.mark.parametrize("stage", ["prepare", "train", "submission"])
def test_stages_refuse_bad_parameters(prepared, stage):
    with open(prepared / "params.yaml", "a") as file:
        file.write("epochs: 3\n")
    assert "unknown key 'epochs'" in refusal(stage, prepared)


def test_the_submission_is_in_the_order_of_the_sample(prepared):
    (prepared / "params.yaml").write_text(
        (prepared / "params.yaml").read_text().replace(f"limit: {LIMIT}", "limit: null")
    )
    random = np.random.default_rng(0)
    probabilities = random.random((28_000, 10))
    np.savez(prepared / "data/predictions.npz", probabilities=probabilities)
    sample = prepared / "data/raw/sample_submission.csv"
    header, *rows = sample.read_bytes().splitlines(True)
    sample.unlink()
    sample.write_bytes(header + b"".join(random.permutation(rows)))
    importlib.import_module("pipeline.stages.submission").main()
    ids, labels = read_labels(prepared / "submissions/submission.csv")
    assert ids.tolist() == read_labels(sample)[0].tolist() != sorted(ids)
    assert np.array_equal(labels, probabilities.argmax(axis=1)[ids - 1])


@pytest.mark.parametrize("damage", [lambda p: p[:-1], lambda p: p * np.nan], ids=["too few", "no numbers"])
def test_the_submission_refuses_bad_predictions(prepared, damage):
    np.savez(prepared / "data/predictions.npz", probabilities=damage(np.full((LIMIT, 10), 0.1)))
    assert "data/predictions.npz" in refusal("submission", prepared)


@pytest.mark.parametrize(
    ("stage", "file", "writer"),
    [
        ("train", "data/digits.npz", "prepare"),
        ("check", "data/mnist.npz", "mnist"),
        ("submission", "data/predictions.npz", "ensemble"),
        ("report", "data/raw/source.json", "download"),
    ],
)
@pytest.mark.parametrize("content", [None, b"of an earlier run", b""], ids=["missing", "damaged", "empty"])
def test_stages_refuse_files_that_no_stage_has_written(prepared, stage, file, writer, content):
    (prepared / file).unlink(missing_ok=True)
    if content is not None:
        (prepared / file).write_bytes(content)
    line = refusal(stage, prepared)
    assert line.startswith(f"{file}: ") and repr(writer) in line


@pytest.mark.parametrize("command", ["prepare --help", "train --help", "prepare", "submission"])
def test_stages_that_run_no_network_do_not_load_tensorflow(prepared, command):
    np.savez(prepared / "data/predictions.npz", probabilities=np.full((LIMIT, 10), 0.1))
    name, *options = command.split()
    done = run_python("-X", "importtime", "-m", f"pipeline.stages.{name}", *options, cwd=prepared)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and {"numpy", "pipeline.params"} <= loaded
    assert not {"tensorflow", "keras"} & loaded
