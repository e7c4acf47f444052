"""The members of each setting, and their independent random streams."""

import pytest
from helpers import small_params

from pipeline.architectures import DEFAULT_ARCHITECTURES
from pipeline.training import members as module
from pipeline.training.members import Member, architectures_of_fold, members


def numbers(member, *key):
    return member.stream(*key).integers(2**63, size=4).tolist()


def test_what_the_folds_train():
    def architectures(architecture, folds):
        return [architectures_of_fold(architecture, fold) for fold in range(folds)]

    for architecture in DEFAULT_ARCHITECTURES:
        assert architectures(architecture, 2) == [[architecture]] * 2
    assert architectures("cycle", 4) == [["rows"], ["grid_rows"], ["grid_columns"], ["rows"]]
    assert architectures("all", 2) == [["rows", "grid_rows", "grid_columns"]] * 2


def test_the_members_of_all_folds():
    assert members(small_params(seed=7)) == [Member(0, "rows", 7), Member(1, "grid_rows", 7)]
    assert len(members(small_params(model={"architecture": "all"}))) == 6
    several = members(small_params(seed=7, train={"seeds": 2}))
    assert several == [
        Member(fold, name, 7 + number, number)
        for fold, name in ((0, "rows"), (1, "grid_rows"))
        for number in (0, 1)
    ]


def test_each_stream_is_its_own():
    keys = [
        (Member(fold, architecture, seed), use, epoch)
        for fold in (0, 1)
        for architecture in DEFAULT_ARCHITECTURES
        for seed in (1, 2, 11)
        for use in ("shuffle", "augment")
        for epoch in (0, 1, 10)
    ]
    streams = [tuple(numbers(*key)) for key in keys]
    assert len(set(streams)) == len(keys)
    assert streams == [tuple(numbers(*key)) for key in keys]


@pytest.mark.parametrize("names", [("new", "rows"), ("rows",)])
def test_another_architecture_in_the_list_changes_no_stream(monkeypatch, names):
    before = numbers(Member(0, "rows", 1), "weights")
    monkeypatch.setattr(module, "DEFAULT_ARCHITECTURES", names)
    assert numbers(Member(0, "rows", 1), "weights") == before
