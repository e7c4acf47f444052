"""DVC's own files after a kill: what is cut off is put back or deleted, what is whole is kept."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT

from pipeline.stages import repair


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    shutil.copy(ROOT / "dvc.lock", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(repair.time, "sleep", lambda seconds: None)


@pytest.mark.parametrize("end", [b"", b"schema", b"    de", b"      si", b"\n  train:", None])
@pytest.mark.parametrize("copy", [True, False])
def test_a_lock_file_that_is_cut_off(capsys, end, copy):
    whole = repair.DVC_LOCK.read_bytes()
    if copy:
        repair.DVC_LOCK_COPY.write_bytes(whole)
    between_lines = end == b"\n  train:"
    cut = whole if end is None else whole[: whole.index(end) + (1 if between_lines else len(end))]
    repair.DVC_LOCK.write_bytes(cut)
    repair.main()
    left = repair.DVC_LOCK.read_bytes() if repair.DVC_LOCK.exists() else None
    # DVC can read the one that is cut off between two lines.
    assert left == (whole if copy else cut if between_lines or end is None else None)
    assert ("after a kill" in capsys.readouterr().out) == (left != cut)
    assert repair.DVC_LOCK_COPY.exists() == copy  # for the next kill


def test_a_copy_of_the_lock_file_is_no_better(capsys):
    repair.DVC_LOCK_COPY.write_bytes(repair.DVC_LOCK.read_bytes())
    other = repair.DVC_LOCK.read_bytes().replace(b"  mnist:", b"  another:")
    repair.DVC_LOCK.write_bytes(other)
    repair.main()
    assert repair.DVC_LOCK.read_bytes() == other
    repair.DVC_LOCK.write_bytes(b"schema")
    repair.DVC_LOCK_COPY.write_bytes(b"")
    repair.main()
    assert not repair.DVC_LOCK.exists()


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_list_of_processes(ended, mode):
    with subprocess.Popen(
        [sys.executable, "-c", "input()", "dvc", "repro"], stdin=subprocess.PIPE
    ) as process:
        # The number of a process that has ended may be another's by now: here this one's.
        user = {"pid": os.getpid() if ended else process.pid, "cmd": "dvc repro"}
        users = {"read": {}, "write": {}, mode: {"data": [user] if mode == "read" else user}}
        repair.DVC_RWLOCK.write_text(json.dumps(users))
        repair.main()
        process.stdin.close()
    assert repair.DVC_RWLOCK.exists() != ended


def test_no_file_of_dvc_is_no_problem(capsys):
    repair.DVC_LOCK.unlink()
    repair.main()
    for nobody in ('{"read": {}, "write": {}}', "{}"):
        repair.DVC_RWLOCK.write_text(nobody)
        repair.main()
    assert capsys.readouterr().out == "" and repair.DVC_RWLOCK.exists()
    repair.DVC_RWLOCK.write_text('{"read": {')
    repair.main()
    assert not repair.DVC_RWLOCK.exists()
