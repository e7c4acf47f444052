"""The networks: BiLSTM layers and a softmax on raw 28x28 images; how they are averaged, loaded and run."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from fastlstm import BiLSTM
from fastlstm.graph import whole_batches
from pipeline.competition import CLASSES, SIZE
from pipeline.files import PipelineError, check_archive, one_line
from pipeline.machine import available_cores
from pipeline.params import Model

# Only 1 image in 76 has any ink in its outermost pixels; they are not read.
MARGIN = 1
# Distances between the grid's patches in pixels; a patch reaches OVERLAP pixels further to each side.
PATCH_HEIGHT, PATCH_WIDTH = 2, 4
OVERLAP = 1
# Test-time augmentation: pixels down and to the right.
SHIFTS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
# Prediction is fastest while a batch's activations stay in the processor's cache. Whole blocks of the layer.
PREDICTION_BATCH = 256


@dataclass(frozen=True)
class Shape:
    """The shape of a network, and the maker of its layers.

    Attributes:
        layers: number of BiLSTM layers.
        units: see `BiLSTM`.
        readout: see `BiLSTM`, of the last layer.
        normalize: batch normalization after each BiLSTM layer.
        dropout: share of values that training drops before the softmax and between layers; half of it
            between the layers of a grid.
        precision: see `BiLSTM`.
    """

    layers: int
    units: int
    readout: str
    normalize: bool
    dropout: float
    precision: str

    @property
    def last(self):
        return self.layers - 1

    def bilstm(self, number, values):
        readout = self.readout if number == self.last else "sequence"
        return BiLSTM(self.units, readout=readout, precision=self.precision, name=f"bilstm_{number}")(values)

    def normalization(self, number, values):
        if not self.normalize:
            return values
        return BatchNormalization(name=f"normalization_{number}")(values)


def build_rows(images, shape: Shape):
    """Layers that read the image row by row: `(batch, rows, columns)` -> `(batch, 2 * units)`."""
    values = images
    for number in range(shape.layers):
        values = shape.normalization(number, shape.bilstm(number, values))
        if number < shape.last:
            # One mask for all steps (Gal & Ghahramani 2016), which is also far cheaper to draw.
            values = SpatialDropout(shape.dropout, name=f"dropout_{number}")(values)
    return values


def build_grid_rows(images, shape: Shape):
    """Layers that read a grid of patches along its rows and down its columns in turn.

    Each row (or column) is a sequence of its own, and all are read by the same layer, as in ReNet (Visin et
    al. 2015). After the second layer, if more follow, max pooling of vertical pairs of patches makes the grid
    square. The last layer's readouts are averaged over the lines.

    Args:
        images: `(batch, 26, 26)`.
        shape: of the network.

    Returns:
        `(batch, 2 * units)`.
    """
    grid = Patches(name="patches")(images)
    for number in range(shape.layers):
        down = number % 2 == 1
        if down:
            grid = ops.transpose(grid, (0, 2, 1, 3))
        _, lines, steps, features = grid.shape
        read = shape.bilstm(number, ops.reshape(grid, (-1, steps, features)))
        read = ops.reshape(read, (-1, lines, *read.shape[1:]))
        if number == shape.last:
            break
        grid = ops.transpose(read, (0, 2, 1, 3)) if down else read
        if number == 1:
            grid = keras.layers.MaxPooling2D((PATCH_WIDTH // PATCH_HEIGHT, 1), name="maximum")(grid)
        grid = shape.normalization(number, grid)
        grid = SpatialDropout(shape.dropout / 2, name=f"dropout_{number}")(grid)
    return shape.normalization(shape.last, ops.mean(read, axis=1))


def build_grid_columns(images, shape: Shape):
    """`build_grid_rows` on the transposed image: patches stand upright, and columns are read first."""
    return build_grid_rows(ops.transpose(images, (0, 2, 1)), shape)


# Name -> builder, from pixels 0..1 `(batch, rows, columns)` to features `(batch, n)`;
# `params.py` lists the names.
ARCHITECTURES: dict[str, Callable] = {
    "rows": build_rows,
    "grid_rows": build_grid_rows,
    "grid_columns": build_grid_columns,
}


def build_network(architecture: str, *, margin: int = MARGIN, **shape) -> keras.Model:
    """Build an untrained network.

    Args:
        architecture: one of `ARCHITECTURES`.
        margin: pixels at each side of an image that are not read; a grid takes only `MARGIN`.
        **shape: see `Shape`.

    Returns:
        A Keras model from images `(batch, 28, 28)`, pixels 0..255, to the probabilities of the ten digits
        `(batch, 10)`.

    Raises:
        ValueError: there is no such architecture.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture is {architecture!r}, allowed: {', '.join(ARCHITECTURES)}")
    images = keras.Input((SIZE, SIZE), name="images")
    inner, shape = slice(margin, SIZE - margin), Shape(**shape)
    pixels = keras.layers.Rescaling(1 / 255)(images[:, inner, inner])
    features = ARCHITECTURES[architecture](pixels, shape)
    features = keras.layers.Dropout(shape.dropout, name="dropout")(features)
    digits = keras.layers.Dense(CLASSES, activation="softmax", name="digits")(features)
    return keras.Model(images, digits)


def network_of_params(architecture: str, model: Model, precision: str) -> keras.Model:
    """`build_network` with the sizes of `params.yaml` for that architecture."""
    sizes = (model.layers, model.units) if architecture == "rows" else (model.grid_layers, model.grid_units)
    shape = Shape(*sizes, model.readout, model.normalize, model.dropout, precision)
    return build_network(architecture, **asdict(shape))


