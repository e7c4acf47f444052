"""The engine `ray`: workers are actors on a Ray cluster, or on a Ray that is started on this machine.

Only the driver, which is the process of the stage, reads and writes files. The code travels with the job,
data and states through Ray's object store.
"""

import contextlib
import functools
import hashlib
import os
import queue
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.files import PipelineError
from pipeline.folds import TrainingData
from pipeline.machine import available_cores, processor_kind
from pipeline.params import Compute
from pipeline.training.state import LIBRARIES

# The versions of Ray that the engine was written for, as in `pyproject.toml`.
SUPPORTED = ">=2.50,<3"
# A job whose worker dies this many times on a node that lives ends the run: it seems to outgrow its memory.
MOST_DEATHS = 3
GIB = 1 << 30
PACKAGE = Path(__file__).parents[1]


@contextlib.contextmanager
def ray_pool(
    compute: Compute, max_workers: int, environment: dict[str, str]
) -> Iterator[tuple[Executor, int]]:
    """Workers on a Ray cluster.

    Args:
        compute: the section of the parameters.
        max_workers: how many could have work.
        environment: variables of the worker processes.

    Yields:
        The executor, and the number of its workers.

    Raises:
        PipelineError: there is no Ray, no cluster, or no room in it; nodes differ; a job keeps losing its
            worker.
    """
    ray = _import_ray()
    _connect(ray, compute, environment)
    try:
        needs = {
            "CPU": compute.worker_cpus,
            "GPU": compute.worker_gpus,
            "memory": int(compute.worker_memory * GIB),
        }
        room = _room(ray.nodes(), needs)
        workers = min(room if compute.workers == "auto" else compute.workers, max_workers)
        pool = RayPool(ray, workers, needs)
        try:
            pool.wait_for_workers(min(workers, room))
            yield pool, workers
        finally:
            pool.close()
    finally:
        ray.shutdown()


def _import_ray():
    """Ray, which is an optional dependency."""
    # Ray would send usage statistics, and print its raylets' messages over the progress.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    advice = f"install it on this machine and on all nodes: pip install 'ray[default]{SUPPORTED}'"
    try:
        import ray
        from packaging.specifiers import SpecifierSet
    except ImportError:
        raise PipelineError(f"compute.engine is ray, but Ray is not installed; {advice}") from None
    if ray.__version__ not in SpecifierSet(SUPPORTED):
        raise PipelineError(f"compute.engine is ray, but Ray {ray.__version__} is not supported; {advice}")
    return ray


def _connect(ray, compute, environment):
    """Join the cluster, or start Ray on this machine if no address is given."""
    address = compute.ray_address or os.environ.get("RAY_ADDRESS")
    if address:
        code, start = {"py_modules": [str(PACKAGE)], "excludes": ["__pycache__"]}, {}
    else:
        environment, code = {**environment, "PYTHONPATH": str(PACKAGE.parent)}, {}
        workers = 1 if compute.workers == "auto" else compute.workers
        cpus = max(len(available_cores()), workers * compute.worker_cpus)
        start = {"num_cpus": cpus, "include_dashboard": False}
    try:
        ray.init(
            address or "local",
            runtime_env={"env_vars": environment, **code},
            # What workers print would break the display of the progress.
            log_to_driver=False,
            logging_level="ERROR",
            **start,
        )
    except Exception as error:  # Ray raises bare ones, too, such as for a time-out
        reason = next(iter(str(error).splitlines()), repr(error))
        where = f"at {address}" if address else "on this machine"
        raise PipelineError(f"compute.ray_address: no Ray cluster {where}: {reason}") from error


