"""The engine `ray`: jobs are tasks on a Ray cluster, or on a local Ray instance.

Ray retries a task whose worker or node died. Only the driver, the process of the stage, reads and writes
files: the code travels with the job, data and states through Ray's object store.
"""

import contextlib
import functools
import hashlib
import importlib.util
import os
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor, ThreadPoolExecutor
from pathlib import Path

from pipeline.files import PipelineError, one_line
from pipeline.folds import TrainingData
from pipeline.machine import available_cores
from pipeline.params import Compute
from pipeline.training.state import machine_kind

RETRIES = 3  # of a job whose worker or node died
GIB = 1 << 30
PACKAGES = Path(__file__).parents[1], Path(importlib.util.find_spec("fastlstm").origin).parent


@contextlib.contextmanager
def ray_pool(
    compute: Compute, max_workers: int, environment: dict[str, str]
) -> Iterator[tuple[Executor, int]]:
    """Workers on a Ray cluster, with `environment` as variables of their processes; see `ENGINES`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise PipelineError(
            "compute.engine is ray, but Ray is not installed; on all machines: pip install 'ray[default]'"
        ) from None
    _connect(ray, compute, environment)
    with contextlib.ExitStack() as stack:
        stack.callback(ray.shutdown)  # ends all tasks
        needs = {"CPU": compute.worker_cpus, "memory": int(compute.worker_memory * GIB)}
        room = _room([node["Resources"] for node in ray.nodes() if node["Alive"]], needs)
        workers = min(room if compute.workers == "auto" else compute.workers, max_workers)
        executor = RayExecutor(ray, workers, needs)
        stack.callback(executor.close)
        yield executor, workers


def _connect(ray, compute, environment):
    """Join the cluster, or start Ray on this machine if no address is given."""
    address = compute.ray_address or os.environ.get("RAY_ADDRESS")
    if address:
        code, start = {"py_modules": [str(folder) for folder in PACKAGES], "excludes": ["__pycache__"]}, {}
    else:
        # Use this copy of the layer, because its compiled code is cached beside it.
        path = os.pathsep.join(str(folder.parent) for folder in PACKAGES)
        environment, code = {**environment, "PYTHONPATH": path}, {}
        workers = 1 if compute.workers == "auto" else compute.workers
        cpus = max(len(available_cores()), workers * compute.worker_cpus)
        start = {"num_cpus": cpus, "include_dashboard": False}
    try:
        if address and re.fullmatch(r"[\w.-]+:\d+", address):  # Ray would try for minutes
            socket.create_connection(address.rsplit(":", 1), timeout=10).close()
        ray.init(
            address or "local",
            runtime_env={"env_vars": environment, **code},
            log_to_driver=False,  # it would break the display of the progress
            logging_level="ERROR",
            **start,
        )
    except Exception as error:  # Ray also raises bare exceptions, such as for a timeout
        problem = f"there is no Ray cluster at {address}" if address else "Ray does not start on this machine"
        raise PipelineError(f"{problem}: {next(iter(str(error).splitlines()), repr(error))}") from error


def _room(nodes, needs):
    """The number of workers that nodes with these resources have room for."""
    room = sum(int(min(node.get(name, 0) // need for name, need in needs.items())) for node in nodes)
    if not room:
        raise PipelineError(
            f"no node of the Ray cluster has room for a worker: {needs['CPU']} CPUs and "
            f"{needs['memory'] / GIB:.1f} GiB (compute.worker_*); `ray status` shows what there is"
        )
    return room


class RayExecutor(ThreadPoolExecutor):
    """Runs each job as a Ray task; a thread waits for its result.

    Ray reuses its worker processes, so a compiled network serves several epochs.
    """

    def __init__(self, ray, workers: int, needs: dict[str, float]):
        super().__init__(workers)
        self._ray = ray
        resources = {"num_cpus": needs["CPU"], "memory": needs["memory"]}
        self._task = ray.remote(max_retries=RETRIES, **resources)(_run_on_node)
        self._kind = _node_kind()
        self._data = self._reference = None
        self._closed = threading.Event()
        errors = ray.exceptions
        self._deaths = errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError

    def close(self):
        """Abandon all jobs. A thread that called Ray after its shutdown would start another Ray, or crash."""
        self._closed.set()
        self.shutdown(cancel_futures=True)

    def submit(self, function, /, *arguments):
        """See `Executor.submit`; training data are put into the object store once."""
        stored = [self._store(value) if isinstance(value, TrainingData) else value for value in arguments]
        return super().submit(self._run, function, *stored)

    def _store(self, data):
        if self._data is not data:
            self._data, self._reference = data, self._ray.put(data)
        return self._reference

    def _run(self, function, *arguments):
        try:
            reference = self._task.remote(self._kind, function, *arguments)
            while not self._ray.wait([reference], timeout=0.1)[0]:
                if self._closed.is_set():
                    raise CancelledError
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None  # the job's own error; the text of Ray's is a traceback
        except self._deaths as error:
            raise PipelineError(
                f"a Ray worker died {RETRIES + 1} times in the same epoch: out of memory, or a limit of "
                "threads or CPU time; run again to resume from the last finished epochs; a larger "
                "compute.worker_memory starts fewer workers per node"
            ) from error
        except self._ray.exceptions.RayError as error:
            raise PipelineError(f"Ray: {one_line(str(error), 200)}") from error


def _run_on_node(kind, function, *arguments):
    """Run a job, unless this node would compute other results than the driver, whose kind is given."""
    node = _node_kind()
    if node != kind:
        import ray

        different = [
            f"{name} {node[name]!r} instead of {kind[name]!r}" for name in kind if node[name] != kind[name]
        ]
        raise PipelineError(
            f"the Ray node {ray.util.get_node_ip_address()} would compute other results than this machine: "
            f"{', '.join(different)}; use one kind of processor, one version of libraries and code"
        )
    return function(*arguments)


@functools.cache
def _node_kind():
    """Properties of this machine and process that decide results, by name."""
    code = hashlib.sha256()
    for path in (path for folder in PACKAGES for path in sorted(folder.rglob("*.py"))):
        code.update(path.read_bytes())
    return {"code": code.hexdigest()[:8], **machine_kind()}
