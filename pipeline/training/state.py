"""The state of a member between two epochs, and the files that a killed training goes on from."""

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.files import atomic_write, check_archive
from pipeline.folds import TrainingData
from pipeline.machine import vector_extensions
from pipeline.params import Params
from pipeline.training.members import Member

PIPELINE = Path(__file__).parents[1]
FASTLSTM = Path(importlib.util.find_spec("fastlstm").origin).parent
# The code, besides libraries, that decides what a member becomes: files and folders of `pipeline/`.
CODE = (
    "augment.py",
    "folds.py",
    "networks.py",
    "training/members.py",
    "training/optimizer.py",
    "training/trainer.py",
)
LIBRARIES = ("keras", "llvmlite", "numba", "numpy", "tensorflow")


class State(NamedTuple):
    """A member between two epochs.

    Attributes:
        values: all that training changes: weights, the dropout's random state, the optimizer's averages;
            empty before the first epoch.
        history: the figures of each epoch so far, see `train_epoch`.
    """

    values: Sequence[np.ndarray] = ()
    history: Sequence[dict] = ()


class StateFiles:
    """A file for each member, in a folder of all trainings; a damaged file is as good as none."""

    def __init__(self, folder: Path, params: Params, data: TrainingData):
        """Delete what other trainings left behind, with other parameters, data or code."""
        self.folder = folder / fingerprint(params, data)
        if folder.exists():
            for other in set(folder.iterdir()) - {self.folder}:
                shutil.rmtree(other) if other.is_dir() else other.unlink()

    def read(self, member: Member) -> State:
        """The member's state after its newest epoch, or before the first if there is no file."""
        try:
            check_archive(self._path(member))
            with np.load(self._path(member)) as file:
                *values, history, digest = (file[name] for name in file.files)
            same = str(digest) == _digest(values, str(history))
            return State(values, json.loads(str(history))) if same else State()
        except Exception:  # there is none, or damaged bytes raise whatever they do
            return State()

    def write(self, member: Member, state: State) -> None:
        """Replace the member's file."""
        history = json.dumps(state.history)
        with atomic_write(self._path(member)) as tmp:
            np.savez(tmp, *state.values, history, _digest(state.values, history))

    def _path(self, member):
        return self.folder / f"fold_{member.fold}_{member.architecture}_{member.seed}.npz"


def _digest(values, history):
    digest = hashlib.sha256(history.encode())
    for value in values:
        digest.update(f"{value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value))
    return digest.hexdigest()


def fingerprint(params: Params, data: TrainingData) -> str:
    """A short hash of what a member depends on: parameters, data, code, libraries, processor."""
    # Which members are trained and how they are averaged changes none of them.
    model = params.model.model_dump(exclude={"architecture", "tta"})
    train = params.train.model_dump(exclude={"seeds"})
    values = [params.seed, model, params.augment.model_dump(), train]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for array in (data.images, data.labels, data.folds):
        digest.update(np.ascontiguousarray(array))
    for file in (*(PIPELINE / name for name in CODE), *sorted(FASTLSTM.rglob("*.py"))):
        digest.update(file.read_bytes())
    # Another instruction set rounds differently.
    machine = [*vector_extensions(), os.environ.get("BILSTM_ISA", "")]
    for text in (*map(version, LIBRARIES), *machine):
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()[:16]
