"""The engine `local`: number, environment and termination of its processes."""

import multiprocessing
import os
import time
import warnings
from pathlib import Path

import pytest
from helpers import small_params

from pipeline.files import PipelineError
from pipeline.training import engines
from pipeline.training.engines import ENGINES, WORKER_ENVIRONMENT, number_of_workers


def start_worker():
    return ENGINES["local"](small_params().compute, 1)


def test_auto_is_a_worker_per_core_within_the_containers_quota(tmp_path, monkeypatch):
    assert 1 <= number_of_workers("auto", 100) <= len(os.sched_getaffinity(0))
    assert number_of_workers(3, 100) == 3 and number_of_workers(3, 2) == 2
    monkeypatch.setattr(engines, "available_cores", lambda: list(range(64)))
    for quota, workers in (("200000 100000", 2), ("150000 100000", 2), ("max 100000", 64)):
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
        monkeypatch.setattr(engines, "CPU_QUOTA", tmp_path / "cpu.max")
        assert number_of_workers("auto", 100) == workers


def test_the_parameters_allow_the_engines_that_there_are():
    for engine in ENGINES:
        assert small_params(compute={"engine": engine}).compute.engine == engine
    with pytest.raises(ValueError):
        small_params(compute={"engine": "spark"})


def test_a_worker_takes_no_warning_for_an_error_and_its_death_is_an_error_for_the_user(monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    problem = "died: out of memory, or a limit of threads or CPU time; run again"
    with pytest.raises(PipelineError, match=problem), start_worker() as (executor, _):
        variables = executor.submit(Path.read_text, Path("/proc/self/environ")).result().split("\0")
        assert {f"{name}={value}" for name, value in WORKER_ENVIRONMENT.items()} <= set(variables)
        executor.submit(warnings.warn, "deprecated").result()
        executor.submit(os._exit, 1).result()
    assert os.environ["PYTHONWARNINGS"] == "error"


def test_an_error_kills_the_workers_and_no_other_process():
    started, environment = time.monotonic(), dict(os.environ)
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    other.start()
    with pytest.raises(KeyboardInterrupt), start_worker() as (executor, _):
        executor.submit(time.sleep, 600)
        raise KeyboardInterrupt
    assert time.monotonic() - started < 60 and other.is_alive()
    assert os.environ == environment
    other.kill()
