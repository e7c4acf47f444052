"""The engine `ray` without training: errors, and the workers' code. `test_runner.py` trains on it."""

import operator
import os
import sys
import time
from pathlib import Path

import pytest
from helpers import small_params

from pipeline.files import PipelineError
from pipeline.training import ray_engine
from pipeline.training.engines import ENGINES, WORKER_ENVIRONMENT
from pipeline.training.ray_engine import GIB

NEEDS = {"CPU": 1, "GPU": 0, "memory": 2 * GIB}


def start_ray(max_workers=2, **compute):
    return ENGINES["ray"](small_params(compute={"engine": "ray", **compute}).compute, max_workers)


def test_without_ray_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(PipelineError, match=r"Ray is not installed; .*pip install 'ray\[default\]'"),
        start_ray(),
    ):
        pass


@pytest.mark.slow
def test_an_address_without_a_cluster_is_one_line():
    pytest.importorskip("ray", reason="needs the extra `ray`")
    message = r"^there is no Ray cluster at 127\.0\.0\.1:1: "
    with pytest.raises(PipelineError, match=message), start_ray(ray_address="127.0.0.1:1"):
        pass


def test_there_is_room_for_as_many_workers_as_cpus_and_memory_allow():
    nodes = [{"CPU": 4.0, "memory": 64.0 * GIB}, {"CPU": 8.0, "memory": 7.0 * GIB}, {"memory": 64.0 * GIB}]
    assert ray_engine._room(nodes, NEEDS) == 4 + 3
    assert ray_engine._room(nodes, {**NEEDS, "CPU": 2}) == 2 + 3
    message = r"no node .* room for a worker: 1 CPUs, 1 GPUs and 2\.0 GiB"
    with pytest.raises(PipelineError, match=message):
        ray_engine._room(nodes, {**NEEDS, "GPU": 1})


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
def test_jobs_on_a_cluster(cluster, monkeypatch):
    """Tasks run the driver's code in its environment, and their own errors come back."""
    monkeypatch.setattr(ray_engine, "RETRIES", 1)
    with start_ray(ray_address=cluster.address) as (executor, workers):
        assert workers == 1
        variables = executor.submit(Path.read_text, Path("/proc/self/environ")).result().split("\0")
        assert {f"{name}={value}" for name, value in WORKER_ENVIRONMENT.items()} <= set(variables)
        with pytest.raises(ZeroDivisionError, match=r"^division by zero$"):
            executor.submit(operator.truediv, 1, 0).result()
        assert len({executor.submit(os.getpid).result() for _ in range(3)}) == 1
        kind = executor._kind
        executor._kind = {**kind, "processor": "AuthenticAMD 25 17"}  # of the driver
        message = r"node [\d.]+ would compute other .*: processor '.*' in place of 'AuthenticAMD 25 17'; use"
        with pytest.raises(PipelineError, match=message):
            executor.submit(os.getpid).result()
        executor._kind = kind
        with pytest.raises(PipelineError, match=r"a Ray worker died 2 times .* compute\.worker_memory"):
            executor.submit(os._exit, 1).result()
        executor.submit(time.sleep, 600)  # and does not keep the engine from ending
