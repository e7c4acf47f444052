"""Train a member for an epoch, and export the model of a fold: pure functions, run by the workers."""

import tempfile
import time
from functools import lru_cache
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pipeline.architectures import average, build_network
from pipeline.augment import augment
from pipeline.files import save_network
from pipeline.folds import TrainingData
from pipeline.params import Params
from pipeline.training.members import Member
from pipeline.training.optimizer import Muon
from pipeline.training.state import State

VALIDATION_SUBSET = 2000  # validation rows to predict after every epoch but the last, which predicts all
PREDICTION_BATCH = 256


def train_epoch(params: Params, data: TrainingData, member: Member, state: State) -> State:
    """Train a member for one more epoch.

    The precision in the parameters is not `auto`; the state is that after the epoch before.

    Returns:
        The state after this epoch, with one more row of figures in its history: `epoch` (from 1), `loss` and
        `val_loss` (log losses in nats), `accuracy`, `val_accuracy`, `images` (trained on), `seconds`, and
        `input_seconds` (the part of `seconds` that prepared the images).
    """
    epoch, last = len(state.history), len(state.history) + 1 == params.train.epochs
    batch, steps = batch_and_steps(params, data)
    model, optimizer, train = _shared(member.architecture, params, data.shape, batch, steps)
    _assign(model, optimizer, state.values or initial_values(params, data, member))
    # Tracing takes seconds, and compiling the layer up to a minute; neither counts as time of the epoch.
    train.get_concrete_function()

    started = time.perf_counter()
    rows = member.stream("shuffle", epoch).permutation(data.split(member.fold)[0])[: steps * batch]
    images, targets = _images_of(params, data, member, epoch, rows)
    prepared = time.perf_counter()
    loss, accuracy = train(images, targets).numpy().tolist()
    finished = time.perf_counter()

    validation = data.split(member.fold)[1][: None if last else VALIDATION_SUBSET]
    probabilities = _predict(model, data.images[validation])
    val_accuracy, val_loss = _score(probabilities, data.labels[validation])
    figures = {
        "epoch": epoch + 1,
        "loss": loss,
        "accuracy": accuracy,
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "images": len(images),
        "seconds": finished - started,
        "input_seconds": prepared - started,
    }
    return State(_values(model, optimizer), [*state.history, figures])


