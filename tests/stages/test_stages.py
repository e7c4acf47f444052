"""Each stage by itself: ways to start it, inherited settings, and errors in one line that change nothing."""

import importlib
import os
import shutil
import sys

import numpy as np
import pytest
from clone import LIMIT, RUN_STAGES
from helpers import files, run_python

from pipeline.files import PipelineError
from pipeline.training.engines import WORKER_ENVIRONMENT

pytestmark = pytest.mark.slow


# Settings and ways to start


def test_a_stage_depends_on_no_inherited_setting(project, tmp_path):
    """Such as those of a notebook's shell and of another project's keras.json and matplotlibrc."""
    (tmp_path / "keras.json").write_text('{"image_data_format": "channels_first", "floatx": "float16"}')
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    odd = {
        "KERAS_HOME": str(tmp_path),
        "KERAS_BACKEND": "jax",
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "TF_NUM_INTEROP_THREADS": "",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
        "NUMBA_DISABLE_JIT": "1",
        "LOKY_MAX_CPU_COUNT": "abc",
        "PYTHONWARNINGS": "error",
        "MATPLOTLIBRC": str(tmp_path),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }

    def results():
        check = {**project.json("metrics/check.json"), "seconds": None}
        return check, files(project.folder / "data") | files(project.folder / "metrics")

    check, before = results()
    project.run([sys.executable, "-c", RUN_STAGES, "ensemble", "check", "report"], **odd)
    check_after, after = results()
    changed = {path.name for path in before if before[path] != after.get(path)}
    with_seconds = {"ensemble.json", "check.json", "report.json", "report.html", "report.md"}
    assert check_after == check and changed <= with_seconds


def test_gpus_are_hidden():
    code = "import os, pipeline.stages; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    assert run_python("-c", code, CUDA_VISIBLE_DEVICES="0").stdout == "-1\n"
    assert WORKER_ENVIRONMENT["CUDA_VISIBLE_DEVICES"] == "-1"


@pytest.mark.parametrize(
    "command", ["-W error -m cProfile -m pipeline.stages.submission", "-c import_as_a_notebook_does"]
)
def test_ways_to_start_a_stage(project, command):
    (project.folder / "data/times/submission.json").unlink()
    start = (
        "import io, runpy, sys; sys.stdout = io.StringIO(); sys.argv = ['x'];"
        "runpy.run_path('pipeline/stages/submission.py', run_name='__main__')"
    )
    words = ["-c", f"import pipeline.stages; {start}"] if command.startswith("-c") else command.split()
    project.run([sys.executable, *words])
    assert (project.folder / "data/times/submission.json").exists()


def test_a_note_of_times_never_fails_a_stage(project):
    times = project.folder / "data/times"
    times.rename(times.with_name("saved"))
    times.touch()  # no folder, as one that cannot be written to
    project.run("python -m pipeline.stages.submission")
    times.unlink()
    times.with_name("saved").rename(times)


# Folders that even the superuser cannot write to. A limit to the size of files acts like a full disk.
NO_RIGHT = "find . -type d -exec chmod a-w {} +; exec"
if os.geteuid() == 0:
    NO_RIGHT += " setpriv --bounding-set=-dac_override"


@pytest.mark.parametrize(
    ("stage", "limit", "says"),
    [("prepare", "ulimit -f 1; exec", "File too large"), ("submission", NO_RIGHT, "Permission denied")],
    ids=["full", "read-only"],
)
def test_a_folder_that_cannot_be_written_to_is_one_line(project, stage, limit, says):
    before = files(project.folder)
    line = project.run(["bash", "-c", f"{limit} python -m pipeline.stages.{stage}"], status=1)
    project.run("find . -type d -exec chmod u+w {} +")
    assert line.startswith(f"{stage}: ") and says in line and line.count("\n") == 1
    assert files(project.folder) == before


# Errors of one line


