"""The whole pipeline, small, run once by DVC in a copy of the project; all tests of the stages share it."""

import shutil

import pytest
from clone import SMALL, Project
from helpers import copy_project, watch_command_lines


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The project after `dvc repro`, its results committed, as after the run of record."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    copy_project(folder)
    project = Project(folder)
    for command in ("git init -q", "git config user.name Tester", "git config user.email tester@localhost"):
        project.run(command)
    project.set(**SMALL)
    for command in ("git add -A", "git commit -qm project"):
        project.run(command)
    with watch_command_lines() as project.command_lines:
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
