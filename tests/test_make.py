"""`make` on machines whose user has settings of their own."""

import os
import shutil
import subprocess

import pytest
from helpers import ROOT


@pytest.mark.slow
def test_the_environment_is_made_where_pip_installs_for_the_user(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").touch()
    done = subprocess.run(
        ["make", "setup"], cwd=tmp_path, env={**os.environ, "PIP_USER": "1"}, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".venv/complete").exists()
