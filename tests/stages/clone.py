"""A small copy of the project, and the commands that its user types."""

import atexit
import json
import os
import secrets
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from fastlstm import jit
from helpers import ROOT
from numba.core.caching import _CacheLocator
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


def share_compiled_layer(folder):
    """Let a copy of the project use what this one has compiled, which takes a minute for each precision.

    Numba names the folder in its cache by the path of the source. Returns the cache's folder.
    """
    ours, theirs = (
        Path(
            jit._FOLDER,
            _CacheLocator.get_suitable_cache_subpath(str(root / "packages/fastlstm/src/fastlstm/jit.py")),
        )
        for root in (ROOT, folder)
    )
    ours.mkdir(exist_ok=True)
    theirs.symlink_to(ours)
    atexit.register(theirs.unlink)
    return str(ours.parents[1])


def home_with_credentials(home):
    """A home with each file in which Kaggle's client looks for credentials."""
    for name in (".kaggle", "kaggle", "tmp"):
        (home / name).mkdir(parents=True)
    for name in (".cache", ".config"):  # downloads and settings of pip
        if (Path.home() / name).exists():
            (home / name).symlink_to(Path.home() / name)
    content = {"username": "digitfan", "key": SECRET, "refresh_token": SECRET, "access_token": SECRET}
    for name in ("access_token", "access_token.txt"):
        (home / ".kaggle" / name).write_text(SECRET)
    for name in (".kaggle/kaggle.json", "kaggle/kaggle.json", ".kaggle/credentials.json"):
        (home / name).write_text(json.dumps(content))
    return home


class Project:
    """A clone of the project, and the commands that its user types."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "NUMBA_CACHE_DIR": share_compiled_layer(folder),
        }
        self.environment.pop("PYTHONPATH", None)
        # Any stage could find them; none may tell them.
        self.environment |= {"KAGGLE_USERNAME": "digitfan", "KAGGLE_KEY": SECRET, "KAGGLE_API_TOKEN": SECRET}
        self.home = home_with_credentials(folder.with_name(f"{folder.name}_home"))
        self.environment |= {
            "HOME": str(self.home),
            "KAGGLE_CONFIG_DIR": str(self.home / "kaggle"),
            "TMPDIR": str(self.home / "tmp"),
        }

    def run(self, command, status=0):
        done = subprocess.run(
            command.split(), cwd=self.folder, env=self.environment, text=True, capture_output=True
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr if status == 0 else done.stderr

    def stdout(self, command):
        command, options = shlex.split(command), {"text": True, "capture_output": True, "check": True}
        return subprocess.run(command, cwd=self.folder, env=self.environment, **options).stdout

    def clone(self, folder):
        """A clone of the project, without what is not in git."""
        self.run(f"git clone -q {self.folder} {folder}")
        return Project(folder)

    def stale(self):
        """The stages that `dvc repro` would run; the one that sends to Kaggle is never among them."""
        return {stage for stage in json.loads(self.stdout("dvc status --json")) if "submit" not in stage}

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
