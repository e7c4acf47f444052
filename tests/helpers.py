"""Helpers of the tests: small parameters, a copy of the project, and Python in its own process."""

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipeline.files import PipelineError
from pipeline.params import Params, load_params

ROOT = Path(__file__).parents[1]
# Networks small enough to train in a moment.
SMALL = {
    "prepare": {"folds": 2},
    "model": {
        "architecture": "cycle",
        "layers": 2,
        "units": 16,
        "grid_layers": 2,
        "grid_units": 8,
        "test_shift": 0,
    },
    "augment": {"undistorted_epochs": 1},
    "train": {"epochs": 3, "batch_size": 32, "learning_rate": 0.01, "precision": "float32"},
}


def small_params(**changes):
    """The committed parameters with `SMALL` and further changes: `section={key: value}` or `seed=1`."""
    content = load_params(ROOT / "params.yaml").model_dump()
    for part in (SMALL, changes):
        for name, values in part.items():
            content[name] = {**content[name], **values} if isinstance(values, dict) else values
    return Params.model_validate(content)


def small_network(architecture):
    """An untrained network of the small parameters."""
    from pipeline.architectures import build_network

    return build_network(architecture, small_params().model, "float32")


def copy_project(folder):
    """Copy the project's files except those that git ignores.

    `packages` is a link, so that the copy uses the compiled layer; compiling takes minutes.
    """
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("packages/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "packages").symlink_to(ROOT / "packages")


def files(folder):
    """The content of each file in a folder, by its path."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_python(*arguments, cwd=ROOT, **environment):
    """Run this Python with the project importable from any folder."""
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=cwd, text=True, capture_output=True, env=environment)


def zipped(files):
    """The content of an archive of some files: their contents by name."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def refusal(read, path, *arguments, **options):
    """The one line of an error about a file; it begins with the file's name."""
    with pytest.raises(PipelineError) as error:
        read(path, *arguments, **options)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    return str(error.value)
