"""DVC and the pipeline: what runs again after a change, and what DVC's own commands show."""

import json
import re

import keras
import numpy as np
import pandas as pd
import pytest
from clone import FOLDS, LIMIT
from helpers import ROOT
from ruamel.yaml import YAML

import pipeline  # noqa: F401  registers the layer
from pipeline.metrics import FIGURES

STAGES = ("mnist", "download", "prepare", "train", "ensemble", "check", "submission", "report")

pytestmark = pytest.mark.slow


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
    "model.architecture": {"train"},
    "model.tta": {"train"},
    "augment.shift": {"train"},
    "train.learning_rate": {"train"},
    "train.seeds": {"train"},
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
    project.set(train={"epochs": 3}, compute={"engine": "ray"})
    lock = project.folder / "dvc.lock"  # as after another training
    lock.write_text(re.sub(r"(data/oof.npz\n *hash: md5\n *md5: )\w+", rf"\g<1>{'f' * 32}", lock.read_text()))
    page = (ROOT / "docs/running.md").read_text()
    command = next(line for line in page.splitlines() if "dvc exp show --" in line)
    table = project.stdout(command)
    assert all(column in table for column in ("metrics/oof.json:accuracy", "train.epochs", "compute.engine"))
    assert "metrics/folds" not in table and "data/" not in table
    assert max(map(len, table.splitlines())) <= 120
    project.run(f"dvc plots diff -o {tmp_path / 'plots'}")


def test_a_run_goes_to_a_shared_folder_and_comes_back(project, tmp_path):
    """By three commands of docs/running.md."""
    page = (ROOT / "docs/running.md").read_text()
    commands = [f"dvc remote add --default --local shared {tmp_path / 'store'}", "dvc push", "dvc pull"]
    assert all(command.replace(str(tmp_path / "store"), "/path/to/folder") in page for command in commands)
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
    changes = json.loads(project.stdout("dvc params diff --json"))["params.yaml"]
    assert list(changes) == ["train.learning_rate"] and changes["train.learning_rate"]["new"] == 0.125


def test_dvc_sends_nobody_usage_statistics():
    assert "analytics = false" in (ROOT / ".dvc/config").read_text()


def test_an_experiment_that_trains_on_mnist_test_images_says_so(project):
    settings = "prepare.hold_out_mnist_test=false", "train.epochs=1", "model.architecture=grid_rows"
    project.run(f"dvc exp run -S compute.workers=1 -S {' -S '.join(settings)}")
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