def _images_of(params, data, member, epoch, rows):
    """The images and targets of an epoch, distorted."""
    targets = np.eye(data.classes, dtype="float32")[data.labels[rows]]
    images = data.images[rows]
    # Distorted images are blurred. The last epochs see undistorted ones, so that the averages of batch
    # normalization, which predictions use, are those of undistorted images. At most half of all epochs.
    epochs = params.train.epochs
    undistorted = min(params.augment.undistorted_epochs, epochs // 2)
    if params.augment.enabled and epoch < epochs - undistorted:
        images = augment(images, params.augment, member.stream("augment", epoch))
    return images.astype("float32", copy=False), targets


def _predict(model, images):
    """Probabilities `(n, classes)`, in padded batches of one size, so that one graph suffices."""
    batches = -(-len(images) // PREDICTION_BATCH)
    padded = np.zeros((batches * PREDICTION_BATCH, *images.shape[1:]), "float32")
    padded[: len(images)] = images
    outputs = [model.predict_on_batch(batch) for batch in np.split(padded, batches)]
    return np.concatenate(outputs)[: len(images)]


def _score(probabilities, labels):
    """Accuracy, and log loss in nats; a probability counts as at least 1e-7."""
    of_label = probabilities[np.arange(len(labels)), labels].astype(float)
    accuracy = np.mean(probabilities.argmax(axis=1) == labels)
    return float(accuracy), float(-np.mean(np.log(np.maximum(of_label, 1e-7))))


def export_fold(
    params: Params, data: TrainingData, fold: int, states: dict[Member, State]
) -> tuple[bytes, np.ndarray]:
    """Make the model of a fold, the average of its members with these states.

    Returns:
        The model as the content of a `.keras` file, and its probabilities for the fold's validation rows.
    """
    # Otherwise the numbers and seeds of Keras's layers depend on the process's earlier work.
    keras.utils.clear_session()
    keras.utils.set_random_seed(params.seed)
    networks = []
    for member, state in states.items():
        network = build_network(member.architecture, params.model, params.train.precision, *data.shape)
        # The variables of the optimizer, which would double the file, come after those of the network.
        for variable, value in zip(network.variables, state.values, strict=False):
            variable.assign(value)
        if params.train.seeds > 1:
            network.name = f"{member.architecture}_{member.seed}"
        networks.append(network)
    model = average(networks, f"fold_{fold}", params.model.test_shift)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        save_network(model, path)
        content = path.read_bytes()
    return content, _predict(model, data.images[data.split(fold)[1]])


def batch_and_steps(params: Params, data: TrainingData) -> tuple[int, int]:
    """The size of a batch, and the steps of an epoch; an incomplete batch at its end is dropped.

    All folds take the same number of steps (the smallest fold's), so they share one learning-rate schedule.
    """
    rows = min(len(data.split(fold)[0]) for fold in range(data.folds.max() + 1))
    batch = min(params.train.batch_size, rows)
    return batch, rows // batch


def initial_values(params: Params, data: TrainingData, member: Member) -> list[np.ndarray]:
    """The variables of model and optimizer before the first epoch."""
    keras.utils.set_random_seed(int(member.stream("weights").integers(2**31)))
    batch, steps = batch_and_steps(params, data)
    model, optimizer, _ = _build(member.architecture, params, data.shape, batch, steps)
    return _values(model, optimizer)


def _build(architecture, params, shape, batch, steps):
    """A Keras model, its optimizer, and a function that trains it for an epoch."""
    train = params.train
    model = build_network(architecture, params.model, train.precision, *shape)
    warmup = round(train.warmup * steps * train.epochs)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else train.learning_rate,
        max(steps * train.epochs - warmup, 1),
        warmup_target=train.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = Muon(schedule, weight_decay=train.weight_decay)
    optimizer.build(model.trainable_variables)
    return model, optimizer, _epoch_function(model, optimizer, batch)


def _epoch_function(model, optimizer, batch):
    """Make a function that trains on the batches of an epoch.

    Its arguments are images and targets `(n, classes)`; n is a multiple of `batch`. It returns a tensor of
    the mean loss in nats, and the share of correct predictions.

    All steps are one call of TensorFlow, because one call from Python per step took a tenth of the time.
    Keras's `fit` is unsuitable: its input pipeline waits for threads that a single-threaded process lacks.
    """
    shapes = (None, *model.input_shape[1:]), (None, *model.output_shape[1:])

    @tf.function(input_signature=[tf.TensorSpec(shape) for shape in shapes])
    def train_on_batches(images, targets):
        steps = len(images) // batch
        total = tf.zeros(2)
        for step in tf.range(steps):
            part = slice(step * batch, (step + 1) * batch)
            with tf.GradientTape() as tape:
                probabilities = model(images[part], training=True)
                loss = tf.reduce_mean(keras.losses.categorical_crossentropy(targets[part], probabilities))
            variables = model.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)
            accuracy = tf.reduce_mean(keras.metrics.categorical_accuracy(targets[part], probabilities))
            total += tf.stack([loss, accuracy])
        return total / tf.cast(steps, tf.float32)

    return train_on_batches


# Building and compiling take seconds, so members of the same architecture share a model. Each trial of a
# sweep needs another model; the last few are cached.
_shared = lru_cache(maxsize=8)(_build)


def _variables(model, optimizer):
    return [*model.variables, *optimizer.variables]


def _values(model, optimizer):
    return [variable.numpy() for variable in _variables(model, optimizer)]


def _assign(model, optimizer, values):
    for variable, value in zip(_variables(model, optimizer), values, strict=True):
        variable.assign(value)
