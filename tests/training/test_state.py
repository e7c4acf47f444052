"""State files: corrupt ones count as missing, and those of another training are ignored."""

import dataclasses

import numpy as np
import pytest
from helpers import ROOT, small_params
from ruamel.yaml import YAML

from pipeline.training import state as module
from pipeline.training.members import Member
from pipeline.training.state import State, StateFiles, fingerprint

MEMBER = Member(0, "rows", 1)


def test_a_state_comes_back(digits, tmp_path):
    states = StateFiles(tmp_path, small_params(), digits)
    assert states.read(MEMBER) == State()
    states.write(MEMBER, State([np.arange(1000), np.ones(3)], [{"epoch": 1}]))
    values, history = states.read(MEMBER)
    assert [value.tolist() for value in values] == [list(range(1000)), [1, 1, 1]]
    assert history == [{"epoch": 1}]
    assert states.read(MEMBER._replace(fold=1)) == State()


def test_a_corrupt_state_counts_as_missing(digits, tmp_path):
    states = StateFiles(tmp_path, small_params(), digits)
    states.write(MEMBER, State([np.arange(1000)], [{"epoch": 1}]))
    (path,) = states.folder.iterdir()
    content = path.read_bytes()
    flipped = [content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in (200, 4000, 8000)]
    for corrupt in (b"", b"junk", content[:-300], *flipped):
        path.write_bytes(corrupt)
        assert states.read(MEMBER) == State()


def test_states_of_another_training_are_deleted(digits, tmp_path):
    for seed in (1, 2):
        states = StateFiles(tmp_path, small_params(seed=seed), digits)
        states.write(MEMBER, State([np.arange(3)], [{"epoch": 1}]))
        assert list(tmp_path.iterdir()) == [states.folder]


def test_the_fingerprint_covers_parameters_data_and_instruction_sets(digits, monkeypatch):
    def of(params=None, **changes):
        return fingerprint(params or small_params(), dataclasses.replace(digits, **changes))

    same = [{"model": {"architecture": "all"}}, {"train": {"seeds": 2}}]
    assert {of(small_params(**change)) for change in same} == {of()}
    assert of(small_params(compute={"workers": 1})) == of()
    changed = digits.images.copy()
    changed[0, 0, 0] ^= 1
    different = [
        of(),
        of(small_params(seed=1)),
        of(small_params(train={"epochs": 4})),
        of(small_params(model={"units": 8})),
        of(small_params(augment={"shift": 1})),
        of(images=changed),
        of(folds=1 - digits.folds),
    ]
    for name in ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "FASTLSTM_ISA"):
        with monkeypatch.context() as context:
            context.setenv(name, "avx2")
            different.append(of())
    assert len(set(different)) == len(different)


@pytest.mark.parametrize("edited", ["pipeline/training/trainer.py", "packages/fastlstm/src/fastlstm/jit.py"])
def test_the_fingerprint_covers_the_code_that_dvc_lists(digits, tmp_path, monkeypatch, edited):
    stage = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]["train"]
    assert any(edited.startswith(name) for name in stage["deps"])
    before = fingerprint(small_params(), digits)
    for file in (ROOT / "dvc.yaml", *module._code()):
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    monkeypatch.setattr(module, "PROJECT", tmp_path)
    assert fingerprint(small_params(), digits) == before
    (tmp_path / edited).write_text("# edited")
    assert fingerprint(small_params(), digits) != before
