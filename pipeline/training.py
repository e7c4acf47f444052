"""Training: one epoch of one network as a pure function, and all networks side by side on the cores.

The unit of work is an epoch of a network: state in, state out, both in a file. So the networks share
the worker processes evenly, a run that was killed goes on from each network's last finished epoch,
and neither the number of workers nor their order changes one byte of the result. Called by the
stage `train`.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
import zipfile
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from pipeline.accuracy import CLASSES, score
from pipeline.files import PipelineError, replacing

# The kinds of networks, see `network.py`, in the order in which the folds take turns.
READERS = ("rows", "grid_rows", "grid_columns")
# Rows of the validation part that are looked at after every epoch; after the last, all are.
GLIMPSE = 2000
PREDICTION_BATCH = 250
# Pixels down and to the right, see `average`.
SHIFTS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
AUGMENTATION_BATCH = 512
# Where a random stream is used is part of its seed, so that no two uses share one.
_SHUFFLE, _AUGMENT, _WEIGHTS = range(3)

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


@dataclass(frozen=True)
class Recipe:
    """All that a fold's result depends on besides the data: see `params.yaml`."""

    seed: int
    reader: str
    layers: int
    units: int
    grid_layers: int
    grid_units: int
    readout: str
    normalize: bool
    dropout: float
    shifts: bool
    epochs: int
    batch_size: int
    learning_rate: float
    warmup: float
    weight_decay: float
    label_smoothing: float
    augment: bool
    precision: str

    @classmethod
    def from_params(cls, params):
        """The recipe of the project's parameters, as `load_params` returns them."""
        train = params.train
        return cls(
            seed=params.seed, **params.model.model_dump(),
            **train.model_dump(exclude={"workers", "engine", "precision"}),
            precision=best_precision() if train.precision == "auto" else train.precision)

    def readers(self, fold):
        """The kinds of networks that the fold trains."""
        return {"all": list(READERS), "turns": [READERS[fold % len(READERS)]]}.get(self.reader, [self.reader])

    def build_network(self, reader):
        """A network of that kind, untrained."""
        from pipeline.network import build_network

        layers, units = ((self.layers, self.units) if reader == "rows"
                         else (self.grid_layers, self.grid_units))
        return build_network(
            reader, layers=layers, units=units, readout=self.readout, normalize=self.normalize,
            dropout=self.dropout, precision=self.precision)


@dataclass(frozen=True)
class Digits:
    """Training images `(n, 28, 28)` uint8, labels `(n,)`, and each row's fold, -1 for held out."""

    images: np.ndarray
    labels: np.ndarray
    folds: np.ndarray

    def split(self, fold):
        """Row numbers to train on and to validate with; the held-out rows are in neither."""
        return (np.flatnonzero((self.folds != fold) & (self.folds >= 0)),
                np.flatnonzero(self.folds == fold))


