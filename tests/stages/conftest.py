"""The whole pipeline, small, run once by DVC in a clone of the project; all tests of the stages share it."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import copy_project
from ruamel.yaml import YAML

LIMIT, FOLDS = 600, 3
SECRET = secrets.token_hex(16)
SMALL = {
    "download": {"source": "mnist"},
    "prepare": {"limit": LIMIT, "folds": FOLDS},
    "model": {"architecture": "cycle", "layers": 2, "units": 16, "grid_layers": 3, "grid_units": 8},
    "train": {"epochs": 2, "batch_size": 64},
    "compute": {"workers": 2},
    "article": {"steps": 20, "units": 16, "batch_size": 100},
}


class Project:
    """A clone of the project, and the commands that its user types."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
        }
        self.environment.pop("PYTHONPATH", None)
        # Any stage could find them; none may tell them.
        self.environment |= {"KAGGLE_USERNAME": "digitfan", "KAGGLE_KEY": SECRET, "KAGGLE_API_TOKEN": SECRET}

    def run(self, command, status=0):
        done = subprocess.run(
            command.split(), cwd=self.folder, env=self.environment, text=True, capture_output=True
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr if status == 0 else done.stderr

    def run_shell(self, command):
        return subprocess.run(
            command,
            shell=True,
            cwd=self.folder,
            env=self.environment,
            text=True,
            capture_output=True,
            check=True,
        ).stdout

    def clone(self, folder):
        """A clone of the project, without what is not in git."""
        self.run(f"git clone -q {self.folder} {folder}")
        return Project(folder)

    def run_json(self, command):
        done = subprocess.run(
            command.split(), cwd=self.folder, env=self.environment, capture_output=True, check=True
        )
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
        return {
            path: (self.folder / path).read_bytes()
            for path in ("data/predictions.npz", "data/oof.npz", "submissions/submission.csv")
        }


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
