"""DVC's files after a kill: a complete lock is never touched, a truncated one is restored from git."""

import re
import shutil

import pytest
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from helpers import ROOT
from ruamel.yaml import YAML

from pipeline.stages import repair


@pytest.fixture(params=repair.LOCKS, ids=str)
def lock(request, tmp_path, monkeypatch):
    """A copy of `dvc.lock`, in place of each lock; git's version has the bytes `git`."""
    for folder in (".dvc/tmp", "submissions"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "dvc.lock", tmp_path / request.param)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(repair, "git", lambda *arguments: "git")
    return request.param


def test_a_lock_that_is_cut_off_comes_from_git(lock, capsys):
    content = lock.read_text()
    for end in range(0, 3000, 31):
        lock.write_text(content[:end])
        repair.main()
        after = lock.read_text()
        assert after in ("git", content[:end]) and ("was truncated" in capsys.readouterr().out) == (
            after == "git"
        )
        if after != "git":
            COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(after))  # DVC can read it


def test_a_lock_that_lacks_stages_is_not_touched(lock):
    """For example after the checkout of an earlier commit, or after deleting an entry."""
    content = lock.read_text()
    for end in [*(stage.start() for stage in re.finditer(r"^  \w+:\n", content, re.MULTILINE)), len(content)][
        1:
    ]:
        lock.write_text(content[:end].rstrip())
        repair.main()
        assert lock.read_text() == content[:end].rstrip()


def test_a_broken_lock_that_git_does_not_have_is_deleted(lock, monkeypatch):
    monkeypatch.setattr(repair, "git", lambda *arguments: "")
    lock.write_text("schema")
    repair.main()
    assert not lock.exists()
    repair.main()  # a missing file is fine


@pytest.mark.parametrize("lock", repair.LOCKS[:1], indirect=True)
@pytest.mark.parametrize(("content", "stays"), [('{"read": {}, "write": {}}', True), ('{"read": {', False)])
def test_a_list_of_running_commands(lock, content, stays):
    repair.RUNNING_COMMANDS.write_text(content)
    repair.main()
    assert repair.RUNNING_COMMANDS.exists() == stays
