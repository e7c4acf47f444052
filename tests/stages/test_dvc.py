"""DVC and the pipeline: stages that rerun after a change, and the output of DVC's own commands."""

import re

import pytest
from clone import FOLDS
from helpers import ROOT
from ruamel.yaml import YAML

pytestmark = pytest.mark.slow


# A parameter, and the stages whose command, result or message depends on it.
DEPENDENTS = {
    "seed": {"prepare", "train"},
    "download.seed": {"download"},
    "download.competition": {"download", "prepare", "ensemble", "check", "submission", "report"},
    "prepare.limit": {"prepare", "submission", "report"},
    "prepare.folds": {"prepare", "train", "ensemble", "report"},
    "prepare.hold_out_mnist_test": {"prepare"},
    "model.architecture": {"train"},
    "augment.shift": {"train"},
    "train.learning_rate": {"train"},
    "compute.engine": set(),
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


def test_a_second_run_does_nothing_even_after_changes_that_change_no_result(project):
    project.set(compute={"workers": 2})
    for name in ("README.md", "params.yaml", "pipeline/training/runner.py", "pipeline/training/progress.py"):
        with open(project.folder / name, "a") as file:
            file.write("\n# A remark.\n")
    output = project.run("dvc repro")
    assert "Data and pipelines are up to date." in output and "Running stage" not in output


def test_a_metric_is_one_line_and_trains_nothing(project):
    path = project.folder / "pipeline/metrics.py"
    begin = re.search(r"^METRICS: .* = \{", path.read_text(), re.MULTILINE)[0]
    metric = '"sureness": lambda probabilities, labels: float(probabilities.max(axis=1).mean()), '
    path.write_text(path.read_text().replace(begin, begin + metric))
    stale = project.stale()
    assert {"evaluate", "ensemble", "check", "report"} <= stale and not {"train", "article"} & stale
    output = project.run("dvc exp run -S compute.workers=2 evaluate")
    assert "Running stage 'evaluate'" in output and "Running stage 'train'" not in output
    header, *rows = project.run("dvc metrics show").splitlines()
    folds = [f"metrics/folds/fold_{fold}.json" for fold in range(FOLDS)]
    others = [f"metrics/{name}.json" for name in ("oof", "ensemble", "check", "article")]
    assert "sureness" in header and {row.split()[0] for row in rows} == {*folds, *others}


def test_dvc_shows_the_pipeline_and_its_results(project, tmp_path):
    dag = project.run("dvc dag --mermaid")
    for stage in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]:
        assert f'"{stage}"' in dag
    project.run(f"dvc plots show -o {tmp_path / 'plots'}")
    page = (tmp_path / "plots/index.html").read_text()
    assert all(word in page for word in ("fold 0, grid_rows", "images_of", "mistakes.png"))


def test_a_run_goes_to_a_shared_folder_and_comes_back(project, tmp_path):
    project.run(f"dvc remote add --default --local shared {tmp_path / 'store'}")
    project.run("dvc push")
    project.run(f"git clone -q {project.folder} {tmp_path / 'clone'}")
    clone = type(project)(tmp_path / "clone")
    (project.folder / ".dvc/config.local").rename(clone.folder / ".dvc/config.local")
    clone.run("dvc pull")
    for name in ("data/oof.npz", "data/ensemble.keras", "submissions/submission.csv"):
        assert (clone.folder / name).read_bytes() == (project.folder / name).read_bytes()
    assert clone.stale() == set()


def test_a_lock_cut_off_by_a_kill_trains_nothing_again(project):
    """Also where git has the lock of another run: DVC's run cache has every finished stage."""
    lock = project.folder / "dvc.lock"
    complete = lock.read_bytes()
    project.run("git checkout -q HEAD~ -- dvc.lock")
    project.run("git commit -qm earlier")
    try:
        lock.write_bytes(complete[: complete.index(b"  train:") + 10])
        assert "restored it from git" in project.run("python -m pipeline.stages.repair")
        output = project.run("dvc repro train")
    finally:
        project.run("git reset -q --hard HEAD~")
    assert "Running stage 'train'" not in output and "Stage 'train' is cached" in output
