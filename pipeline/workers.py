"""Training side by side: all networks on the cores, an epoch at a time. Called by the stage `train`.

The unit of work is an epoch of a network: state in, state out, both in a file. So the networks share
the worker processes evenly, a run that was killed goes on from each network's last finished epoch,
and neither the number of workers nor their order changes one byte of the result.
"""

import json
import multiprocessing
import os
import signal
import threading
import zipfile
import zlib
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.files import PipelineError, replacing
from pipeline.training import Network, Trainer, available_cores, rounds

# One thread a worker: the cores are kept busy by several workers, and the order of additions in
# a sum cannot depend on the number of cores. The allocator's settings stop glibc from returning
# each step's big buffers to the system and faulting them in again (10 % of the time).
WORKER_ENVIRONMENT = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
}


def train_folds(recipe, digits, folds, workers, state_folder, checkpoints, progress):
    """Train all folds, `workers` networks at a time, going on where the state files leave off.

    Args:
        folds: number of folds; state_folder: where each network's state is kept after every epoch.
        checkpoints: path of each fold's network, written when all are trained.
        progress: is told `resumed(network, epochs)` and `finished(network, figures)`.

    Returns:
        A dict from each `Network` of all `rounds` to its history, and for each fold the probabilities for
        its validation rows.

    Raises:
        PipelineError: a worker process died.
    """
    os.environ.update(WORKER_ENVIRONMENT)
    states = _StateFiles(Path(state_folder))
    histories = {network: states.read(network)[1]
                 for networks in rounds(recipe, folds) for network in networks}
    for network, history in histories.items():
        if history:
            progress.resumed(network, len(history))
    # A fork of a process that has threads may hang; so workers start from scratch.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker,
                               (recipe, digits, states, _cores_to_pin(workers, context)))
    try:
        for networks in rounds(recipe, folds):
            if networks[0].student:
                list(pool.map(_pseudo_labels, range(folds)))
            _train_round(pool, recipe, networks, workers, histories, progress)
        probabilities = list(pool.map(_export, range(folds), checkpoints))
    except BrokenProcessPool:
        raise PipelineError("a training process died (out of memory?); run again to go on from the "
                            "last finished epochs; fewer train.workers need less memory")
    except BaseException:
        # An epoch that nobody waits for would keep this process from ending.
        for worker in multiprocessing.active_children():
            worker.kill()
        raise
    finally:
        pool.shutdown()
    return histories, probabilities


def _train_round(pool, recipe, networks, workers, histories, progress):
    """Train the networks, writing each finished epoch's history into `histories`."""
    running = {}
    waiting = [network for network in networks if len(histories[network]) < recipe.epochs]
    while waiting or running:
        # The network that is furthest behind goes first, so that all end at about the same time.
        waiting.sort(key=lambda network: len(histories[network]))
        while waiting and len(running) < workers:
            network = waiting.pop(0)
            running[pool.submit(_run_epoch, network)] = network
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            network = running.pop(future)
            histories[network] = future.result()
            progress.finished(network, histories[network][-1])
            if len(histories[network]) < recipe.epochs:
                waiting.append(network)


def _cores_to_pin(workers, context):
    """A queue with a core for each worker to stay on, or None where workers do not fill them.

    Left to itself, the scheduler of some virtual machines runs two workers on one core for
    minutes, with the other one idle.
    """
    cores = available_cores()
    if workers != len(cores):
        return None
    queue = context.SimpleQueue()
    for core in cores:
        queue.put(core)
    return queue


@dataclass(frozen=True)
class _StateFiles:
    """The files that keep what a killed run had done; a damaged one is as good as none."""

    folder: Path

    def read(self, network):
        """The variables' values and the history after the newest epoch; both empty if there is none."""
        file = self._load(self._of_network(network))
        history = json.loads(str(file.pop("history", "[]")))
        return list(file.values()), history

    def write(self, network, values, history):
        with replacing(self._of_network(network)) as beside:
            np.savez(beside, *values, history=json.dumps(history))

    def pseudo_labels(self, fold):
        """Those of the fold's students, or None."""
        return self._load(self._of_labels(fold)).get("labels")

    def write_pseudo_labels(self, fold, labels):
        with replacing(self._of_labels(fold)) as beside:
            np.savez(beside, labels=labels)

    def _of_network(self, network):
        return self.folder / f"fold_{network.fold}_{network.name}.npz"

    def _of_labels(self, fold):
        return self.folder / f"fold_{fold}_pseudo_labels.npz"

    @staticmethod
    def _load(path):
        try:
            with np.load(path) as file:
                return dict(file)
        except (FileNotFoundError, EOFError, ValueError, zipfile.BadZipFile, zlib.error):
            return {}


_trainer = _states = None  # of this worker process


def _start_worker(recipe, digits, states, cores):
    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get()})
    # Ctrl-C reaches the workers too; the parent is the one that ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Without this a worker would outlive a killed parent, waiting for work for ever.
    threading.Thread(target=_follow_parent, daemon=True).start()
    global _trainer, _states
    _trainer, _states = Trainer(recipe, digits), states


def _follow_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _run_epoch(network):
    values, history = _states.read(network)
    if not history:
        values = _trainer.initial_values(network)
    labels = _pseudo_labels(network.fold) if network.student else None
    values, figures = _trainer.train_epoch(network, len(history), values, labels)
    history = [*history, figures]
    _states.write(network, values, history)
    return history


def _values(networks, fold):
    """Of those of the networks that are the fold's."""
    return {network: _states.read(network)[0] for network in networks if network.fold == fold}


def _pseudo_labels(fold):
    """Those of the fold's students, which its teachers give once."""
    labels = _states.pseudo_labels(fold)
    if labels is None:
        teachers = rounds(_trainer.recipe, fold + 1)[0]
        labels = _trainer.label(fold, _values(teachers, fold))
        _states.write_pseudo_labels(fold, labels)
    return labels


def _export(fold, checkpoint):
    networks = [network for networks in rounds(_trainer.recipe, fold + 1) for network in networks]
    return _trainer.export(fold, _values(networks, fold), checkpoint)