def _stream(*key):
    """A random generator that is a pure function of the integers given."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


class Trainer:
    """The networks, optimizers and data of one worker process, used for every fold in turn."""

    def __init__(self, recipe, digits):
        self.recipe, self.digits = recipe, digits
        # Every fold takes as many steps as the smallest, for one learning-rate schedule serves
        # all. Rows that do not fill a step wait for another epoch's shuffle.
        rows = min(len(digits.split(fold)[0]) for fold in range(digits.folds.max() + 1))
        self.batch = min(recipe.batch_size, rows)
        self.steps = rows // self.batch
        self._of_reader = {}

    def _of(self, reader):
        """The network and optimizer of that kind, which serve all folds."""
        if reader not in self._of_reader:
            self._of_reader[reader] = self._build(reader, fold=0)
        return self._of_reader[reader]

    def _key(self, reader, fold):
        """The start of every random stream's key: each network has streams of its own."""
        return self.recipe.seed, READERS.index(reader), fold

    def _build(self, reader, fold):
        """A fresh network and optimizer; their values are a pure function of seed, kind and fold."""
        import keras

        recipe = self.recipe
        keras.utils.set_random_seed(int(_stream(*self._key(reader, fold), _WEIGHTS).integers(2**31)))
        model = recipe.build_network(reader)
        steps = self.steps * recipe.epochs
        warmup = round(recipe.warmup * steps)
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0 if warmup else recipe.learning_rate, max(steps - warmup, 1),
            warmup_target=recipe.learning_rate if warmup else None, warmup_steps=warmup)
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=recipe.weight_decay)
        model.compile(
            optimizer, metrics=["accuracy"], jit_compile=False,
            loss=keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing))
        optimizer.build(model.trainable_variables)
        return model, optimizer

    def initial_values(self, fold, reader):
        """The values of all variables before the fold's first epoch."""
        return [v.numpy() for v in _variables(*self._build(reader, fold))]

    def _load(self, reader, values):
        model, optimizer = self._of(reader)
        for variable, value in zip(_variables(model, optimizer), values, strict=True):
            variable.assign(value)
        return model, optimizer

    def train_epoch(self, fold, reader, epoch, values):
        """Train one epoch from the given values; returns the new ones and the epoch's figures."""
        import keras

        recipe, digits = self.recipe, self.digits
        model, optimizer = self._load(reader, values)
        rows, validation = digits.split(fold)
        started = time.perf_counter()
        order = _stream(*self._key(reader, fold), epoch, _SHUFFLE).permutation(rows)
        order = order[:self.steps * self.batch]
        images = digits.images[order]
        # The last epoch sees the digits as they are, and so do most of what batch normalization
        # averages for prediction; distorted digits are blurred.
        if recipe.augment and epoch + 1 < recipe.epochs:
            images = augment_all(images, (*self._key(reader, fold), epoch, _AUGMENT))
        images = images.astype("float32", copy=False)
        targets = keras.utils.to_categorical(digits.labels[order], CLASSES)
        prepared = time.perf_counter()
        # Not `fit`: its input pipeline waits for threads that a single-threaded process has not.
        figures = [model.train_on_batch(images[step], targets[step])
                   for step in (slice(start, start + self.batch)
                                for start in range(0, len(order), self.batch))]
        loss, accuracy = np.mean(figures, axis=0)
        finished = time.perf_counter()
        if epoch + 1 < recipe.epochs:
            validation = validation[:GLIMPSE]
        val_accuracy, val_loss = score(_predict(model, digits.images[validation]),
                                       digits.labels[validation])
        return [v.numpy() for v in _variables(model, optimizer)], {
            "epoch": epoch + 1,
            "loss": float(loss), "accuracy": float(accuracy),
            "val_loss": val_loss, "val_accuracy": val_accuracy,
            "images": len(order), "seconds": finished - started,
            "input_seconds": prepared - started,
        }

    def export(self, fold, values, path):
        """Save the fold's network; returns its probabilities for the fold's validation rows.

        Args:
            values: of each kind of network that the fold trained; several become their average, and
                so do those over shifted images.
        """
        networks = {}
        for reader, its_values in values.items():
            # Without the optimizer, which tripled the file.
            networks[reader] = self.recipe.build_network(reader)
            networks[reader].set_weights(self._load(reader, its_values)[0].get_weights())
        network = network_of_fold(fold, networks, self.recipe.shifts)
        with replacing(path) as beside:
            network.save(beside)
        return _predict(network, self.digits.images[self.digits.split(fold)[1]])


def _predict(model, images):
    """Probabilities `(n, 10)` for images `(n, 28, 28)`."""
    return np.concatenate([model.predict_on_batch(images[start:start + PREDICTION_BATCH])
                           for start in range(0, len(images), PREDICTION_BATCH)])


def network_of_fold(fold, networks, shifts):
    """The fold's one network, or the average of the networks of several kinds or over shifted images."""
    if len(networks) == 1 and not shifts:
        return next(iter(networks.values()))
    return average(list(networks.values()), list(networks), f"fold_{fold}", shifts)


def average(networks, names, name, shifts=False):
    """A model from images `(batch, 28, 28)` to the mean of the networks' probabilities.

    Args:
        shifts: average also over the image and its shifts by a pixel up, down, left and right.
    """
    import keras

    for network, its_name in zip(networks, names, strict=True):
        network.name = its_name
    images = keras.Input(networks[0].input_shape[1:], name="images")
    inputs = images
    if shifts:
        # As one batch, one after the other.
        padded = keras.ops.pad(images, ((0, 0), (1, 1), (1, 1)))
        _, height, width = images.shape
        inputs = keras.ops.concatenate(
            [padded[:, 1 - down:1 - down + height, 1 - right:1 - right + width] for down, right in SHIFTS])
    outputs = [network(inputs) for network in networks]
    digits = keras.layers.Average(name="digits")(outputs) if len(outputs) > 1 else outputs[0]
    if shifts:
        digits = keras.ops.mean(keras.ops.reshape(digits, (len(SHIFTS), -1, CLASSES)), axis=0)
    return keras.Model(images, digits, name=name)


def _variables(model, optimizer):
    """All that training changes: weights, the dropout's random state, the optimizer's averages."""
    metrics = {id(v) for v in model.metrics_variables}
    return [v for v in (*model.variables, *optimizer.variables) if id(v) not in metrics]


