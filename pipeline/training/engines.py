"""The engines: context managers that yield a `concurrent.futures.Executor` of processes for the runner."""

import contextlib
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from pipeline.files import PipelineError
from pipeline.machine import available_cores
from pipeline.params import Compute
from pipeline.training.ray_engine import ray_pool

# One thread per worker: several workers keep the cores busy, and the order of additions in a sum cannot
# depend on the number of cores. The allocator's settings stop glibc from returning each step's big buffers
# to the system and faulting them in again (10 % of the time).
WORKER_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "-1",  # also on Ray's nodes
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "PYTHONWARNINGS": "ignore",  # as errors, warnings of libraries would end the training
}
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@contextlib.contextmanager
def local_pool(compute: Compute, max_workers: int) -> Iterator[tuple[Executor, int]]:
    """Worker processes on this machine, each pinned to a core if there are as many workers as cores."""
    workers = number_of_workers(compute.workers, max_workers)
    # Forking a process that has threads may hang, so workers start from scratch.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (_cores_to_pin(workers, context),))
    others, environment = multiprocessing.active_children(), dict(os.environ)
    os.environ.update(WORKER_ENVIRONMENT)  # the workers inherit it
    try:
        yield pool, workers
    except BrokenProcessPool as error:
        raise PipelineError(
            "a training process died: out of memory, or a limit of threads or CPU time; run again to resume "
            "from the last finished epochs; fewer compute.workers need less memory"
        ) from error
    except BaseException:
        # A running epoch would keep this process from ending.
        for worker in set(multiprocessing.active_children()) - set(others):
            worker.kill()
        raise
    finally:
        pool.shutdown()
        os.environ.clear()
        os.environ.update(environment)


def _cores_to_pin(workers, context):
    """A queue with one core for each worker, or None if there are more or fewer workers than cores.

    Without pinning, some virtual machines run two workers on one core for minutes while another is idle.
    """
    cores = available_cores()
    if workers != len(cores):
        return None
    queue = context.SimpleQueue()
    for core in cores:
        queue.put(core)
    return queue


def _start_worker(cores):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    if cores is not None:
        os.sched_setaffinity(0, {cores.get()})
    # Otherwise a worker would outlive a killed parent and wait forever.
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def number_of_workers(workers: int | str, max_workers: int) -> int:
    """The number of workers to start, at most `max_workers`; `"auto"` is one per core that may be used."""
    if workers == "auto":
        workers = len(available_cores())
        with contextlib.suppress(OSError, ValueError):  # there is no such file, or the quota is "max"
            quota, period = map(int, CPU_QUOTA.read_text().split())
            workers = min(workers, math.ceil(quota / period))
    return min(workers, max_workers)


# The values of `compute.engine`; `params.py` lists the names. An engine gets the section `compute`
# and the largest useful number of workers; it yields an executor and its number of workers.
ENGINES: dict[str, Callable[[Compute, int], contextlib.AbstractContextManager[tuple[Executor, int]]]] = {
    "local": local_pool,
    "ray": lambda compute, max_workers: ray_pool(compute, max_workers, WORKER_ENVIRONMENT),
}
