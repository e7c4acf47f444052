"""`make` on machines whose user has settings of their own."""

import os
import shutil
import subprocess

import pytest
from helpers import ROOT


@pytest.mark.slow
def test_the_environment_is_made_with_pip_user_and_again_after_a_move(tmp_path):
    (tmp_path / "here").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path / "here")
    (tmp_path / "here/requirements.lock").touch()
    done = subprocess.run(
        ["make", "setup"],
        cwd=tmp_path / "here",
        env={**os.environ, "PIP_USER": "1"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here/.venv/complete").exists()
    # What `make` would do: nothing, and after a move make the environment anew.
    for folder, anew in (("here", False), ("moved", True)):
        if anew:
            (tmp_path / "here").rename(tmp_path / "moved")
        done = subprocess.run(["make", "-n", "setup"], cwd=tmp_path / folder, text=True, capture_output=True)
        assert ("-m venv" in done.stdout) == anew
