"""The members of the ensemble, and their random streams."""

import pytest
from helpers import small_params

from pipeline.architectures import ARCHITECTURES
from pipeline.files import PipelineError
from pipeline.training.members import Member, architectures_of_fold, members


def test_the_architectures_of_the_folds():
    def architectures(architecture, folds):
        return [architectures_of_fold(architecture, fold) for fold in range(folds)]

    for architecture in ARCHITECTURES:
        assert architectures(architecture, 2) == [[architecture]] * 2
    assert architectures("cycle", 4) == [["grid_rows"], ["grid_columns"], ["grid_rows"], ["grid_columns"]]
    assert architectures("all", 2) == [["grid_rows", "grid_columns"]] * 2


def test_an_unknown_architecture_is_refused_with_the_names_of_all():
    names = ", ".join([*ARCHITECTURES, "cycle", "all"])
    says = f"model.architecture is 'columns', allowed: {names}$"
    with pytest.raises(PipelineError, match=says):
        members(small_params(model={"architecture": "columns"}))


def test_the_members_of_all_folds():
    assert members(small_params(seed=7)) == [Member(0, "grid_rows", 7), Member(1, "grid_columns", 7)]
    several = members(small_params(seed=7, train={"seeds": 2}))
    expected = [
        (fold, name, 7 + number, number)
        for fold, name in enumerate(("grid_rows", "grid_columns"))
        for number in (0, 1)
    ]
    assert several == [Member(*member) for member in expected]


def test_each_stream_is_its_own():
    streams = [
        tuple(Member(fold, architecture, seed).stream(use, epoch).integers(2**63, size=4))
        for fold in (0, 1)
        for architecture in ARCHITECTURES
        for seed in (1, 2, 11)
        for use in ("shuffle", "augment")
        for epoch in (0, 1, 10)
    ]
    assert len(set(streams)) == len(streams)
    # The same in every version: a stream depends on the names alone.
    assert Member(0, "rows", 1).stream("weights").integers(100, size=4).tolist() == [53, 75, 63, 18]
