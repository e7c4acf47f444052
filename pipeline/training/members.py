"""The members of the ensemble, each a network trained on one fold, and their random streams."""

import hashlib
from typing import NamedTuple

import numpy as np

from pipeline.architectures import ARCHITECTURES, DEFAULT_ARCHITECTURES
from pipeline.files import PipelineError
from pipeline.params import Params


class Member(NamedTuple):
    """Identifies a network that is trained."""

    fold: int  # the fold that it does not train on
    architecture: str  # one of `architectures.ARCHITECTURES`
    seed: int  # of all its random streams
    number: int = 0  # from 0, among those of the same fold and architecture

    def __str__(self):
        return f"fold {self.fold}, {self.architecture}" + (f", seed {self.seed}" if self.number else "")

    def stream(self, use: str, epoch: int = 0) -> np.random.Generator:
        """A random generator that depends only on the member, the use and the epoch."""
        key = f"{self.seed}/{self.architecture}/{self.fold}/{use}/{epoch}"
        digest = hashlib.sha256(key.encode()).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def architectures_of_fold(architecture: str, fold: int) -> list[str]:
    """The architectures that a fold trains, according to `model.architecture`; unknown: PipelineError."""
    if architecture == "all":
        return list(DEFAULT_ARCHITECTURES)
    if architecture == "cycle":
        return [DEFAULT_ARCHITECTURES[fold % len(DEFAULT_ARCHITECTURES)]]
    if architecture not in ARCHITECTURES:
        allowed = ", ".join([*ARCHITECTURES, "cycle", "all"])
        raise PipelineError(f"params.yaml: model.architecture is {architecture!r}, allowed: {allowed}")
    return [architecture]


def members(params: Params) -> list[Member]:
    """All members of the ensemble, fold by fold."""
    return [
        Member(fold, architecture, params.seed + number, number)
        for fold in range(params.prepare.folds)
        for architecture in architectures_of_fold(params.model.architecture, fold)
        for number in range(params.train.seeds)
    ]
