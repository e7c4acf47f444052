"""Training all members: the same bytes whatever the executor, the workers, and whoever kills it."""

import dataclasses
import glob
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import keras
import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, run_python, small_params
from ruamel.yaml import YAML

from pipeline.files import PipelineError
from pipeline.metrics import fold_figures, history_table
from pipeline.params import ARCHITECTURES
from pipeline.training import runner
from pipeline.training.engines import ENGINES, WORKER_ENVIRONMENT, local_pool, number_of_workers
from pipeline.training.members import Member, members
from pipeline.training.runner import export_folds, train_members
from pipeline.training.state import State, StateFiles

FOLDS = 2
CYCLE = small_params()
ALL = small_params(model={"architecture": "all"})
ALL_TTA = small_params(model={"architecture": "all", "tta": True})


# Without training


def test_the_member_furthest_behind_goes_first(digits, tmp_path, monkeypatch):
    """An epoch adds a figure to the history; here it trains nothing."""
    order = []

    def train_epoch(params, data, member, state):
        order.append(member)
        return State([np.zeros(1)], [*state.history, {"epoch": len(state.history) + 1}])

    monkeypatch.setattr(runner, "train_epoch", train_epoch)
    states = StateFiles(tmp_path, ALL, digits)
    everyone = members(ALL)
    states.write(everyone[0], State([np.zeros(1)], [{"epoch": 1}, {"epoch": 2}]))
    progress = Mock()
    with ThreadPoolExecutor(1) as executor:
        trained = train_members(executor, 1, ALL, digits, states, progress)
    assert order == everyone[1:] * 2 + everyone
    assert all(len(state.history) == 3 for state in trained.values())
    progress.resumed.assert_called_once()
    assert len(progress.finished.call_args_list) == len(order)
    # All is done, and nothing is done again.
    with ThreadPoolExecutor(1) as executor:
        assert train_members(executor, 1, ALL, digits, states, Mock()).keys() == trained.keys()
    assert len(order) == 2 * 5 + 6


def test_the_number_of_workers():
    cores = len(os.sched_getaffinity(0))
    assert number_of_workers("auto", 100) == cores and number_of_workers("auto", 1) == 1
    assert number_of_workers(3, 100) == 3 and number_of_workers(3, 2) == 2


def test_the_parameters_allow_the_engines_that_there_are():
    for engine in ENGINES:
        assert small_params(compute={"engine": engine}).compute.engine == engine
    with pytest.raises(ValueError):
        small_params(compute={"engine": "spark"})


@pytest.fixture
def environment():
    """What the workers' environment changes in this process is put back."""
    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def test_a_worker_that_dies_is_an_error_for_the_user(environment):
    with pytest.raises(PipelineError, match=r"a training process died .* fewer compute\.workers"):  # noqa: SIM117
        with local_pool(1) as executor:
            executor.submit(os._exit, 1).result()


def test_an_error_kills_the_workers(environment):
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), local_pool(1) as executor:
        executor.submit(time.sleep, 600)
        raise KeyboardInterrupt
    assert time.monotonic() - started < 60


# A small training of all architectures


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """Three members by one worker, and all six by two: for each (states, progress, export of each fold)."""
    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    result = {}
    for params, workers in ((CYCLE, 1), (ALL, 2)):
        files, progress = StateFiles(tmp_path_factory.mktemp("state"), params, digits), Mock()
        with local_pool(workers) as executor:
            states = train_members(executor, workers, params, digits, files, progress)
            exported = list(export_folds(executor, params, digits, states))
        result[params] = states, progress, exported
    for name in WORKER_ENVIRONMENT:
        os.environ.pop(name)
    os.environ.update({name: value for name, value in before.items() if value is not None})
    return result


@pytest.fixture
def load(tmp_path):
    def load(content):
        (tmp_path / "model.keras").write_bytes(content)
        return keras.models.load_model(tmp_path / "model.keras")

    return load


def values(state):
    return [value.tobytes() for value in state.values]


def predict(model, images):
    return model.predict(images.astype("float32"), verbose=0)


@pytest.mark.slow
def test_neither_workers_nor_other_members_change_a_byte(trained):
    few, many = trained[CYCLE][0], trained[ALL][0]
    assert len(few) == 2 and len(many) == 6
    for member, state in few.items():
        assert len(state.values) > 10 and values(many[member]) == values(state)


@pytest.mark.slow
def test_training_learns(trained):
    for state in trained[ALL][0].values():
        assert [epoch["epoch"] for epoch in state.history] == [1, 2, 3]
        assert state.history[-1]["loss"] < state.history[0]["loss"]
        assert state.history[-1]["val_loss"] < state.history[0]["val_loss"]
        assert state.history[-1]["accuracy"] > 0.15


