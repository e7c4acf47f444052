"""The runner: chooses the next epoch, and resumes after a kill.

The unit of work is one epoch of one member, state in, state out. So a killed training resumes from the last
finished epochs, and neither the number of workers nor their order changes one byte of the result.
"""

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, wait

import numpy as np

from pipeline.files import PipelineError
from pipeline.folds import TrainingData
from pipeline.params import Params
from pipeline.training.members import Member, members
from pipeline.training.progress import TrainingProgress
from pipeline.training.state import State, StateFiles
from pipeline.training.trainer import export_fold, train_epoch


def train_members(
    executor: Executor,
    workers: int,
    params: Params,
    data: TrainingData,
    states: StateFiles,
    progress: TrainingProgress,
) -> dict[Member, State]:
    """Train all members to the state after the last epoch; those with a state file resume from it.

    Args:
        executor: runs the epochs, `workers` at the same time.
        states: stores each member's state after every epoch.
        progress: receives each epoch, and those that an earlier run had finished.
    """
    if (folds := data.folds.max() + 1) != params.prepare.folds:
        raise PipelineError(
            f"the data have {folds} folds, but prepare.folds in params.yaml is {params.prepare.folds}; "
            "run the stage 'prepare' again"
        )
    state_of = {member: states.read(member) for member in members(params)}
    for member, state in state_of.items():
        if state.history:
            progress.resumed(member, state.history)
    running = {}
    while True:
        waiting = [
            member
            for member, state in state_of.items()
            if len(state.history) < params.train.epochs and member not in running.values()
        ]
        # The member that is furthest behind goes first, so that all end at about the same time.
        waiting.sort(key=lambda member: len(state_of[member].history))
        # One job more than there are workers, so that none of them waits for its next one.
        for member in waiting[: workers + 1 - len(running)]:
            job = executor.submit(train_epoch, params, data, member, state_of[member])
            running[job] = member
        if not running:
            return state_of
        for job in wait(running, return_when=FIRST_COMPLETED).done:
            member = running.pop(job)
            state_of[member] = job.result()
            states.write(member, state_of[member])
            progress.finished(member, state_of[member].history[-1])


def export_folds(
    executor: Executor, params: Params, data: TrainingData, states: dict[Member, State]
) -> Iterator[tuple[bytes, np.ndarray]]:
    """Make the model of each fold with members in `states`; yields the results of `export_fold` in order."""
    jobs = []
    for fold in sorted({member.fold for member in states}):
        of_fold = {member: state for member, state in states.items() if member.fold == fold}
        jobs.append(executor.submit(export_fold, params, data, fold, of_fold))
    return (job.result() for job in jobs)
