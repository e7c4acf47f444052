"""The engine `ray` without training: what it refuses, what workers run. `test_runner.py` trains on it."""

import operator
import os
import sys
import tomllib
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from helpers import ROOT, small_params

from pipeline.files import PipelineError
from pipeline.training import ray_engine
from pipeline.training.engines import ENGINES, WORKER_ENVIRONMENT
from pipeline.training.ray_engine import GIB, RayPool

NEEDS = {"CPU": 1, "GPU": 0, "memory": 2 * GIB}


def start_ray(max_workers=2, **compute):
    return ENGINES["ray"](small_params(compute={"engine": "ray", **compute}).compute, max_workers)


@pytest.mark.parametrize(
    ("module", "says"),
    [(None, "Ray is not installed"), (SimpleNamespace(__version__="1.13.0"), "Ray 1.13.0 is not supported")],
    ids=["missing", "old"],
)
def test_without_a_ray_it_says_which_one_to_install(monkeypatch, module, says):
    monkeypatch.setitem(sys.modules, "ray", module)
    with pytest.raises(PipelineError, match=rf"{says}; .*pip install 'ray\[default\]>=2"), start_ray():
        pass


def test_the_supported_versions_are_those_of_the_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["ray"] == [f"ray[default]{ray_engine.SUPPORTED}"]


def node(alive=True, **resources):
    return {"Alive": alive, "Resources": resources}


def test_there_is_room_for_as_many_workers_as_cpus_and_memory_allow():
    nodes = [
        node(CPU=4.0, memory=64.0 * GIB),
        node(CPU=8.0, memory=7.0 * GIB),
        node(memory=64.0 * GIB),
        node(alive=False, CPU=8.0, memory=64.0 * GIB),
    ]
    assert ray_engine._room(nodes, NEEDS) == 4 + 3
    assert ray_engine._room(nodes, {**NEEDS, "CPU": 2}) == 2 + 3
    with pytest.raises(
        PipelineError, match=r"no node .* 1 GPUs, 2 GiB .* have: 4 CPUs, 0 GPUs, 64\.0 GiB; 8 CPUs"
    ):
        ray_engine._room(nodes, {**NEEDS, "GPU": 1})


def test_nodes_that_round_differently_are_refused():
    pool = RayPool(MagicMock(), 2, NEEDS)
    for address, processor in (("10.0.0.1", "GenuineIntel 6 207"), ("10.0.0.2", "AuthenticAMD 25 17")):
        described = Future()
        described.set_result((address, address, {**ray_engine._kind(), "processor": processor}))
        pool._welcome(MagicMock(), described)
    message = r"10\.0\.0\.1 and 10\.0\.0\.2: processor GenuineIntel 6 207 and AuthenticAMD 25 17;"
    with pytest.raises(PipelineError, match=message):
        pool.wait_for_workers(2)
    pool.close()


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


@pytest.mark.slow
def test_workers_of_a_cluster_get_code_and_environment_and_their_errors_come_back(cluster, capfd):
    with start_ray(ray_address=cluster.address) as (executor, workers):
        assert workers == 1
        variables = executor.submit(Path.read_text, Path("/proc/self/environ")).result().split("\0")
        assert {f"{name}={value}" for name, value in WORKER_ENVIRONMENT.items()} <= set(variables)
        with pytest.raises(ZeroDivisionError, match=r"^division by zero$"):
            executor.submit(operator.truediv, 1, 0).result()
        assert executor.submit(operator.add, 1, 2).result() == 3
        with pytest.raises(PipelineError, match=r"Ray worker died 3 times .* compute\.worker_memory"):
            executor.submit(os._exit, 1).result()
    out, err = capfd.readouterr()
    assert out.startswith("ray: lost work on node ") and len(out.splitlines()) == 1 and "raylet" not in err


@pytest.mark.slow
def test_too_little_room_is_one_line(cluster):
    with (
        pytest.raises(PipelineError, match=r"needs 1 CPUs, 0 GPUs, 1000 GiB .* 0 CPUs"),
        start_ray(ray_address=cluster.address, worker_memory=1000),
    ):
        pass
