"""DVC's own files after a kill: what is cut off is put back or deleted, what is whole is kept."""

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


@pytest.mark.parametrize("cut", [0, b"schema", b"    deps:", b"      size: 1", b"      si", None])
@pytest.mark.parametrize("copy", ["whole", "cut off", "missing"])
def test_a_lock_file_that_is_cut_off(capsys, cut, copy):
    whole = mend.DVC_LOCK.read_bytes()
    if copy != "missing":
        mend.DVC_LOCK_COPY.write_bytes(whole if copy == "whole" else b"schema: ")
    end = whole.index(cut) + len(cut) if isinstance(cut, bytes) else cut
    mend.DVC_LOCK.write_bytes(whole[:end])
    mend.main()
    there = end is None or copy == "whole"
    assert mend.DVC_LOCK.read_bytes() == whole if there else not mend.DVC_LOCK.exists()
    assert ("it was cut off" in capsys.readouterr().out) == (end is not None)


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
    for nobody in ('{"read": {}, "write": {}}', "{}"):
        mend.DVC_USERS.write_text(nobody)
        mend.main()
    assert capsys.readouterr().out == "" and mend.DVC_USERS.exists()
    mend.DVC_USERS.write_text('{"read": {')
    mend.main()
    assert not mend.DVC_USERS.exists()
