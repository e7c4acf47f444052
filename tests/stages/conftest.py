"""The whole pipeline, small, run once by DVC in a copy of the project; all tests of the stages share it."""

import shutil

import pytest
from clone import SMALL, Project
from helpers import copy_project


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The project after `dvc repro`, with its results committed, as after a run of record."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    copy_project(folder)
    project = Project(folder)
    project.set(**SMALL)
    for command in ("init -q", "config user.name Tester", "config user.email tester@localhost", "add -A"):
        project.run(f"git {command}")
    project.run("git commit -qm project")
    project.output = project.run("dvc repro")
    project.run("git add -A")
    project.run("git commit -qm run")
    yield project
    shutil.rmtree(folder)


@pytest.fixture
def project(finished):
    """The finished project; changes by a test are undone."""
    yield finished
    changed = finished.run("git status --porcelain")
    finished.run("git reset -q --hard")
    if "dvc.lock" in changed:
        finished.run("dvc checkout -q")
