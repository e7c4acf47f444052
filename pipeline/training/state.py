"""The state of a member between two epochs, and the files from which a killed training resumes."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ruamel.yaml import YAML

from pipeline.files import atomic_write
from pipeline.folds import TrainingData
from pipeline.machine import processor_kind
from pipeline.params import Params

if TYPE_CHECKING:  # it imports TensorFlow, which takes seconds, in the workers, too
    from pipeline.training.members import Member

PROJECT = Path(__file__).parents[2]
LIBRARIES = ("keras", "llvmlite", "numba", "numpy", "tensorflow")
# Environment variables that choose instruction sets, and so the rounding; Ray's nodes may have any of them.
SETTINGS = ("DNNL_", "FASTLSTM_ISA", "NPY_", "ONEDNN_", "TF_ENABLE_ONEDNN")


class State(NamedTuple):
    """A member between two epochs."""

    # All that training changes: weights, random states, the optimizer's averages. Empty at first.
    values: Sequence[np.ndarray] = ()
    history: Sequence[dict] = ()  # the figures of each epoch so far, see `train_epoch`


class StateFiles:
    """A file for each member, in a folder of this training; corrupt files count as missing."""

    def __init__(self, folder: Path, params: Params, data: TrainingData):
        """Delete states with another `fingerprint`."""
        self.folder = folder / fingerprint(params, data)
        if folder.exists():
            for other in set(folder.iterdir()) - {self.folder}:
                shutil.rmtree(other) if other.is_dir() else other.unlink()

    def read(self, member: "Member") -> State:
        """The member's state after its newest epoch, or before the first if there is no file."""
        try:
            with np.load(self._path(member)) as file:  # checks the CRC of each array
                *values, history = (file[name] for name in file.files)
            return State(values, json.loads(str(history)))
        except Exception:  # there is no file, or corrupt bytes, which raise errors of many types
            return State()

    def write(self, member: "Member", state: State) -> None:
        """Replace the member's file."""
        with atomic_write(self._path(member)) as tmp:
            np.savez(tmp, *state.values, json.dumps(state.history))

    def _path(self, member):
        return self.folder / f"fold_{member.fold}_{member.architecture}_{member.seed}.npz"


def fingerprint(params: Params, data: TrainingData) -> str:
    """A short hash of everything that decides a member: parameters, data, code, libraries, machine."""
    # These choose the members, but do not change any of them.
    model = params.model.model_dump(exclude={"architecture"})
    train = params.train.model_dump(exclude={"seeds"})
    values = [params.seed, model, params.augment.model_dump(), train, data.classes, machine_kind()]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for array in (data.images, data.labels, data.folds):
        digest.update(np.ascontiguousarray(array))
    for file in _code():
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _code():
    """The files of code among the dependencies of the stage `train` in dvc.yaml."""
    stages = YAML(typ="safe").load((PROJECT / "dvc.yaml").read_text())["stages"]
    paths = [PROJECT / name for name in stages["train"]["deps"] if not name.startswith("data/")]
    return [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]


def machine_kind() -> dict[str, str]:
    """Properties of this machine that decide rounding, by name."""
    settings = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(SETTINGS)]
    versions = {library: version(library) for library in LIBRARIES}
    return {"processor": processor_kind(), "settings": " ".join(settings), **versions}
