"""The state files: what is damaged is as good as none, and what is of another training is not used."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, small_params
from ruamel.yaml import YAML

from pipeline.training.members import Member
from pipeline.training.state import CODE, State, StateFiles, fingerprint

MEMBER = Member(0, "rows", 1)


def test_a_state_comes_back(digits, tmp_path):
    states = StateFiles(tmp_path, small_params(), digits)
    assert states.read(MEMBER) == State()
    states.write(MEMBER, State([np.arange(1000), np.ones(3)], [{"epoch": 1}]))
    values, history = states.read(MEMBER)
    assert [value.tolist() for value in values] == [list(range(1000)), [1, 1, 1]]
    assert history == [{"epoch": 1}]
    assert states.read(MEMBER._replace(fold=1)) == State()


def reshaped(path):
    with np.load(path) as file:
        np.savez(path, **{**file, "arr_0": file["arr_0"].reshape(10, 100)})


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"junk"),
        lambda path: path.write_bytes(path.read_bytes()[:-300]),
        reshaped,
    ],
    ids=["empty", "junk", "cut off", "other shapes"],
)
def test_a_damaged_state_is_as_good_as_none(digits, tmp_path, damage):
    states = StateFiles(tmp_path, small_params(), digits)
    states.write(MEMBER, State([np.arange(1000)], [{"epoch": 1}]))
    (path,) = states.folder.iterdir()
    damage(path)
    assert states.read(MEMBER) == State()


def test_states_of_another_training_are_deleted(digits, tmp_path):
    for seed in (1, 2):
        states = StateFiles(tmp_path, small_params(seed=seed), digits)
        states.write(MEMBER, State([np.arange(3)], [{"epoch": 1}]))
        assert list(tmp_path.iterdir()) == [states.folder]


def test_the_fingerprint_knows_the_code():
    stage = YAML().load((ROOT / "dvc.yaml").read_text())["stages"]["train"]
    named = {
        str(Path(path).relative_to("pipeline")) for path in stage["deps"] if path.startswith("pipeline/")
    }
    # They measure and write; neither changes a member.
    assert set(CODE) == named - {"metrics.py", "stages/train.py"}
    assert all((ROOT / "pipeline" / name).exists() for name in CODE)


def test_the_fingerprint_knows_parameters_and_data(digits):
    def of(params=None, **changes):
        return fingerprint(params or small_params(), dataclasses.replace(digits, **changes))

    same = [{"model": {"architecture": "all"}}, {"model": {"tta": True}}, {"train": {"seeds": 2}}]
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
    assert len(set(different)) == len(different)