def _room(nodes, needs):
    """How many workers the cluster has room for."""
    found = [node["Resources"] for node in nodes if node["Alive"]]
    room = sum(
        int(min(resources.get(name, 0) // need for name, need in needs.items() if need))
        for resources in found
    )
    if not room:
        offers = "; ".join(
            f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs, "
            f"{resources.get('memory', 0) / GIB:.1f} GiB"
            for resources in found
        )
        raise PipelineError(
            f"no node of the Ray cluster has room for a worker, which needs {needs['CPU']} CPUs, "
            f"{needs['GPU']:g} GPUs, {needs['memory'] / GIB:g} GiB (compute.worker_*); the nodes have: "
            f"{offers}"
        )
    return room


class _Actor:
    """Runs jobs, one at a time; its process keeps the compiled networks."""

    def describe(self):
        """The node's address and id, and what must be the same on all nodes."""
        import ray

        return ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id(), _kind()

    def run(self, function, *arguments):
        return function(*arguments)


def _kind():
    """What decides the results that a machine computes, by name."""
    code = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        code.update(path.read_bytes())
    kind = {"code": code.hexdigest()[:8], "processor": processor_kind()}
    for library in LIBRARIES:
        try:
            kind[library] = version(library)
        except PackageNotFoundError:
            kind[library] = "missing"
    return kind


class _Worker(NamedTuple):
    actor: Any
    node: str
    node_id: str | None
    kind: dict


class RayPool(ThreadPoolExecutor):
    """Each job waits in a thread for the next idle worker, and starts again if the worker is lost.

    Args:
        ray: the module, connected to a cluster.
        workers: number of actors.
        needs: resources of each.
    """

    def __init__(self, ray, workers: int, needs: dict[str, float]):
        super().__init__(workers, thread_name_prefix="ray")
        self._ray, self._needs = ray, needs
        self._actor = ray.remote(num_cpus=needs["CPU"], num_gpus=needs["GPU"], memory=needs["memory"])(_Actor)
        self._actors = []
        # Of workers; None where one did not start, or the error that ends the run.
        self._idle = queue.SimpleQueue()
        self._starts_left = (1 + MOST_DEATHS) * workers
        # The driver computes nothing; its processor may be another one.
        self._first = _Worker(None, "the driver", None, {**_kind(), "processor": None})
        self._stored = None, None
        self._lossy_nodes = set()
        self._closed = False
        for _ in range(workers):
            self._start()

    def submit(self, function, /, *arguments):
        """See `Executor.submit`; training data are put into the object store once."""
        return super().submit(self._run, function, [self._store(argument) for argument in arguments])

    def wait_for_workers(self, count: int) -> None:
        """Wait until that many workers are idle."""
        ready = []
        while len(ready) < count:
            waiting = f"ray: waiting for the cluster, {len(ready)} of {count} workers run"
            ready.append(self._next_idle(waiting))
        for worker in ready:
            self._idle.put(worker)

    def close(self) -> None:
        """Kill the workers, whatever they do."""
        self._closed = True
        self._idle.put(RuntimeError("the pool is closed"))
        self.shutdown(wait=False, cancel_futures=True)
        for actor in self._actors:
            self._ray.kill(actor)
        self.shutdown()

    def _store(self, argument):
        if not isinstance(argument, TrainingData):
            return argument
        if self._stored[0] is not argument:
            self._stored = argument, self._ray.put(argument)
        return self._stored[1]

    def _run(self, function, arguments):
        """Run a job in the next idle worker, again if that is lost."""
        deaths = 0
        while deaths < MOST_DEATHS:
            worker = self._next_idle()
            try:
                result = self._ray.get(worker.actor.run.remote(function, *arguments))
            except self._ray.exceptions.RayTaskError as error:
                self._idle.put(worker)
                # The job's own error, not Ray's, whose text is a traceback.
                raise error.cause from error
            except self._ray.exceptions.RayError as error:
                if self._closed:
                    raise
                self._replace(worker, type(error).__name__)
                # A node that is lost takes its idle workers along, too, so the job may meet several.
                out_of_reach = isinstance(error, self._ray.exceptions.ActorUnavailableError)
                deaths += not out_of_reach and self._lives(worker.node_id)
            else:
                self._idle.put(worker)
                return result
        raise PipelineError(
            f"a job's Ray worker died {MOST_DEATHS} times (out of memory? see compute.worker_memory); "
            "run again to go on from the last finished epochs"
        )

    def _next_idle(self, waiting=None):
        while True:
            try:
                worker = self._idle.get(timeout=60)
            except queue.Empty:
                _room(self._ray.nodes(), self._needs)  # or an error, if all nodes are lost
                if waiting:
                    print(waiting, flush=True)
                continue
            if worker is None:
                self._start()
                continue
            if isinstance(worker, Exception):
                self._idle.put(worker)  # for the other threads
                raise worker
            return worker

    def _start(self):
        self._starts_left -= 1
        actor = self._actor.remote()
        self._actors.append(actor)
        actor.describe.remote().future().add_done_callback(functools.partial(self._welcome, actor))

    def _welcome(self, actor, described):
        """Take a worker that has started, if its node computes as the others do."""
        try:
            worker = _Worker(actor, *described.result())
        except Exception as error:
            if isinstance(error, self._ray.exceptions.RayActorError) and self._starts_left > 0:
                # A node that has just died is offered for a while.
                self._idle.put(None)
                return
            reason = str(error).strip().splitlines()[-1]
            self._idle.put(PipelineError(f"a Ray worker does not start: {reason}"))
            return
        if self._first.kind["processor"] is None:
            self._first = worker._replace(kind={**self._first.kind, "processor": worker.kind["processor"]})
        differences = ", ".join(
            f"{name} {self._first.kind[name]} and {value}"
            for name, value in worker.kind.items()
            if value != self._first.kind[name]
        )
        self._idle.put(
            PipelineError(
                f"nodes of the Ray cluster would compute different results, {self._first.node} and "
                f"{worker.node}: {differences}; use nodes of one kind with the same libraries, and leave "
                "pipeline/ as it is during a run"
            )
            if differences
            else worker
        )

    def _replace(self, worker, reason):
        if worker.node_id not in self._lossy_nodes:
            self._lossy_nodes.add(worker.node_id)
            print(f"ray: lost work on node {worker.node} ({reason}), it runs again elsewhere", flush=True)
        self._actors.remove(worker.actor)
        self._ray.kill(worker.actor)
        self._start()

    def _lives(self, node_id):
        return any(node["Alive"] for node in self._ray.nodes() if node["NodeID"] == node_id)
