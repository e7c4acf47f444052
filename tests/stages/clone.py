"""A small copy of the project, and the commands of its user."""

import json
import os
import subprocess
import sys
from pathlib import Path

import helpers
import numpy as np
from ruamel.yaml import YAML

LIMIT, FOLDS = 600, 2
SMALL = {
    "download": {"source": "mnist"},
    "prepare": {"limit": LIMIT, "folds": FOLDS},
    "model": helpers.SMALL["model"] | {"grid_layers": 1},
    "train": {"epochs": 2, "batch_size": 64},
    "compute": {"workers": 1},
    "article": {"steps": 20, "units": 16, "batch_size": 100},
}
# Importing TensorFlow takes seconds, so several stages run in one process.
RUN_STAGES = """
import importlib, sys
import pipeline.stages
for stage in sys.argv[1:]:
    importlib.import_module(f"pipeline.stages.{stage}").main()
"""


class Project:
    """A copy of the project, and the commands that its user types."""

    def __init__(self, folder):
        self.folder = folder
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path}
        self.environment.pop("PYTHONPATH", None)

    def run(self, command, status=0, **environment):
        """Run a command; returns its output, or only the errors where another status is expected."""
        command = command.split() if isinstance(command, str) else command
        environment = self.environment | environment
        done = subprocess.run(command, cwd=self.folder, env=environment, text=True, capture_output=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr if status == 0 else done.stderr

    def stale(self):
        """The stages that `dvc repro` would run."""
        status = json.loads(self.run(["bash", "-c", "dvc status --json 2> /dev/null"]))
        return {stage for stage in status if "submit" not in stage}

    def set(self, **sections):
        """Change values in params.yaml."""
        yaml, path = YAML(), self.folder / "params.yaml"
        params = yaml.load(path)
        for section, values in sections.items():
            params[section].update(values)
        yaml.dump(params, path)

    def json(self, path):
        return json.loads((self.folder / path).read_bytes())

    def arrays(self, path):
        with np.load(self.folder / path) as file:
            return dict(file)
