"""Training: one epoch of one fold as a pure function, and all folds side by side on the cores.

The unit of work is an epoch of a fold: state in, state out, both in a file. So the folds share
the worker processes evenly, a run that was killed goes on from each fold's last finished epoch,
and neither the number of workers nor their order changes one byte of the result. Called by the
stages `train` and `ensemble`.
"""

import json
import os
import time
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass

import numpy as np
from loky import get_reusable_executor

from pipeline.files import replacing

# Rows of the validation part that are looked at after every epoch; after the last, all are.
GLIMPSE = 2000
PREDICTION_BATCH = 500
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
    layers: int
    units: int
    readout: str
    dropout: float
    epochs: int
    batch_size: int
    learning_rate: float
    warmup: float
    weight_decay: float
    label_smoothing: float
    augment: bool
    precision: str


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
    """The network, optimizer and data of one worker process, used for every fold in turn."""

    def __init__(self, recipe, digits):
        self.recipe, self.digits = recipe, digits
        self.model = self.optimizer = None

    def _steps(self, fold):
        rows = len(self.digits.split(fold)[0])
        batch = min(self.recipe.batch_size, rows)
        return rows // batch, batch

    def _build(self, fold):
        """A fresh network and optimizer; their values are a pure function of seed and fold."""
        import keras

        from pipeline.network import build_network

        recipe = self.recipe
        keras.utils.set_random_seed(int(_stream(recipe.seed, fold, _WEIGHTS).integers(2**31)))
        model = build_network(recipe.layers, recipe.units, recipe.readout, recipe.dropout,
                              recipe.precision)
        steps = self._steps(fold)[0] * recipe.epochs
        warmup = round(recipe.warmup * steps)
        schedule = keras.optimizers.schedules.CosineDecay(
            recipe.learning_rate / 25, max(steps - warmup, 1), warmup_target=recipe.learning_rate,
            warmup_steps=warmup)
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=recipe.weight_decay)
        model.compile(
            optimizer,
            loss=keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing),
            metrics=["accuracy"], jit_compile=False)
        optimizer.build(model.trainable_variables)
        return model, optimizer

    def _variables(self):
        return [*self.model.variables, *self.optimizer.variables]

    def start(self, fold):
        """The state before the first epoch: a list of arrays."""
        model, optimizer = self._build(fold)
        state = [np.asarray(v) for v in (*model.variables, *optimizer.variables)]
        if self.model is None:
            self.model, self.optimizer = model, optimizer
        return state

    def load(self, state):
        for variable, value in zip(self._variables(), state, strict=True):
            variable.assign(value)

    def train_epoch(self, fold, epoch, state):
        """Train one epoch; returns the new state and a row of figures for the history."""
        import keras

        recipe, digits = self.recipe, self.digits
        self.load(state)
        rows, validation = digits.split(fold)
        steps, batch = self._steps(fold)
        order = _stream(recipe.seed, fold, epoch, _SHUFFLE).permutation(rows)[:steps * batch]
        started = time.perf_counter()
        images = digits.images[order]
        if recipe.augment:
            images = augment_all(images, (recipe.seed, fold, epoch, _AUGMENT))
        prepared = time.perf_counter()
        result = self.model.fit(
            images.astype("float32"), keras.utils.to_categorical(digits.labels[order], 10),
            batch_size=batch, shuffle=False, verbose=0).history
        seconds = time.perf_counter() - started
        state = [np.asarray(v) for v in self._variables()]
        if epoch + 1 < recipe.epochs:
            validation = validation[:GLIMPSE]
        probabilities = self.predict(digits.images[validation])
        accuracy, loss = score(probabilities, digits.labels[validation])
        return state, {
            "fold": fold, "epoch": epoch + 1,
            "loss": result["loss"][0], "accuracy": result["accuracy"][0],
            "val_loss": loss, "val_accuracy": accuracy,
            "images": len(order), "seconds": seconds, "input_seconds": prepared - started,
        }

    def predict(self, images):
        """Probabilities `(n, 10)` for images `(n, 28, 28)`."""
        return self.model.predict(images.astype("float32"), batch_size=PREDICTION_BATCH, verbose=0)


def augment_all(images, key):
    """`augment` for any number of images; the distortions are a pure function of the key."""
    from pipeline.augment import augment

    seeds = _stream(*key).integers(2**31, size=(len(images) // AUGMENTATION_BATCH + 1, 2))
    out = np.empty(images.shape, "float32")
    for number, start in enumerate(range(0, len(images), AUGMENTATION_BATCH)):
        part = images[start:start + AUGMENTATION_BATCH]
        out[start:start + len(part)] = augment(part, seeds[number].astype("int32"))
    return out


def score(probabilities, labels):
    """Accuracy and log loss (natural logarithm, a probability counts as at least 1e-7)."""
    labels = np.asarray(labels, int)
    own = np.take_along_axis(np.asarray(probabilities, float), labels[:, None], axis=1)
    return (float(np.mean(np.argmax(probabilities, axis=1) == labels)),
            float(-np.mean(np.log(np.maximum(own, 1e-7)))))
