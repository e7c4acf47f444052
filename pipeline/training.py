"""Training: one epoch of one network as a pure function, and what is averaged of a fold's networks."""

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.accuracy import CLASSES, score
from pipeline.files import replacing

# The kinds of networks, see `network.py`, in the order in which the folds take turns.
READERS = ("rows", "grid_rows", "grid_columns")
# Rows of the validation part that are looked at after every epoch; after the last, all are.
GLIMPSE = 2000
PREDICTION_BATCH = 250
# Pixels down and to the right, see `average`.
SHIFTS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
AUGMENTATION_BATCH = 512
# The modules whose code decides what a network becomes.
CODE = ("augment", "bilstm", "compiled", "kernels", "lstm_step", "network", "products", "training", "vectors",
        "workers")
# Where a random stream is used is part of its seed, so that no two uses share one.
_SHUFFLE, _AUGMENT, _WEIGHTS = range(3)


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
    pseudo_labels: bool
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
    """Training images `(n, 28, 28)` uint8, labels `(n,)`, and each row's fold, -1 for held out.

    `unlabelled`: images `(m, 28, 28)` uint8 that students train on with their teachers' labels.
    """

    images: np.ndarray
    labels: np.ndarray
    folds: np.ndarray
    unlabelled: np.ndarray

    def split(self, fold):
        """Row numbers to train on and to validate with; the held-out rows are in neither."""
        return (np.flatnonzero((self.folds != fold) & (self.folds >= 0)),
                np.flatnonzero(self.folds == fold))


class Network(NamedTuple):
    """Names one network that is trained: its fold, its kind, and whether it is a student.

    A student trains from new initial weights on the fold's rows and on the unlabelled images; its targets for
    these are the probabilities that its teachers give, the fold's own networks that trained on labels alone
    (soft pseudo-labels; Xie et al. 2020, "Self-training with Noisy Student"). So no label of the fold's
    validation rows reaches it, not even by way of another fold's networks. The fold's model averages both.
    """

    fold: int
    reader: str
    student: bool = False

    @property
    def name(self):
        """Its name among those of its fold."""
        return f"{self.reader}_student" if self.student else self.reader


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
            self._of_reader[reader] = self._build(Network(0, reader))
        return self._of_reader[reader]

    def _key(self, network):
        """The start of every random stream's key: each network has streams of its own."""
        kind = READERS.index(network.reader)
        return self.recipe.seed, len(READERS) + kind if network.student else kind, network.fold

    def _build(self, network):
        """A fresh Keras model and optimizer; their values are a pure function of seed and network."""
        import keras

        recipe = self.recipe
        keras.utils.set_random_seed(int(_stream(*self._key(network), _WEIGHTS).integers(2**31)))
        model = recipe.build_network(network.reader)
        steps = self.steps * recipe.epochs
        warmup = round(recipe.warmup * steps)
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0 if warmup else recipe.learning_rate, max(steps - warmup, 1),
            warmup_target=recipe.learning_rate if warmup else None, warmup_steps=warmup)
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=recipe.weight_decay)
        model.compile(
            optimizer, metrics=["accuracy"], jit_compile=False,
            loss=keras.losses.CategoricalCrossentropy())
        optimizer.build(model.trainable_variables)
        return model, optimizer

    def initial_values(self, network):
        """The values of all variables before the network's first epoch."""
        return [v.numpy() for v in _variables(*self._build(network))]

    def _load(self, reader, values):
        model, optimizer = self._of(reader)
        for variable, value in zip(_variables(model, optimizer), values, strict=True):
            variable.assign(value)
        return model, optimizer

    def train_epoch(self, network, epoch, values, pseudo_labels=None):
        """Train one epoch from the given values; returns the new ones and the epoch's figures.

        Args:
            pseudo_labels: a student's targets for the unlabelled images, `(m, 10)`.
        """
        recipe, digits = self.recipe, self.digits
        model, optimizer = self._load(network.reader, values)
        rows, validation = digits.split(network.fold)
        started = time.perf_counter()
        images, targets = digits.images[rows], smooth(digits.labels[rows], recipe.label_smoothing)
        if network.student:
            images = np.concatenate([images, digits.unlabelled])
            targets = np.concatenate([targets, pseudo_labels])
        # A student has more images, and takes as many steps: an epoch sees a part of them.
        order = _stream(*self._key(network), epoch, _SHUFFLE).permutation(len(images))
        order = order[:self.steps * self.batch]
        images, targets = images[order], targets[order]
        # The last epoch sees the digits as they are, and so do most of what batch normalization
        # averages for prediction; distorted digits are blurred.
        if recipe.augment and epoch + 1 < recipe.epochs:
            images = augment_all(images, (*self._key(network), epoch, _AUGMENT))
        images = images.astype("float32", copy=False)
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
        """Save the fold's model; returns its probabilities for the fold's validation rows.

        Args:
            values: of each of its networks, see `_average_of_fold`.
        """
        model = self._average_of_fold(fold, values)
        with replacing(path) as beside:
            model.save(beside)
        return _predict(model, self.digits.images[self.digits.split(fold)[1]])

    def label(self, fold, values):
        """Pseudo-labels: the probabilities `(m, 10)` of the fold's teachers for the unlabelled images."""
        return _predict(self._average_of_fold(fold, values), self.digits.unlabelled)

    def _average_of_fold(self, fold, values):
        """The fold's one model.

        Args:
            values: by `Network`. Several are averaged; with `shifts`, so are the predictions for shifted
                images.
        """
        models = {}
        for network, its_values in values.items():
            # Without the optimizer, which tripled the file.
            models[network.name] = self.recipe.build_network(network.reader)
            models[network.name].set_weights(self._load(network.reader, its_values)[0].get_weights())
        return network_of_fold(fold, models, self.recipe.shifts)


def smooth(labels, smoothing):
    """Targets `(n, 10)` float32: `smoothing` of every row is spread evenly over the ten digits.

    Label smoothing of Szegedy et al. 2016. Not left to the loss: a teacher's probabilities are
    smooth already, as it learnt from smoothed labels.
    """
    one_hot = np.eye(CLASSES, dtype="float32")[labels]
    return one_hot * np.float32(1 - smoothing) + np.float32(smoothing) / CLASSES


def _predict(model, images):
    """Probabilities `(n, 10)` for images `(n, 28, 28)`."""
    return np.concatenate([model.predict_on_batch(images[start:start + PREDICTION_BATCH])
                           for start in range(0, len(images), PREDICTION_BATCH)])


def network_of_fold(fold, networks, shifts):
    """The fold's one network, or the average of several networks, by name, or over shifted images."""
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
    # Without students, neither the choice of kinds nor what is averaged changes any network's training.
    ignored = () if recipe.pseudo_labels else ("reader", "shifts")
    values = {name: value for name, value in asdict(recipe).items() if name not in ignored}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for array in (digits.images, digits.labels, digits.folds, digits.unlabelled):
        digest.update(np.ascontiguousarray(array))
    for module in CODE:
        digest.update(Path(__file__).with_name(f"{module}.py").read_bytes())
    for package in ("keras", "llvmlite", "numba", "numpy", "tensorflow"):
        digest.update(version(package).encode())
    return digest.hexdigest()[:16]


def rounds(recipe, folds):
    """The networks to train, `Network`s in lists: one list after the other, students last."""
    networks = [Network(fold, reader) for fold in range(folds) for reader in recipe.readers(fold)]
    students = [network._replace(student=True) for network in networks]
    return [networks, students] if recipe.pseudo_labels else [networks]


def available_cores():
    """The numbers of the processor's cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