@pytest.mark.slow
def test_a_checkpoint_is_the_model_that_made_the_probabilities(digits, trained, load):
    for fold, (content, probabilities) in enumerate(trained[CYCLE][2]):
        images = digits.images[digits.split(fold)[1]]
        np.testing.assert_allclose(predict(load(content), images), probabilities, atol=1e-5)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_the_members_of_a_fold_are_averaged(digits, trained, load):
    for fold, (content, probabilities) in enumerate(trained[ALL][2]):
        model, images = load(content), digits.images[digits.split(fold)[1]]
        parts = [predict(model.get_layer(architecture), images) for architecture in ARCHITECTURES]
        np.testing.assert_allclose(parts[fold], trained[CYCLE][2][fold][1], atol=1e-5)
        np.testing.assert_allclose(np.mean(parts, axis=0), probabilities, atol=1e-5)


@pytest.mark.slow
def test_any_executor_will_do_and_averaging_over_shifts_changes_no_weight(digits, trained, load):
    """Here a thread in this process; what it exports are the states of the processes."""
    with ThreadPoolExecutor(1) as executor:
        exported = list(export_folds(executor, ALL_TTA, digits, trained[ALL][0]))
    for fold, (content, probabilities) in enumerate(exported):
        plain, shifted = load(trained[ALL][2][fold][0]), load(content)
        assert [w.tobytes() for w in plain.get_weights()] == [w.tobytes() for w in shifted.get_weights()]
        images = digits.images[digits.split(fold)[1]]
        np.testing.assert_allclose(predict(shifted, images), probabilities, atol=1e-5)
        assert np.abs(probabilities - trained[ALL][2][fold][1]).max() > 1e-4


@pytest.mark.slow
def test_progress_is_told_of_every_epoch(trained):
    states, progress, _ = trained[ALL]
    progress.resumed.assert_not_called()
    told = sorted((*call.args[0], call.args[1]["epoch"]) for call in progress.finished.call_args_list)
    assert told == sorted((*member, epoch) for member in states for epoch in (1, 2, 3))


@pytest.mark.slow
def test_the_tables_of_folds_with_three_members(digits, trained):
    states, _, exported = trained[ALL]
    histories = {member: state.history for member, state in states.items()}
    of_fold_1 = [histories[Member(1, architecture, ALL.seed)] for architecture in ARCHITECTURES]
    oof = np.full((400, 10), np.nan)
    for fold, (_, probabilities) in enumerate(exported):
        oof[digits.split(fold)[1]] = probabilities
    table = history_table(histories)
    folds = fold_figures(digits, oof, table)
    assert folds["folds/fold_1"]["epochs"] == 3
    seconds = sum(epoch["seconds"] for history in of_fold_1 for epoch in history)
    assert folds["folds/fold_1"]["seconds"] == round(seconds, 1)
    assert folds["oof"]["images"] == sum(folds[f"folds/fold_{fold}"]["images"] for fold in range(FOLDS))
    assert table["epoch"].tolist() == [1, 2, 3] * len(histories)
    for member, epochs in histories.items():
        assert table[table["member"] == str(member)]["loss"].tolist() == [epoch["loss"] for epoch in epochs]


# The stage


@pytest.fixture
def folder(digits, tmp_path):
    """A project folder in which `python -m pipeline.stages.train` does the training of `CYCLE`."""
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data/digits.npz", **dataclasses.asdict(digits))
    params = CYCLE.model_copy(update={"compute": CYCLE.compute.model_copy(update={"workers": FOLDS})})
    YAML(typ="safe").dump(params.model_dump(), tmp_path / "params.yaml")
    return tmp_path


@pytest.mark.slow
def test_a_killed_training_goes_on_as_if_nothing_had_happened(folder, digits, trained, load):
    stage = "-m", "pipeline.stages.train"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, *stage], cwd=folder, stdout=subprocess.PIPE, env=environment
    ) as process:
        while not glob.glob(str(folder / "data/training_state/*/fold_*.npz")):
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        # The pipe ends when the workers, who share it, have followed.
        process.communicate()
    assert not (folder / "data/oof.npz").exists() and not (folder / "metrics/oof.json").exists()

    done = run_python(*stage, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "goes on after epoch" in done.stdout
    assert not (folder / "data/training_state").exists() and not list(folder.rglob(".*"))
    with np.load(folder / "data/oof.npz") as file:
        oof, labels = file["probabilities"], file["labels"]
    assert labels.tolist() == digits.labels.tolist()
    states, _, exported = trained[CYCLE]
    for fold, (content, probabilities) in enumerate(exported):
        assert oof[digits.split(fold)[1]].tobytes() == probabilities.tobytes()
        ours = keras.models.load_model(folder / f"data/checkpoints/fold_{fold}.keras").get_weights()
        assert [w.tobytes() for w in ours] == [w.tobytes() for w in load(content).get_weights()]
    history = history_table({member: state.history for member, state in states.items()})
    written = pd.read_csv(folder / "metrics/history.csv")
    assert list(written) == list(history)
    figures = ["member", "epoch", "loss", "val_loss", "val_accuracy", "images"]
    pd.testing.assert_frame_equal(written[figures], history[figures], rtol=1e-5)