@keras.saving.register_keras_serializable("pipeline")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer over the last axis, but one TensorFlow operation in training, and one for the gradient.

    Keras's own passes over the values some twenty times, which took a quarter of the training time.

    The moving averages start with a lower momentum, `(1 + steps) / (10 + steps)` as in TensorFlow's
    `ExponentialMovingAverage`, so that a short training does not end with their initial values.
    """

    def build(self, input_shape):
        super().build(input_shape)
        self.steps = self.add_weight(name="steps", initializer="zeros", trainable=False)

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable):
            return super().call(inputs, training=False)
        rows = tf.reshape(inputs, (-1, 1, 1, inputs.shape[-1]))
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=rows,
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=tf.zeros(0),
            variance=tf.zeros(0),
            epsilon=self.epsilon,
            is_training=True,
        )
        # The operation returns the unbiased variance.
        count = tf.cast(tf.shape(rows)[0], tf.float32)
        variance *= (count - 1) / count
        momentum = tf.minimum(self.momentum, (1 + self.steps) / (10 + self.steps))
        for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            average.assign(average * momentum + value * (1 - momentum))
        self.steps.assign_add(1)
        return tf.ensure_shape(tf.reshape(outputs, tf.shape(inputs)), inputs.shape)


@keras.saving.register_keras_serializable("pipeline")
class SpatialDropout(keras.layers.Dropout):
    """`keras.layers.SpatialDropout1D` and `2D`, which drop a feature at all places of a sample.

    It multiplies by the mask. Keras selects by it, which takes three times as long.
    """

    def call(self, inputs, training=False):
        if not training:
            return inputs
        _, *places, features = inputs.shape
        ones = tf.ones((tf.shape(inputs)[0], *(1 for _ in places), features))
        return inputs * super().call(ones, training=True)


@keras.saving.register_keras_serializable("pipeline")
class Patches(keras.layers.Layer):
    """Overlapping patches of images: `(batch, 26, 26)` -> `(batch, 12, 6, 24)`."""

    def call(self, images):
        return ops.image.extract_patches(
            images[..., None],
            size=(PATCH_HEIGHT + 2 * OVERLAP, PATCH_WIDTH + 2 * OVERLAP),
            strides=(PATCH_HEIGHT, PATCH_WIDTH),
            padding="valid",
            data_format="channels_last",
        )


def average(
    networks: Sequence[keras.Model], names: Sequence[str], name: str, tta: bool = False
) -> keras.Model:
    """Average the probabilities of networks.

    Args:
        networks: models from images to probabilities; they are renamed.
        names: their names within the average.
        name: the name of the average.
        tta: test-time augmentation, an average also over the image and its shifts by a pixel.

    Returns:
        A model from images `(batch, 28, 28)` to probabilities `(batch, 10)`; the only network itself if there
        is nothing to average.
    """
    if len(networks) == 1 and not tta:
        return networks[0]
    for network, its_name in zip(networks, names, strict=True):
        network.name = its_name
    images = keras.Input((SIZE, SIZE), name="images")
    inputs = _shifted(images) if tta else images
    outputs = [network(inputs) for network in networks]
    digits = keras.layers.Average(name="digits")(outputs) if len(outputs) > 1 else outputs[0]
    if tta:
        digits = ops.mean(ops.reshape(digits, (len(SHIFTS), -1, CLASSES)), axis=0)
    return keras.Model(images, digits, name=name)


def _shifted(images):
    """All shifts of all images as one batch: `(batch, 28, 28)` -> `(shifts * batch, 28, 28)`."""
    padded = ops.pad(images, ((0, 0), (1, 1), (1, 1)))
    return ops.concatenate(
        [padded[:, 1 - down : 1 - down + SIZE, 1 - right : 1 - right + SIZE] for down, right in SHIFTS]
    )


def build_ensemble(folds: Sequence[keras.Model]) -> keras.Model:
    """A model from images `(batch, 28, 28)` to the mean probabilities of the folds' models."""
    return average(folds, [f"fold_{fold}" for fold in range(len(folds))], "ensemble")


def load_network(path: str | Path) -> keras.Model:
    """Load a saved model; raises PipelineError if the file is missing or damaged."""
    try:
        check_archive(path)
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras lets those of json, h5py and the layers' own checks through
        reason = one_line(str(error), 120) or repr(error)
        raise PipelineError(f"{path}: is not a network that can be loaded: {reason}") from error


def use_one_thread_per_operation(at_once: int | None = None) -> None:
    """Set TensorFlow's threads; to be called before it computes anything.

    `predict` keeps the cores busy in its own way; the matrix products of one step are too small to share.

    Args:
        at_once: operations that run at the same time; the default is one per core.
    """
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(at_once or len(available_cores()))


def predict(model: keras.Model, images: np.ndarray, threads: int | None = None) -> np.ndarray:
    """Predict in batches, several at a time.

    Args:
        model: a model of images.
        images: `(n, 28, 28)`, pixels 0..255.
        threads: batches at a time; the default is one per core.

    Returns:
        The model's outputs, such as probabilities `(n, 10)`, float32.
    """
    # Whole batches, at least one: TensorFlow would build another graph for a smaller one.
    batches = max(1, -(-len(images) // PREDICTION_BATCH))
    filled = np.zeros((batches * PREDICTION_BATCH, *images.shape[1:]), "float32")
    filled[: len(images)] = images
    # Before the threads start; otherwise each makes its own.
    model.make_predict_function()

    def predict_batch(batch):
        with whole_batches():
            return model.predict_on_batch(batch)

    first, *others = np.split(filled, batches)
    # The first one alone: it builds the graph, which otherwise each thread would do.
    done = [predict_batch(first)]
    with ThreadPoolExecutor(threads or len(available_cores())) as pool:
        done.extend(pool.map(predict_batch, others))
    return np.concatenate(done)[: len(images)]
