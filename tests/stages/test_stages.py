"""Each stage on its own: on odd machines, and what it refuses in one line, leaving everything as it was."""

import fcntl
import importlib
import itertools
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from clone import LIMIT
from helpers import files, run_python

from pipeline import competition
from pipeline.competition import read_labels
from pipeline.files import PipelineError
from pipeline.mnist import load_mnist
from pipeline.paths import MNIST
from pipeline.stages.check import mnist_test_images_trained_on

pytestmark = pytest.mark.slow


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

    def results():
        check = {**project.json("metrics/check.json"), "seconds": None}
        return check, files(project.folder / "data") | files(project.folder / "metrics")

    check, before = results()
    project.run("python -m pipeline.stages.ensemble")
    project.run("python -m pipeline.stages.check")
    check_after, after = results()
    changed = {path.name for path in before if before[path] != after.get(path)}
    assert check_after == check and changed <= {"ensemble.json", "check.json"}  # they hold seconds


def test_a_stage_waits_while_another_process_runs_it(project):
    with open(project.folder / ".dvc/tmp/stage_submission.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "pipeline.stages.submission"]
        process = subprocess.Popen(command, cwd=project.folder, text=True, stdout=subprocess.PIPE)
        assert process.stdout.readline().startswith("submission: waits until another process")
    assert f"{LIMIT} predictions" in process.communicate()[0] and process.returncode == 0


# Each in a fork of a process that has imported what takes long.
RUN_STAGES = """
import os, runpy, sys

stages, sys.argv[1:], stderr = sys.argv[1:], [], os.dup(2)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # TensorFlow's log
import pipeline.stages
if "train" in stages:
    import pipeline.networks
os.dup2(stderr, 2)
for stage in stages:
    if not os.fork():
        runpy.run_module(f"pipeline.stages.{stage}", run_name="__main__", alter_sys=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 1, stage
"""
# Folders that even the superuser cannot write to. A limit to the size of files is as a full disk.
NO_RIGHT = "find . -type d -exec chmod a-w {} +; exec"
if os.geteuid() == 0:
    NO_RIGHT += " setpriv --bounding-set=-dac_override"


@pytest.mark.parametrize(
    ("limit", "says", "stages"),
    [
        ("ulimit -f 10; exec", "File too large", "download prepare train ensemble check article report"),
        ("ulimit -f 1; exec", "no room for temporary files", "submission"),
        (NO_RIGHT, "Permission denied", "download prepare submission report"),
    ],
    ids=["full", "no temporary files", "read-only"],
)
def test_a_folder_that_cannot_be_written_to_is_one_line(project, limit, says, stages):
    project.set(compute={"workers": 1})
    before = files(project.folder)
    command = ["bash", "-c", f'{limit} python -c "$@"', "bash", RUN_STAGES, *stages.split()]
    done = subprocess.run(
        command, cwd=project.folder, env=project.environment, text=True, capture_output=True
    )
    project.run("find . -type d -exec chmod u+w {} +")
    assert done.returncode == 0 and files(project.folder) == before, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == stages.split()
    assert all(says in line for line in lines)


# What a stage refuses


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


def refused(stage, folder):
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


def test_mnist_can_keep_its_own_split(prepared, monkeypatch):
    monkeypatch.setattr(competition, "SPLIT_ROWS", {"train.csv": 80, "test.csv": 20})
    mnist = {name: array[: 80 if "train" in name else 20] for name, array in load_mnist(MNIST).items()}
    stage = importlib.import_module("pipeline.stages.download")
    monkeypatch.setattr(stage, "load_mnist", lambda path: mnist)
    yaml = prepared / "params.yaml"
    text = (
        yaml.read_text()
        .replace("source: mnist", "source: mnist-60k")
        .replace(f"limit: {LIMIT}", "limit: null")
    )
    yaml.write_text(text)
    shutil.rmtree(prepared / "data/raw")
    for name in ("download", "prepare"):
        importlib.import_module(f"pipeline.stages.{name}").main()
    with np.load("data/digits.npz") as digits:
        np.testing.assert_array_equal(digits["images"], mnist["train_images"])
        np.testing.assert_array_equal(digits["labels"], mnist["train_labels"])
        np.testing.assert_array_equal(digits["test_images"], mnist["test_images"])
        assert (digits["mnist_index"] == -1).all() and set(digits["folds"]) == {0, 1, 2}
    np.savez("data/predictions.npz", probabilities=np.eye(10, dtype=np.float32)[mnist["test_labels"]])
    importlib.import_module("pipeline.stages.submission").main()
    _, labels = read_labels("submissions/submission.csv", limit=20)
    np.testing.assert_array_equal(labels, mnist["test_labels"])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (None, "there is no such file"),
        (lambda whole: b"<!DOCTYPE html>\n<title>Sign in</title>", "is an HTML page"),
        (lambda whole: whole[:100_000], "columns, expected 785"),
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
    line = refused("prepare", prepared)
    assert line.startswith("data/raw/train.csv: ") and says in line


def test_prepare_counts_the_rows_unless_there_is_a_limit(prepared, monkeypatch):
    monkeypatch.setattr(competition, "ROWS", {"train.csv": LIMIT, "test.csv": LIMIT})
    for name, rows in (("train.csv", LIMIT), ("test.csv", LIMIT - 1)):
        path = prepared / "data/raw" / name
        with open(path, "rb") as file:
            lines = list(itertools.islice(file, 1 + rows))
        path.unlink()
        path.write_bytes(b"".join(lines))
    importlib.import_module("pipeline.stages.prepare").main()
    (prepared / "params.yaml").write_text(
        (prepared / "params.yaml").read_text().replace(f"limit: {LIMIT}", "limit: null")
    )
    assert f"data/raw/test.csv: {LIMIT - 1} rows, expected {LIMIT}" in refused("prepare", prepared)


@pytest.mark.parametrize("stage", ["prepare", "train", "submission"])
def test_stages_refuse_bad_parameters(prepared, stage):
    with open(prepared / "params.yaml", "a") as file:
        file.write("epochs: 3\n")
    assert "unknown key 'epochs'" in refused(stage, prepared)


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
    line = refused("submission", prepared)
    assert line.startswith("data/predictions.npz: ") and "stage 'ensemble'" in line


def test_of_two_files_that_do_not_fit_the_one_at_fault_is_named_first(prepared):
    np.savez(prepared / "data/predictions.npz", probabilities=np.full((LIMIT, 10), 0.1))
    sample = prepared / "data/raw/sample_submission.csv"
    lines = sample.read_bytes().splitlines(True)
    sample.unlink()
    sample.write_bytes(b"".join(lines[:LIMIT]))
    said = (
        f"has {LIMIT - 1} rows, expected {LIMIT} as in data/predictions.npz; run the stage 'download' again"
    )
    assert refused("submission", prepared) == f"data/raw/sample_submission.csv: {said}"

    digits = {name: np.zeros(LIMIT, int) for name in ("test_images", "images", "labels", "folds")}
    np.savez(prepared / "data/digits.npz", **digits)
    np.savez(prepared / "data/oof.npz", probabilities=np.full((LIMIT - 1, 10), 0.1))
    said = "data/oof.npz: is of other rows than data/digits.npz; run the stage 'train' again"
    assert refused("ensemble", prepared) == said


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
    line = refused(stage, prepared)
    assert line.startswith(f"{file}: ") and repr(writer) in line


@pytest.mark.parametrize("command", ["train --help", "prepare", "submission"])
def test_stages_that_run_no_network_do_not_load_tensorflow(finished, prepared, command):
    np.savez(prepared / "data/predictions.npz", probabilities=np.full((LIMIT, 10), 0.1))
    name, *options = command.split()
    done = run_python("-X", "importtime", "-m", f"pipeline.stages.{name}", *options, cwd=prepared)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and {"numpy", "pipeline.params"} <= loaded
    assert not {"tensorflow", "keras"} & loaded
    if command == "prepare":  # again, which changes no byte
        again, before = (folder / "data/digits.npz" for folder in (prepared, finished.folder))
        assert again.read_bytes() == before.read_bytes()
