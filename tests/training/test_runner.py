"""Training all members: the same bytes for any executor, any number of workers, and after any kill."""

import dataclasses
import glob
import operator
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import keras
import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, run_python, small_params
from ruamel.yaml import YAML

from pipeline.files import PipelineError
from pipeline.training import ray_engine, runner
from pipeline.training.engines import ENGINES, WORKER_ENVIRONMENT
from pipeline.training.members import members
from pipeline.training.progress import history_table
from pipeline.training.runner import export_folds, train_members
from pipeline.training.state import State, StateFiles

FOLDS = 2
ONE_LAYER = {"architecture": "grid_rows", "grid_layers": 1}  # the fewest operations to trace
PARAMS = small_params(model=ONE_LAYER)
ALL = small_params(model={"architecture": "all"})
SEEDS = small_params(model=ONE_LAYER, train={"seeds": 2})


# Without training


def test_the_member_furthest_behind_goes_first(digits, tmp_path, monkeypatch):
    """Mock of the training: an epoch only adds a figure to the history."""
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
    # A finished training does nothing.
    with ThreadPoolExecutor(1) as executor:
        assert train_members(executor, 1, ALL, digits, states, Mock()).keys() == trained.keys()
    assert order == everyone[1:] * 2 + everyone


def test_data_of_other_folds_are_refused(digits):
    params = small_params(prepare={"folds": 3})
    with pytest.raises(PipelineError, match=r"have 2 folds, but prepare\.folds in params\.yaml is 3"):
        train_members(None, 1, params, digits, None, None)


# A small training


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """One network per fold, trained by one worker: states, and the export of each fold."""
    with ENGINES["local"](PARAMS.compute, 1) as (executor, _):
        files = StateFiles(tmp_path_factory.mktemp("state"), PARAMS, digits)
        states = train_members(executor, 1, PARAMS, digits, files, Mock())
        return states, list(export_folds(executor, PARAMS, digits, states))


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
def test_training_learns(trained):
    for state in trained[0].values():
        assert [epoch["epoch"] for epoch in state.history] == [1, 2, 3]
        assert state.history[-1]["loss"] < state.history[0]["loss"]
        assert state.history[-1]["val_loss"] < state.history[0]["val_loss"]
        assert state.history[-1]["accuracy"] > 0.15


@pytest.mark.slow
def test_a_checkpoint_is_the_model_that_made_the_probabilities(digits, trained, load):
    for fold, (content, probabilities) in enumerate(trained[1]):
        images = digits.images[digits.split(fold)[1]]
        np.testing.assert_allclose(predict(load(content), images), probabilities, atol=1e-5)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


# On a Ray cluster


@pytest.fixture(scope="module")
def cluster():
    """A head node without a processor, and one other node."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs the extra `ray`")
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def start_ray(cluster, max_workers):
    compute = small_params(compute={"engine": "ray", "ray_address": cluster.address}).compute
    return ENGINES["ray"](compute, max_workers)


@pytest.mark.slow
def test_jobs_on_a_cluster(cluster, monkeypatch):
    """Tasks run the driver's code in its environment, and their own errors come back."""
    monkeypatch.setattr(ray_engine, "RETRIES", 0)
    with start_ray(cluster, 2) as (executor, workers):
        assert workers == 1
        variables = executor.submit(Path.read_text, Path("/proc/self/environ")).result().split("\0")
        assert {f"{name}={value}" for name, value in WORKER_ENVIRONMENT.items()} <= set(variables)
        with pytest.raises(ZeroDivisionError, match=r"^division by zero$"):
            executor.submit(operator.truediv, 1, 0).result()
        assert len({executor.submit(os.getpid).result() for _ in range(3)}) == 1
        executor.submit(exec, "import pipeline.training.trainer").result()
        kind = executor._kind
        executor._kind = {**kind, "processor": "AuthenticAMD 25 17"}  # of the driver
        message = r"node [\d.]+ would compute other .*: processor '.*' instead of 'AuthenticAMD 25 17'; use"
        with pytest.raises(PipelineError, match=message):
            executor.submit(os.getpid).result()
        executor._kind = kind
        with pytest.raises(PipelineError, match=r"a Ray worker died 1 times .* compute\.worker_memory"):
            executor.submit(os._exit, 1).result()
        executor.submit(time.sleep, 600)
    # The job does not keep the engine from ending, and no thread calls Ray any more.
    assert not any(thread.is_alive() for thread in executor._threads)


