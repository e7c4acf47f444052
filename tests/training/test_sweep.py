"""The sweep: it selects by the log loss out of fold, and continues an interrupted study."""

from concurrent.futures import Future, ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pytest
from helpers import small_params

from pipeline.files import PipelineError
from pipeline.metrics import METRICS
from pipeline.training.runner import export_folds, train_members
from pipeline.training.state import State, StateFiles
from pipeline.training.trainer import train_epoch

optuna = pytest.importorskip("optuna", reason="needs the extra `sweep`")
from optuna.distributions import CategoricalDistribution, FloatDistribution  # noqa: E402
from optuna.trial import TrialState  # noqa: E402

from pipeline.training import sweep as module  # noqa: E402
from pipeline.training.sweep import rounded, sweep, table  # noqa: E402

EPOCHS = 9
PARAMS = small_params(train={"epochs": EPOCHS})


@pytest.fixture(autouse=True)
def search(monkeypatch):
    """Search for a learning rate alone."""
    monkeypatch.setattr(module, "SEARCH", {"train.learning_rate": FloatDistribution(0.001, 0.1, log=True)})
    monkeypatch.setattr(module, "TRIALS", 8)


class Learner(ThreadPoolExecutor):
    """Mock of the training: the loss is the learning rate's distance from 0.02, and falls with the epochs."""

    def __init__(self, stop_after=None):
        super().__init__(1)
        self.trained, self.stop_after = [], stop_after

    def submit(self, function, params, data, *arguments):
        job = Future()
        if function is train_epoch and len(self.trained) == self.stop_after:
            job.set_exception(KeyboardInterrupt())
            return job
        member, state = arguments
        loss = 0.01 + abs(np.log(params.train.learning_rate / 0.02))
        if function is train_epoch:
            epoch = len(state.history) + 1
            self.trained.append((params.train.learning_rate, member.fold, epoch))
            job.set_result(
                State([np.zeros(1)], [*state.history, {"epoch": epoch, "val_loss": loss + 1 / epoch}])
            )
        else:
            rows = data.split(member)[1]
            probabilities = np.full((len(rows), 10), (1 - np.exp(-loss)) / 9)
            probabilities[range(len(rows)), data.labels[rows]] = np.exp(-loss)
            job.set_result((b"", probabilities))
        return job


def test_the_best_trial_has_the_lowest_log_loss_and_bad_ones_end_early(digits, tmp_path):
    learner = Learner()
    study = sweep(learner, 1, PARAMS, digits, tmp_path)
    assert {fold for _, fold, _ in learner.trained} == {0}
    assert (PARAMS.train.learning_rate, 0, 1) in learner.trained  # the parameters as they are
    best = rounded(study.best_params)["train.learning_rate"]
    assert study.best_value == pytest.approx(0.01 + abs(np.log(best / 0.02)))
    complete = [trial.value for trial in study.get_trials(states=[TrialState.COMPLETE])]
    assert 0 < len(complete) < 8 and study.best_value == min(complete)
    rows = table(study).splitlines()[2:]
    assert len(rows) == 8 and sum("| 9 |" in row for row in rows) == len(complete)
    assert rows[0] == f"| {study.best_value:.4f} | 9 | `dvc exp run -S train.learning_rate={best}` |"


def test_an_interrupted_sweep_continues_with_the_next_trial(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TRIALS", 4)
    monkeypatch.setattr(module, "FOLDS", (0, 1))

    def run(learner):
        return sweep(learner, 1, PARAMS, digits, tmp_path)

    learner, rate = Learner(stop_after=8), PARAMS.train.learning_rate
    with pytest.raises(KeyboardInterrupt):
        run(learner)
    assert learner.trained == [(rate, fold, epoch) for epoch in (1, 2, 3, 4) for fold in (0, 1)]
    # The first trial, with unchanged parameters, was interrupted.
    learner = Learner(stop_after=19)
    with pytest.raises(KeyboardInterrupt):
        run(learner)
    assert learner.trained[:18] == [(rate, fold, epoch) for epoch in range(1, 10) for fold in (0, 1)]
    learner = Learner()
    study = run(learner)
    assert (rate, 0, 1) not in learner.trained
    assert len(table(study).splitlines()) == 2 + 4
    learner = Learner()
    assert table(run(learner)) == table(study) and learner.trained == []


def test_a_value_that_the_search_lacks_is_named(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SEARCH", {"train.batch_size": CategoricalDistribution([64, 128])})
    with pytest.raises(PipelineError, match=r"train\.batch_size is 32, but SEARCH in .* has \(64, 128\)"):
        sweep(Learner(), 1, PARAMS, digits, tmp_path)


@pytest.mark.slow
def test_a_trial_is_the_same_training_as_the_pipelines(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TRIALS", 1)
    params = small_params(model={"architecture": "rows", "layers": 1}, train={"epochs": 2})
    with ThreadPoolExecutor(1) as executor:
        study = sweep(executor, 1, params, digits, tmp_path / "sweep")
        files = StateFiles(tmp_path / "state", params, digits)
        states = train_members(executor, 1, params, digits, files, Mock())
        _, probabilities = next(export_folds(executor, params, digits, states))
    assert study.best_value == METRICS["log_loss"](probabilities, digits.labels[digits.split(0)[1]])
