"""A search for better hyperparameters with Optuna, run by `make sweep`; edit `SEARCH`.

A trial trains members as the pipeline does, on `FOLDS`. The search uses only the log loss out of fold: after
each epoch to stop bad trials early, after the last to compare trials.
"""

import hashlib
import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from pipeline.files import PipelineError
from pipeline.folds import TrainingData
from pipeline.metrics import METRICS
from pipeline.params import Params
from pipeline.training.members import members
from pipeline.training.runner import export_folds
from pipeline.training.state import State, fingerprint
from pipeline.training.trainer import train_epoch

TRIALS = 20
FOLDS = (0,)  # the folds to train, and to measure the log loss on
# From a key of params.yaml, in the sections `model`, `augment` and `train`, to the values to try.
SEARCH: dict[str, BaseDistribution] = {
    "train.learning_rate": FloatDistribution(0.001, 0.01, log=True),
    "train.batch_size": CategoricalDistribution([32, 64, 128]),
    "augment.displacement": FloatDistribution(0, 1.5),
    "model.dropout": FloatDistribution(0, 0.4),
}
FINISHED = TrialState.COMPLETE, TrialState.PRUNED


def sweep(executor: Executor, workers: int, params: Params, data: TrainingData, folder: Path) -> optuna.Study:
    """Run trials until the study has `TRIALS`; after a kill, continue with the next trial.

    Args:
        executor: runs the epochs, `workers` at the same time.
        params: the first trial uses them as they are.
        folder: of the study; the value of a complete trial is its log loss out of fold.
    """
    study = _open_study(params, data, folder)
    asking = threading.Lock()  # without it, two threads could get the same trial, also in `study.optimize`

    def run(_):
        with asking:
            trial = study.ask(SEARCH)
        try:
            loss = _train(trial, executor, params.with_values(rounded(trial.params)), data)
            finished = study.tell(trial, loss)
        except optuna.TrialPruned:
            finished = study.tell(trial, state=TrialState.PRUNED)
        print(f"trial {trial.number}: {row(finished)}", flush=True)

    # Each trial waits for the executor in a thread. One more than the workers need keeps them busy.
    networks = sum(member.fold in FOLDS for member in members(params))
    threads = ThreadPoolExecutor(workers // networks + 1)
    try:
        list(threads.map(run, range(len(study.get_trials(states=FINISHED)), TRIALS)))
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    return study


def _open_study(params, data, folder):
    """The study of this search, new or with the trials of an earlier sweep."""
    for name, values in SEARCH.items():
        value = attrgetter(name)(params)
        if isinstance(values, CategoricalDistribution) and value not in values.choices:
            raise PipelineError(
                f"{name} is {value}, but SEARCH in pipeline/training/sweep.py has {values.choices}"
            )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = fingerprint(params, data), params.model, params.train.seeds, sorted(SEARCH.items()), FOLDS
    study = optuna.create_study(
        storage=f"sqlite:///{folder}/study.db",
        study_name=hashlib.sha256(repr(recipe).encode()).hexdigest()[:16],
        load_if_exists=True,
        # Only the best third of the trials continues after 1/8 and after 3/8 of the epochs.
        pruner=optuna.pruners.SuccessiveHalvingPruner(-(-params.train.epochs // 8), reduction_factor=3),
        sampler=optuna.samplers.TPESampler(constant_liar=True),  # takes trials that still run into account
    )
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        study.tell(trial.number, state=TrialState.FAIL)  # of a sweep that was killed
    if not study.get_trials(states=FINISHED):
        study.enqueue_trial({name: attrgetter(name)(params) for name in SEARCH})
    return study


def _train(trial, executor, params, data):
    """Train a trial's members epoch by epoch; returns their log loss out of fold."""
    states = {member: State() for member in members(params) if member.fold in FOLDS}
    for epoch in range(1, params.train.epochs + 1):
        jobs = [executor.submit(train_epoch, params, data, *item) for item in states.items()]
        states = {member: job.result() for member, job in zip(states, jobs, strict=True)}
        trial.report(np.mean([state.history[-1]["val_loss"] for state in states.values()]), epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    probabilities = np.concatenate([of_fold for _, of_fold in export_folds(executor, params, data, states)])
    rows = np.concatenate([data.split(fold)[1] for fold in sorted(FOLDS)])
    return METRICS["log_loss"](probabilities, data.labels[rows])


def rounded(values: dict) -> dict:
    """The values with three significant digits, so that a command line repeats the trial."""
    return {name: float(f"{v:.3g}") if isinstance(v, float) else v for name, v in values.items()}


def row(trial: optuna.trial.FrozenTrial) -> str:
    """A finished trial's row of the table."""
    loss = trial.value if trial.state == TrialState.COMPLETE else trial.intermediate_values[trial.last_step]
    values = " ".join(f"-S {name}={value}" for name, value in rounded(trial.params).items())
    return f"| {loss:.4f} | {trial.last_step} | `dvc exp run {values}` |"


def table(study: optuna.Study) -> str:
    """All finished trials in Markdown: by their epochs, then by their log loss."""
    trials = sorted(study.get_trials(states=FINISHED), key=lambda trial: (-trial.last_step, row(trial)))
    return "\n".join(["| log loss out of fold | epochs | command |", "|---|---|---|", *map(row, trials), ""])