@pytest.mark.slow
def test_a_node_that_dies_changes_no_byte_and_seeds_add_members(
    cluster, digits, trained, load, tmp_path, monkeypatch
):
    """Two nodes train four members; after the first epoch, one node is killed during another."""
    import ray

    connect = ray.init

    def connect_without_copy(*address, runtime_env, **options):
        return connect(*address, runtime_env={"env_vars": runtime_env["env_vars"]}, **options)

    # The nodes import this checkout, whose layer is compiled. They would compile that of a copy anew.
    monkeypatch.setattr(ray, "init", connect_without_copy)
    victims = [cluster.add_node(num_cpus=1)]
    progress = Mock()
    progress.finished.side_effect = lambda *_: (
        victims and cluster.remove_node(victims.pop(), allow_graceful=False)
    )
    with start_ray(cluster, 4) as (executor, workers):
        assert workers == 2
        states = train_members(
            executor, workers, SEEDS, digits, StateFiles(tmp_path, SEEDS, digits), progress
        )
        content, probabilities = next(export_folds(executor, SEEDS, digits, states))
    assert len(states) == 4 and all(len(state.history) == 3 for state in states.values())
    for member, state in trained[0].items():
        assert values(states[member]) == values(state)
        assert values(states[member._replace(seed=member.seed + 1, number=1)]) != values(state)
    model, images = load(content), digits.images[digits.split(0)[1]]
    parts = [predict(model.get_layer(f"grid_rows_{SEEDS.seed + number}"), images) for number in (0, 1)]
    np.testing.assert_allclose(np.mean(parts, axis=0), probabilities, atol=1e-5)


# The stage


@pytest.fixture
def folder(digits, tmp_path):
    """A project folder in which the stage `train` trains `PARAMS`."""
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data/digits.npz", **dataclasses.asdict(digits))
    params = small_params(model=ONE_LAYER, compute={"workers": FOLDS})
    YAML(typ="safe").dump(params.model_dump(), tmp_path / "params.yaml")
    return tmp_path


@pytest.mark.slow
def test_a_killed_training_resumes_as_if_nothing_had_happened(folder, digits, trained):
    """Two workers are killed. A single one continues, and produces the bytes of a run without a kill."""
    stage = "-m", "pipeline.stages.train"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, *stage], cwd=folder, stdout=subprocess.PIPE, env=environment
    ) as process:
        while not glob.glob(str(folder / "data/training_state/*/fold_*.npz")):
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        # The pipe closes when the workers, which share it, have ended.
        process.communicate()
    assert not (folder / "data/oof.npz").exists()

    params = small_params(model=ONE_LAYER, compute={"workers": 1})
    YAML(typ="safe").dump(params.model_dump(), folder / "params.yaml")
    done = run_python(*stage, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "resumes after epoch" in done.stdout
    assert not list(folder.rglob(".*"))
    with np.load(folder / "data/oof.npz") as file:
        oof, labels = file["probabilities"], file["labels"]
    assert labels.tolist() == digits.labels.tolist()
    states, exported = trained
    for fold, (content, probabilities) in enumerate(exported):
        assert oof[digits.split(fold)[1]].tobytes() == probabilities.tobytes()
        assert (folder / f"data/checkpoints/fold_{fold}.keras").read_bytes() == content
    history = history_table({member: state.history for member, state in states.items()})
    written = pd.read_csv(folder / "metrics/history.csv")
    assert list(written) == list(history)
    figures = ["member", "epoch", "loss", "val_loss", "val_accuracy", "images"]
    pd.testing.assert_frame_equal(written[figures], history[figures], rtol=1e-5)
