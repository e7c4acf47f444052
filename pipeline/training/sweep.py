"""A search for better hyperparameters with Optuna, run by `make sweep`; edit `SEARCH`.

A trial trains members as the pipeline does, on fold 0 or on all folds. The search sees only the log loss out
of fold: after each epoch to stop a trial early, after the last to compare trials. The study is a database and
trials keep their states in files, so a killed sweep goes on after the last finished epochs.
"""

import hashlib
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from operator import attrgetter
from pathlib import Path

import numpy as np

from pipeline.files import PipelineError
from pipeline.folds import TrainingData
from pipeline.metrics import accuracy_and_loss
from pipeline.params import Params
from pipeline.training.members import members
from pipeline.training.runner import export_folds
from pipeline.training.state import StateFiles, fingerprint
from pipeline.training.tasks import train_epoch

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.trial import TrialState
except ImportError:
    raise PipelineError("the sweep needs Optuna: pip install 'optuna>=4.5,<6'") from None

TRIALS = 20
ALL_FOLDS = False  # or fold 0 alone
# From a key of params.yaml, in the sections `model`, `augment` and `train`, to the values to try.
SEARCH: dict[str, BaseDistribution] = {
    "train.learning_rate": FloatDistribution(0.002, 0.02, log=True),
    "train.batch_size": CategoricalDistribution([32, 64, 128]),
    "augment.displacement": FloatDistribution(0, 1.5),
    "model.dropout": FloatDistribution(0, 0.4),
}

RESUMES = "resumes trial"  # the number of the interrupted trial that this one continues


def sweep(
    executor: Executor,
    workers: int,
    params: Params,
    data: TrainingData,
    folder: Path,
    search: dict[str, BaseDistribution] = SEARCH,
    trials: int = TRIALS,
    folds: Sequence[int] = (0,),
) -> optuna.Study:
    """Try values until there are enough trials, those of an interrupted sweep among them.

    Args:
        executor: runs the epochs.
        workers: epochs that it runs at the same time.
        params: the parameters; what is not searched stays as it is, and the first trial is all of them.
        data: the rows of all folds.
        folder: where the study and the states of its trials are kept.
        search: see `SEARCH`.
        trials: how many, counting those that are stopped early.
        folds: the folds to train, and to measure the log loss on.

    Returns:
        The study; the value of a complete trial is its log loss out of fold.

    Raises:
        PipelineError: a key or value of `search` is not allowed in `params.yaml`.
    """
    for name, distribution in search.items():
        for value in getattr(distribution, "choices", None) or (distribution.low, distribution.high):
            params.with_values({name: value})
    study = _open_study(params, data, folder, search, folds)
    finished = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    networks = sum(member.fold in folds for member in members(params))
    one_at_a_time = threading.Lock()

    def run():
        with one_at_a_time:  # two threads might get the same waiting trial
            trial = study.ask(search)
        number = trial.user_attrs.get(RESUMES, trial.number)
        chosen = params.with_values(rounded(trial.params))
        files = StateFiles(folder / f"{study.study_name}_{number}", chosen, data)
        try:
            accuracy, loss = _train(trial, executor, chosen, data, files, folds)
            trial.set_user_attr("accuracy", accuracy)
            study.tell(trial, loss)
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
        shutil.rmtree(files.folder.parent)
        print(f"trial {number}: {' | '.join(row(study.trials[trial.number]))}", flush=True)

    # A trial waits for the executor in a thread of its own. One more than the workers need keeps them busy.
    threads = ThreadPoolExecutor(workers // networks + 1)
    try:
        for job in as_completed([threads.submit(run) for _ in range(trials - len(finished))]):
            job.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    return study


def _open_study(params, data, folder, search, folds):
    """The study of this search, new or with the trials of an earlier sweep."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = fingerprint(params, data), params.model, params.train.seeds, sorted(search.items()), list(folds)
    study = optuna.create_study(
        storage=f"sqlite:///{folder}/study.db",
        study_name=hashlib.sha256(repr(recipe).encode()).hexdigest()[:16],
        load_if_exists=True,
        # Rungs at a ninth and a third of the epochs, rounded up; the best third of the trials there goes on.
        pruner=optuna.pruners.SuccessiveHalvingPruner(-(-params.train.epochs // 9), reduction_factor=3),
    )
    # A sampler that began with the same numbers again would repeat its first trials.
    study.sampler = optuna.samplers.TPESampler(seed=params.seed + len(study.trials), constant_liar=True)
    if not study.trials:
        study.enqueue_trial({name: attrgetter(name)(params) for name in search})
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        study.tell(trial.number, state=TrialState.FAIL)
        number = trial.user_attrs.get(RESUMES, trial.number)
        study.enqueue_trial(trial.params, user_attrs={RESUMES: number})
    return study


def _train(trial, executor, params, data, files, folds):
    """Train a trial's members epoch by epoch; their accuracy and log loss out of fold."""
    states = {member: files.read(member) for member in members(params) if member.fold in folds}
    for epoch in range(params.train.epochs):
        jobs = {
            member: executor.submit(train_epoch, params, data, member, state)
            for member, state in states.items()
            if len(state.history) == epoch
        }
        for member, job in jobs.items():
            states[member] = job.result()
            files.write(member, states[member])
        loss = np.mean([state.history[epoch]["val_loss"] for state in states.values()])
        trial.report(loss, epoch + 1)
        if not np.isfinite(loss) or trial.should_prune():
            raise optuna.TrialPruned
    exports = export_folds(executor, params, data, states)
    probabilities = np.concatenate([of_fold for _, of_fold in exports])
    rows = np.concatenate([data.split(fold)[1] for fold in sorted(folds)])
    return accuracy_and_loss(probabilities, data.labels[rows])


def rounded(values: dict) -> dict:
    """The values with three significant digits, so that a command line repeats the trial."""
    return {name: float(f"{v:.3g}") if isinstance(v, float) else v for name, v in values.items()}


def row(trial: optuna.trial.FrozenTrial) -> list[str]:
    """A trial's row of the table."""
    values = " ".join(f"-S {name}={value}" for name, value in rounded(trial.params).items())
    accuracy = (
        f"{trial.user_attrs['accuracy']:.4f}" if trial.state == TrialState.COMPLETE else "stopped early"
    )
    return [f"{_loss(trial):.4f}", accuracy, str(trial.last_step), f"`{values}`"]


def _loss(trial):
    """A complete trial's log loss out of fold; else what the last epoch reported."""
    return trial.value if trial.state == TrialState.COMPLETE else trial.intermediate_values[trial.last_step]


def table(study: optuna.Study) -> str:
    """All trials in Markdown: the complete ones by their log loss, then those that were stopped early."""
    trials = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    trials.sort(key=lambda trial: (-trial.last_step, _loss(trial)))
    rows = [["log loss out of fold", "accuracy", "epochs", "`dvc exp run`"], ["---"] * 4, *map(row, trials)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
