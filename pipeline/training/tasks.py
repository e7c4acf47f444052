"""The units of work that the runner gives to an executor: functions of picklable values alone.

They import TensorFlow where they run, so that the process that hands them out does without it.
"""

import numpy as np

from pipeline.folds import TrainingData
from pipeline.params import Params
from pipeline.training.members import Member
from pipeline.training.state import State


def train_epoch(params: Params, data: TrainingData, member: Member, state: State) -> State:
    """See `trainer.train_epoch`."""
    from pipeline.training import trainer

    return trainer.train_epoch(params, data, member, state)


def export_fold(
    params: Params, data: TrainingData, fold: int, states: dict[Member, State]
) -> tuple[bytes, np.ndarray]:
    """See `trainer.export_fold`."""
    from pipeline.training import trainer

    return trainer.export_fold(params, data, fold, states)