def augment_all(images, key):
    """`augment` for any number of images; the distortions are a pure function of the key."""
    from pipeline.augment import augment

    seeds = _stream(*key).integers(2**31, size=(len(images) // AUGMENTATION_BATCH + 1, 2))
    out = np.empty(images.shape, "float32")
    for number, start in enumerate(range(0, len(images), AUGMENTATION_BATCH)):
        part = images[start:start + AUGMENTATION_BATCH]
        out[start:start + len(part)] = augment(part, seeds[number].astype("int32"))
    return out


def best_precision():
    """`"bfloat16"` where the processor multiplies bfloat16 matrices natively, else `"float32"`.

    Reads `/proc/cpuinfo`; where there is none (not Linux), the answer is `"float32"`.
    """
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        return "float32"
    return "bfloat16" if {"amx_bf16", "avx512_bf16"} & set(flags) else "float32"


def fingerprint(recipe, digits):
    """Short hash of all that training depends on: recipe, data, code, library versions."""
    # Which kinds of networks are trained, and what is averaged then, changes none of them.
    values = {name: value for name, value in asdict(recipe).items() if name not in ("reader", "shifts")}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for array in (digits.images, digits.labels, digits.folds):
        digest.update(np.ascontiguousarray(array))
    for module in ("augment", "bilstm", "kernels", "lstm_step", "network", "training"):
        digest.update(Path(__file__).with_name(f"{module}.py").read_bytes())
    for package in ("keras", "llvmlite", "numba", "numpy", "scipy", "tensorflow"):
        digest.update(version(package).encode())
    return digest.hexdigest()[:16]


def networks_of(recipe, folds):
    """The fold and the kind of every network that is trained."""
    return [(fold, reader) for fold in range(folds) for reader in recipe.readers(fold)]


def train_folds(recipe, digits, folds, workers, state_folder, checkpoints, progress):
    """Train all folds, `workers` at a time, going on where the state files leave off.

    Args:
        folds: number of folds; state_folder: where each network's state is kept after every epoch.
        checkpoints: path of each fold's network, written when all are trained.
        progress: is told `resumed(number, epochs)` and `finished(number, figures)` of each network,
            numbered as in `networks_of`.

    Returns:
        The history of each network, and for each fold the probabilities for its validation rows.

    Raises:
        PipelineError: a worker process died.
    """
    os.environ.update(WORKER_ENVIRONMENT)
    networks = networks_of(recipe, folds)
    states = [Path(state_folder, f"fold_{fold}_{reader}.npz") for fold, reader in networks]
    histories = [_read_state(state)[1] for state in states]
    for number, history in enumerate(histories):
        if history:
            progress.resumed(number, len(history))
    running = {}
    waiting = [number for number, history in enumerate(histories) if len(history) < recipe.epochs]
    # A fork of a process that has threads may hang; so workers start from scratch.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker,
                               (recipe, digits, _cores_to_pin(workers, context)))
    try:
        while waiting or running:
            # The network that is furthest behind goes first, so that all end at about the same time.
            waiting.sort(key=lambda number: len(histories[number]))
            while waiting and len(running) < workers:
                number = waiting.pop(0)
                running[pool.submit(_run_epoch, *networks[number], states[number])] = number
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(future)
                histories[number] = future.result()
                progress.finished(number, histories[number][-1])
                if len(histories[number]) < recipe.epochs:
                    waiting.append(number)
        parts = [{reader: state for (of, reader), state in zip(networks, states) if of == fold}
                 for fold in range(folds)]
        running = list(map(partial(pool.submit, _export), range(folds), parts, checkpoints))
        probabilities = [future.result() for future in running]
        running = []
    except BrokenProcessPool:
        raise PipelineError("a training process died (out of memory?); run again to go on from the "
                            "last finished epochs; fewer train.workers need less memory")
    finally:
        if waiting or running:
            # An epoch that nobody waits for would keep this process from ending.
            for worker in multiprocessing.active_children():
                worker.kill()
        pool.shutdown()
    return histories, probabilities


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


def available_cores():
    """The numbers of the processor's cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


_trainer = None  # of this worker process


def _start_worker(recipe, digits, cores):
    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get()})
    # Ctrl-C reaches the workers too; the parent is the one that ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Without this a worker would outlive a killed parent, waiting for work for ever.
    threading.Thread(target=_follow_parent, daemon=True).start()
    global _trainer
    _trainer = Trainer(recipe, digits)


def _follow_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _run_epoch(fold, reader, state):
    values, history = _read_state(state)
    if not history:
        values = _trainer.initial_values(fold, reader)
    values, figures = _trainer.train_epoch(fold, reader, len(history), values)
    history = [*history, figures]
    with replacing(state) as beside:
        np.savez(beside, *values, history=json.dumps(history))
    return history


def _export(fold, states, checkpoint):
    values = {reader: _read_state(state)[0] for reader, state in states.items()}
    return _trainer.export(fold, values, checkpoint)


def _read_state(path):
    """The variables' values and the history in a state file; both empty if there is none."""
    try:
        with np.load(path) as file:
            history = json.loads(str(file["history"]))
            return [file[f"arr_{number}"] for number in range(len(file.files) - 1)], history
    except (FileNotFoundError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        # A file that a failing disk damaged is as good as none: the network starts anew.
        return [], []