@pytest.fixture
def prepared(finished, tmp_path, monkeypatch):
    """A folder in which `prepare` and `submission` can run, with the project's files."""
    (tmp_path / "data/raw").mkdir(parents=True)
    for name in ("mnist.npz", "raw/train.csv", "raw/test.csv", "raw/sample_submission.csv"):
        (tmp_path / "data" / name).symlink_to(finished.folder / "data" / name)
    shutil.copy(finished.folder / "params.yaml", tmp_path)
    shutil.copy(finished.folder / "data/digits.npz", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(stage, folder):
    """The line with which a stage refuses, leaving everything as it was."""
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


@pytest.mark.parametrize("stage", ["prepare", "train", "submission"])
def test_stages_refuse_bad_parameters(prepared, stage):
    with open(prepared / "params.yaml", "a") as file:
        file.write("epochs: 3\n")
    assert "unknown key 'epochs'" in refused(stage, prepared)


@pytest.mark.parametrize(
    ("stage", "file", "writer"),
    [
        ("train", "data/digits.npz", "prepare"),
        ("evaluate", "data/oof.npz", "train"),
        ("check", "data/clean.npz", "prepare"),
        ("submission", "data/predictions.npz", "ensemble"),
        ("report", "data/raw/source.json", "download"),
    ],
)
@pytest.mark.parametrize("content", [None, b"of an earlier run"], ids=["missing", "damaged"])
def test_stages_refuse_files_that_no_stage_has_written(prepared, stage, file, writer, content):
    (prepared / file).unlink(missing_ok=True)
    if content is not None:
        (prepared / file).write_bytes(content)
    line = refused(stage, prepared)
    assert line.startswith(f"{file}: ") and repr(writer) in line


def test_files_of_the_user_are_not_replaced(prepared):
    assert refused("download", prepared).startswith("data/raw: contains files of yours")
    for file in (prepared / "data/raw").iterdir():
        file.unlink()
    (prepared / "data/raw/source.json").write_text('{"sha256": {"train.csv": "of an earlier run"}}')
    for name in ("train.csv", "digit-recognizer.zip"):  # saved in the place of its files, or beside them
        (prepared / "data/raw" / name).write_text("{}")
        assert refused("download", prepared).startswith("data/raw: contains files of yours")
        (prepared / "data/raw" / name).unlink()


def test_an_error_in_a_file_of_the_user_names_that_file(prepared):
    (prepared / "data/raw").rename(prepared / "mine")
    (prepared / "mine/train.csv").unlink()
    (prepared / "mine/train.csv").write_text("label,ink\n")
    params = prepared / "params.yaml"
    params.write_text(params.read_text().replace("~/Downloads", "mine").replace("mnist ", "folder "))
    assert refused("download", prepared).startswith("mine/train.csv: column 2 of the header is 'ink'")


@pytest.mark.parametrize("damage", [lambda p: p[:-1], lambda p: p * np.nan], ids=["too few", "no numbers"])
def test_the_submission_refuses_bad_predictions(prepared, damage):
    np.savez(prepared / "data/predictions.npz", probabilities=damage(np.full((LIMIT, 10), 0.1)))
    line = refused("submission", prepared)
    assert line.startswith("data/predictions.npz: ") and "stage 'ensemble'" in line


def test_prepare_changes_no_byte_and_does_not_load_tensorflow(finished, prepared):
    (prepared / "data/digits.npz").unlink()
    done = run_python("-X", "importtime", "-m", "pipeline.stages.prepare", cwd=prepared)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and "numpy" in loaded and not {"tensorflow", "keras"} & loaded
    again, before = (folder / "data/digits.npz" for folder in (prepared, finished.folder))
    assert again.read_bytes() == before.read_bytes()


def test_prepare_holds_nothing_out_where_the_parameters_say_so(prepared):
    params = prepared / "params.yaml"
    params.write_text(params.read_text().replace("hold_out_mnist_test: true", "hold_out_mnist_test: false"))
    importlib.import_module("pipeline.stages.prepare").main()
    with np.load(prepared / "data/digits.npz") as digits:
        assert (digits["test_index"] >= 0).any() and (digits["folds"] >= 0).all()
