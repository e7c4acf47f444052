"""`make setup` in a folder with an odd name, with settings of pip that would break the environment."""

import os
import shutil
import subprocess

import pytest
from helpers import ROOT


@pytest.fixture
def clone(tmp_path):
    """A small project to install, whose lock has only what installing it needs."""
    folder = tmp_path / "it's $HOME `false`"
    code = ["pipeline/install.py", "pipeline/__init__.py"]
    for name in ["Makefile", "pyproject.toml", "README.md", "requirements-uv.lock", *code]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "packages/fastlstm", folder / "packages/fastlstm")
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("setuptools=="))
    end = next(number for number, line in enumerate(lines[start:], start) if "# via" in line)
    (folder / "requirements.lock").write_text("\n".join(lines[start:end]) + "\n")
    return folder


def make_setup(folder, *variables, **environment):
    """Run `make setup`; returns its exit status."""
    command, environment = ["make", "setup", *variables], {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True).returncode


@pytest.mark.slow
def test_the_environment_is_complete_and_made_anew_only_when_needed(clone, tmp_path):
    elsewhere = str(tmp_path / "elsewhere")
    settings = {"PIP_USER": "1", "PIP_TARGET": elsewhere, "PIP_PREFIX": elsewhere, "PIP_CONSTRAINT": "/none"}
    settings |= {"UV_OFFLINE": "1", "UV_NO_CACHE": "1"}  # uv fails, so pip installs
    # Without the test of imports, the first one would count as complete.
    assert make_setup(clone, "IMPORTS=no_such_module", "INSTALL=true") == 2
    assert make_setup(clone, "PYTHON=false") == 2
    assert make_setup(clone, "IMPORTS=setuptools, pipeline.install", **settings) == 0
    assert not (tmp_path / "elsewhere").exists()
    os.utime(clone / "requirements.lock", (2**32, 2**32))  # content decides, not the time
    assert make_setup(clone, "PYTHON=false") == 0
    clone.rename(tmp_path / "moved")
    assert make_setup(tmp_path / "moved", "PYTHON=false") == 2
