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


@pytest.mark.parametrize("end", [b"", b"schema", b"    de", b"      si", b"\n  train:", None])
@pytest.mark.parametrize("copy", [True, False])
def test_a_lock_file_that_is_cut_off(capsys, end, copy):
    whole = mend.DVC_LOCK.read_bytes()
    if copy:
        mend.DVC_LOCK_COPY.write_bytes(whole)
    between_lines = end == b"\n  train:"
    cut = whole if end is None else whole[: whole.index(end) + (1 if between_lines else len(end))]
    mend.DVC_LOCK.write_bytes(cut)
    mend.main()
    left = mend.DVC_LOCK.read_bytes() if mend.DVC_LOCK.exists() else None
    # DVC can read the one that is cut off between two lines.
    assert left == (whole if copy else cut if between_lines or end is None else None)
    assert ("after a kill" in capsys.readouterr().out) == (left != cut)
    assert mend.DVC_LOCK_COPY.exists() == copy  # for the next kill


def test_a_copy_of_the_lock_file_is_no_better(capsys):
    mend.DVC_LOCK_COPY.write_bytes(mend.DVC_LOCK.read_bytes())
    other = mend.DVC_LOCK.read_bytes().replace(b"  mnist:", b"  another:")
    mend.DVC_LOCK.write_bytes(other)
    mend.main()
    assert mend.DVC_LOCK.read_bytes() == other
    mend.DVC_LOCK.write_bytes(b"schema")
    mend.DVC_LOCK_COPY.write_bytes(b"")
    mend.main()
    assert not mend.DVC_LOCK.exists()


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
