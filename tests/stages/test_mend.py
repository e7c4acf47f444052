"""DVC's own files after a kill: what DVC would refuse to read is deleted, what it can read is kept."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT

from pipeline.stages import mend


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    shutil.copy(ROOT / "dvc.lock", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mend.time, "sleep", lambda seconds: None)


@pytest.mark.parametrize("end", [b"schema", b"    deps:", b"      si", b""])
def test_a_lock_file_that_is_cut_off(capsys, end):
    whole = mend.DVC_LOCK.read_bytes()
    mend.DVC_LOCK.write_bytes(whole[: whole.index(end) + len(end)] if end else whole)
    mend.main()
    assert mend.DVC_LOCK.exists() == (not end)
    assert ("deleted dvc.lock" in capsys.readouterr().out) == bool(end)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_list_of_processes(ended, mode):
    with subprocess.Popen(
        [sys.executable, "-c", "input()", "dvc", "repro"], stdin=subprocess.PIPE
    ) as process:
        # The number of a process that has ended may be another's by now: here this one's.
        user = {"pid": os.getpid() if ended else process.pid, "cmd": "dvc repro"}
        users = {"read": {}, "write": {}, mode: {"data": [user] if mode == "read" else user}}
        mend.DVC_USERS.write_text(json.dumps(users))
        mend.main()
        process.stdin.close()
    assert mend.DVC_USERS.exists() != ended


def test_no_file_of_dvc_is_no_problem(capsys):
    mend.DVC_LOCK.unlink()
    mend.main()
    mend.DVC_USERS.write_text('{"read": {}, "write": {}}')
    mend.main()
    assert capsys.readouterr().out == "" and mend.DVC_USERS.exists()
    mend.DVC_USERS.write_text('{"read": {')
    mend.main()
    assert not mend.DVC_USERS.exists()
