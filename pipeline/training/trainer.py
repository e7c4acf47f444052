"""An epoch of a member, and the model of a fold: pure functions, run by the workers (see `tasks.py`)."""

import tempfile
import time
from functools import lru_cache
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pipeline.augment import augment
from pipeline.competition import CLASSES
from pipeline.files import save_network
from pipeline.folds import TrainingData
from pipeline.metrics import accuracy_and_loss
from pipeline.networks import average, network_of_params, predict
from pipeline.params import Params
from pipeline.training.members import Member
from pipeline.training.optimizer import AdamW
from pipeline.training.state import State

# Validation rows that are predicted after every epoch; after the last, all are.
VALIDATION_SUBSET = 2000


def train_epoch(params: Params, data: TrainingData, member: Member, state: State) -> State:
    """Train a member for one more epoch.

    Args:
        params: the parameters; `train.precision` is not `auto`.
        data: the rows of all folds.
        member: which one.
        state: after the epoch before.

    Returns:
        The state after this epoch, its figures added to the history: `epoch` (from 1), `loss`, `accuracy`,
        `val_loss`, `val_accuracy`, `images` (trained on), `seconds`, and `input_seconds` (what of them went
        into preparing images).
    """
    epoch, last = len(state.history), len(state.history) + 1 == params.train.epochs
    batch, steps = batch_and_steps(params, data)
    model, optimizer, train = _shared(member.architecture, params, steps)
    _assign(model, optimizer, state.values or initial_values(params, data, member))
    model.reset_metrics()
    # Each process traces an architecture once; its first one compiles the layer. This may take a minute,
    # which is not the epoch's.
    train.get_concrete_function(
        tf.TensorSpec((batch * steps, *data.images.shape[1:])), tf.TensorSpec((batch * steps, CLASSES))
    )

    started = time.perf_counter()
    images, targets = _epoch_of_images(params, data, member, epoch, batch * steps)
    prepared = time.perf_counter()
    metrics = train(images, targets)
    finished = time.perf_counter()

    validation = data.split(member.fold)[1][: None if last else VALIDATION_SUBSET]
    probabilities = predict(model, data.images[validation], threads=1)
    val_accuracy, val_loss = accuracy_and_loss(probabilities, data.labels[validation])
    figures = {
        "epoch": epoch + 1,
        "loss": float(metrics["loss"]),
        "accuracy": float(metrics["accuracy"]),
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "images": len(images),
        "seconds": finished - started,
        "input_seconds": prepared - started,
    }
    return State([v.numpy() for v in _variables(model, optimizer)], [*state.history, figures])


def _epoch_of_images(params, data, member, epoch, count):
    """The images and targets of an epoch, shuffled and distorted."""
    rows = member.stream("shuffle", epoch).permutation(data.split(member.fold)[0])[:count]
    images, targets = data.images[rows], np.eye(CLASSES, dtype="float32")[data.labels[rows]]
    # The last epochs see the images as they are. Distorted images are blurred, and the averages that batch
    # normalization predicts with must be of images that are not. At least half of the epochs are distorted.
    epochs = params.train.epochs
    undistorted = min(params.augment.undistorted_epochs, epochs // 2)
    if params.augment.enabled and epoch < epochs - undistorted:
        images = augment(images, params.augment, member.stream("augment", epoch))
    return images.astype("float32", copy=False), targets


def export_fold(
    params: Params, data: TrainingData, fold: int, states: dict[Member, State]
) -> tuple[bytes, np.ndarray]:
    """Make the fold's model, the average of its members.

    Args:
        params: the parameters.
        data: the rows of all folds.
        fold: which one.
        states: of the fold's members after training.

    Returns:
        The model as the content of a `.keras` file, and its probabilities for the fold's validation rows.
    """
    _, steps = batch_and_steps(params, data)
    weights, networks = {}, []
    for member, state in states.items():
        model, optimizer, _ = _shared(member.architecture, params, steps)
        _assign(model, optimizer, state.values)
        weights[member] = model.get_weights()
    # Otherwise Keras numbers layers, and draws their seeds, by what else this process has made.
    keras.utils.clear_session()
    keras.utils.set_random_seed(params.seed)
    for member, values in weights.items():
        # Without the optimizer, which would triple the file.
        network = network_of_params(member.architecture, params.model, params.train.precision)
        network.set_weights(values)
        networks.append(network)
    several = params.train.seeds > 1
    names = [f"{member.architecture}_{member.seed}" if several else member.architecture for member in weights]
    model = average(networks, names, f"fold_{fold}", params.model.tta)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        save_network(model, path)
        content = path.read_bytes()
    return content, predict(model, data.images[data.split(fold)[1]], threads=1)


def batch_and_steps(params: Params, data: TrainingData) -> tuple[int, int]:
    """The size of a batch, and the steps of an epoch.

    All folds take the same number of steps (the smallest fold's), so they share one learning-rate schedule.
    Rows that do not fill a batch are left to another epoch's shuffle.
    """
    rows = min(len(data.split(fold)[0]) for fold in range(data.folds.max() + 1))
    batch = min(params.train.batch_size, rows)
    return batch, rows // batch


def initial_values(params: Params, data: TrainingData, member: Member) -> list[np.ndarray]:
    """The values of all variables before the member's first epoch, a pure function of the member."""
    keras.utils.set_random_seed(int(member.stream("weights").integers(2**31)))
    model, optimizer, _ = _build(member.architecture, params, batch_and_steps(params, data)[1])
    return [v.numpy() for v in _variables(model, optimizer)]


def _build(architecture, params, steps):
    """A compiled Keras model, its optimizer, and a function that trains it for an epoch."""
    train = params.train
    model = network_of_params(architecture, params.model, train.precision)
    warmup = round(train.warmup * steps * train.epochs)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else train.learning_rate,
        max(steps * train.epochs - warmup, 1),
        warmup_target=train.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = AdamW(schedule, weight_decay=train.weight_decay)
    loss = keras.losses.CategoricalCrossentropy()
    model.compile(optimizer, loss=loss, metrics=["accuracy"], jit_compile=False)
    optimizer.build(model.trainable_variables)
    return model, optimizer, _epoch_function(model, train.batch_size)


def _epoch_function(model, batch):
    """A function of images and targets that trains on one batch after the other and returns the metrics.

    All steps are one call of TensorFlow, because a call from Python for each took a tenth of the time.
    Keras's `fit` does not serve: its input pipeline waits for threads that a single-threaded process lacks.
    """

    @tf.function
    def train_on_batches(images, targets):
        for start in tf.range(0, len(images), batch):
            model.train_step((images[start : start + batch], targets[start : start + batch]))
        return model.get_metrics_result()

    return train_on_batches


# Building and compiling take seconds, so members of the same architecture take turns with the same model.
# Each trial of a sweep needs another model; the last few are kept.
_shared = lru_cache(maxsize=8)(_build)


def _variables(model, optimizer):
    metrics = {id(variable) for variable in model.metrics_variables}
    variables = (*model.variables, *optimizer.variables)
    return [variable for variable in variables if id(variable) not in metrics]


def _assign(model, optimizer, values):
    for variable, value in zip(_variables(model, optimizer), values, strict=True):
        variable.assign(value)
