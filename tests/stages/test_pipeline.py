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
from pipeline.metrics import FIGURES, wilson_interval
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


def test_no_file_or_message_has_the_credentials(project):
    secret = project.environment["KAGGLE_KEY"]
    found = [path for path, content in files(project.folder).items() if secret.encode() in content]
    assert found == [] and secret not in project.output


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


def test_make_report_makes_the_page_again_and_says_where(project):
    page = project.folder / "metrics/report.html"
    page.unlink()
    assert project.run("make -o setup report").splitlines()[-1] == str(page) and page.exists()


# What runs again, and what does not


def test_a_second_run_does_nothing(project):
    output = project.run("dvc repro")
    assert "Data and pipelines are up to date." in output and "Running stage" not in output


# A parameter, and the stages whose command, result or message depends on it.
DEPENDENTS = {
    "seed": {"prepare", "train"},
    "download.seed": {"download"},
    "prepare.limit": {"prepare", "submission"},
    "prepare.folds": {"prepare", "train", "ensemble", "report"},
    "prepare.hold_out_mnist_test": {"prepare"},
    "model.architecture": {"train", "ensemble"},
    "model.tta": {"train"},
    "augment.shift": {"train"},
    "train.learning_rate": {"train"},
    "train.seeds": {"train", "ensemble"},
    "compute.engine": set(),
    "compute.workers": set(),
    "compute.tensorboard": set(),
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

    def results():
        check = {**project.json("metrics/check.json"), "seconds": None}
        return check, files(project.folder / "data") | files(project.folder / "metrics")

    check, before = results()
    project.run("python -m pipeline.stages.ensemble")
    project.run("python -m pipeline.stages.check")
    check_after, after = results()
    changed = {path.name for path in before if before[path] != after.get(path)}
    assert check_after == check and changed <= {"ensemble.json", "check.json"}  # they hold seconds


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
    header, *rows = project.run("dvc metrics show").splitlines()
    assert set(header.split()) == {"Path", *FIGURES} and max(map(len, [header, *rows])) <= 120
    folds = [f"metrics/folds/fold_{fold}.json" for fold in range(FOLDS)]
    others = [f"metrics/{name}.json" for name in ("oof", "ensemble", "check", "article")]
    assert [row.split()[0] for row in rows] == [*folds, *others]

    project.run(f"dvc plots show -o {tmp_path / 'plots'}")
    page = (tmp_path / "plots/index.html").read_text()
    assert all(word in page for word in ("fold 0, rows", "images_of", "confusion.png", "mistakes.png"))


def test_dvc_compares_runs_in_narrow_tables(project, tmp_path):
    path = project.folder / "metrics/oof.json"
    path.write_text(path.read_text().replace('"accuracy": 0', '"accuracy": 1'))
    changes = project.run("dvc metrics diff").splitlines()
    assert len(changes) == 2 and max(map(len, changes)) <= 120
    project.set(train={"epochs": 3})
    command = next(
        line for line in (ROOT / "README.md").read_text().splitlines() if "dvc exp show --" in line
    )
    table = project.run_shell(command)
    assert "metrics/oof.json:accuracy" in table and "train.epochs" in table and "metrics/folds" not in table
    assert max(map(len, table.splitlines())) <= 120
    project.run(f"dvc plots diff -o {tmp_path / 'plots'}")


def test_a_run_goes_to_a_shared_folder_and_comes_back(project, tmp_path):
    """By the three commands of README."""
    readme = (ROOT / "README.md").read_text()
    commands = [f"dvc remote add --default --local shared {tmp_path / 'store'}", "dvc push", "dvc pull"]
    assert all(command.replace(str(tmp_path / "store"), "/path/to/folder") in readme for command in commands)
    add, push, pull = commands
    project.run(add)
    project.run(push)
    other = project.clone(tmp_path / "other")
    other.run(add)
    other.run(pull)
    for name in ("data/oof.csv", "data/ensemble.keras", "submissions/submission.csv"):
        assert (other.folder / name).read_bytes() == (project.folder / name).read_bytes()
    assert other.stale() == set()
    project.run("dvc remote remove --local shared")


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
    assert project.json("metrics/oof.json")["images"] == LIMIT
    assert len(pd.read_csv(project.folder / "metrics/history.csv")) == FOLDS
    assert check["images"] == 10_000 - len(seen)
    network = keras.models.load_model(project.folder / "data/ensemble.keras")
    mnist = project.arrays("data/mnist.npz")
    predicted = network.predict(mnist["test_images"].astype("float32"), verbose=0).argmax(axis=1)
    right = predicted == mnist["test_labels"]
    # The precision may be bfloat16, so an image on the edge may fall to another side.
    checked = project.arrays("data/check.npz")
    on_all = (checked["probabilities"].argmax(axis=1) == mnist["test_labels"]).mean()
    assert on_all == pytest.approx(right.mean(), abs=0.002)
    assert (~checked["clean"]).nonzero()[0].tolist() == sorted(seen)
    assert check["accuracy"] == pytest.approx(np.delete(right, seen).mean(), abs=0.002)
    for name in ("report.html", "report.md"):
        page = (project.folder / "metrics" / name).read_text()
        assert "contaminated" in page and f"{on_all:.4f}" in page


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
