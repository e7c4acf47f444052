"""The sweep: it selects by the log loss out of fold, and an interrupted one goes on."""

from concurrent.futures import Future, ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pytest
from helpers import small_params

from pipeline.files import PipelineError
from pipeline.metrics import accuracy_and_loss
from pipeline.training.engines import ENGINES, WORKER_ENVIRONMENT
from pipeline.training.runner import export_folds, train_members
from pipeline.training.state import State, StateFiles
from pipeline.training.tasks import train_epoch

optuna = pytest.importorskip("optuna", reason="needs the extra `sweep`")
from optuna.distributions import CategoricalDistribution, FloatDistribution  # noqa: E402
from optuna.trial import TrialState  # noqa: E402

from pipeline.training.sweep import rounded, sweep, table  # noqa: E402

SEARCH = {"train.learning_rate": FloatDistribution(0.001, 0.1, log=True)}
EPOCHS = 9
PARAMS = small_params(train={"epochs": EPOCHS})


class Learner(ThreadPoolExecutor):
    """Trains nothing: the loss is the learning rate's distance from 0.02, and falls with the epochs."""

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
    study = sweep(learner, 1, PARAMS, digits, tmp_path, SEARCH, trials=12)
    assert {fold for _, fold, _ in learner.trained} == {0}
    # Among the trials are the parameters as they are.
    assert (PARAMS.train.learning_rate, 0, EPOCHS) in learner.trained
    best = rounded(study.best_params)["train.learning_rate"]
    assert study.best_value == pytest.approx(0.01 + abs(np.log(best / 0.02)))
    complete = [trial.value for trial in study.get_trials(states=[TrialState.COMPLETE])]
    assert 0 < len(complete) < 12 and study.best_value == min(complete)
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]
    rows = table(study).splitlines()[2:]
    assert len(rows) == 12 and sum("stopped early" in row for row in rows) == 12 - len(complete)
    assert rows[0] == f"| {study.best_value:.4f} | 1.0000 | 9 | `-S train.learning_rate={best}` |"


def test_an_interrupted_sweep_goes_on_after_the_last_finished_epochs(digits, tmp_path):
    def run(learner):
        return sweep(learner, 1, PARAMS, digits, tmp_path, SEARCH, trials=4, folds=(0, 1))

    with pytest.raises(KeyboardInterrupt):
        run(Learner(stop_after=8))
    learner, rate = Learner(), PARAMS.train.learning_rate
    study = run(learner)
    assert learner.trained[:3] == [(rate, 0, 5), (rate, 1, 5), (rate, 0, 6)]
    assert len(table(study).splitlines()) == 2 + 4
    assert len({trial.params["train.learning_rate"] for trial in study.trials}) == 4
    learner = Learner()
    assert table(run(learner)) == table(study) and learner.trained == []


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ({"train.learning_rat": FloatDistribution(0, 1)}, "unknown key 'train.learning_rat', did you mean"),
        (
            {"augment.shift": FloatDistribution(0, 20)},
            r"augment.shift is 20.0, allowed: a number from 0 to 14",
        ),
        (
            {"model.readout": CategoricalDistribution(["first", "last"])},
            "model.readout is 'first', allowed: middle",
        ),
    ],
)
def test_what_the_parameters_do_not_allow_is_refused_at_the_start(digits, tmp_path, search, says):
    with pytest.raises(PipelineError, match=says):
        sweep(Learner(), 1, PARAMS, digits, tmp_path, search)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_trial_is_the_same_training_as_the_pipelines(digits, tmp_path, monkeypatch):
    for name, value in WORKER_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)  # the engine does the same, and leaves it so
    params = small_params(model={"architecture": "rows"}, train={"epochs": 2})
    with ENGINES["local"](params.compute, 1) as (executor, workers):
        study = sweep(executor, workers, params, digits, tmp_path / "sweep", SEARCH, trials=1)
        files = StateFiles(tmp_path / "state", params, digits)
        states = train_members(executor, workers, params, digits, files, Mock())
        _, probabilities = next(export_folds(executor, params, digits, states))
    accuracy, loss = accuracy_and_loss(probabilities, digits.labels[digits.split(0)[1]])
    assert study.best_value == loss and study.best_trial.user_attrs["accuracy"] == accuracy
