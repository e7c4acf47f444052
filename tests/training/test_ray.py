"""The engine `ray` without a cluster. `test_runner.py` has a cluster, and trains on it."""

import sys

import pytest
from helpers import small_params

from pipeline.files import PipelineError
from pipeline.training import ray_engine
from pipeline.training.engines import ENGINES
from pipeline.training.ray_engine import GIB

NEEDS = {"CPU": 1, "memory": 2 * GIB}


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
    message = r"no node .* room for a worker: 9 CPUs and 2\.0 GiB"
    with pytest.raises(PipelineError, match=message):
        ray_engine._room(nodes, {**NEEDS, "CPU": 9})
