"""The networks: BiLSTM layers on images, a softmax over the classes, and averages of such networks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import tensorflow as tf
from fastlstm import BiLSTM, to_keras
from keras import ops

from pipeline.params import Model

# Only 1 image of MNIST in 76 has ink in its outermost pixels; they are not read.
MARGIN = 1
# Stride of a grid's patches in pixels; a patch extends OVERLAP pixels further on each side.
PATCH_HEIGHT, PATCH_WIDTH = 2, 4
OVERLAP = 1


@keras.saving.register_keras_serializable("pipeline")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer over the last axis, with one fused TensorFlow operation in training.

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
    """`keras.layers.SpatialDropout1D` and `2D`: drops a feature at all positions of a sample.

    It multiplies by the mask. Keras selects by it, which takes three times as long.
    """

    def call(self, inputs, training=False):
        if not training:
            return inputs
        _, *positions, features = inputs.shape
        ones = tf.ones((tf.shape(inputs)[0], *(1 for _ in positions), features))
        return inputs * super().call(ones, training=True)


def patches(images):
    """Overlapping patches of images: `(batch, 26, 26)` -> `(batch, 12, 6, 24)`."""
    size, strides = (PATCH_HEIGHT + 2 * OVERLAP, PATCH_WIDTH + 2 * OVERLAP), (PATCH_HEIGHT, PATCH_WIDTH)
    images = ops.expand_dims(images, -1)
    return ops.image.extract_patches(images, size, strides, padding="valid", data_format="channels_last")


@dataclass(frozen=True)
class Shape:
    """Sizes and options of a network; makes its layers."""

    layers: int  # number of BiLSTM layers
    units: int  # see `BiLSTM`
    readout: str  # see `BiLSTM`; of the last layer
    normalize: bool  # batch normalization after each BiLSTM layer
    dropout: float  # share dropped before the softmax and between layers; between those of a grid, half of it
    precision: str  # see `BiLSTM`

    def bilstm(self, number, values):
        readout = self.readout if number == self.layers - 1 else "sequence"
        return BiLSTM(self.units, readout=readout, precision=self.precision, name=f"bilstm_{number}")(values)

    def normalization(self, number, values):
        return BatchNormalization(name=f"normalization_{number}")(values) if self.normalize else values


def build_rows(images, shape: Shape):
    """Layers that read the image row by row: `(batch, rows, columns)` -> `(batch, 2 * units)`."""
    values = images
    for number in range(shape.layers):
        values = shape.normalization(number, shape.bilstm(number, values))
        if number < shape.layers - 1:
            # One mask for all steps (Gal & Ghahramani 2016), which is also far cheaper to draw.
            values = SpatialDropout(shape.dropout, name=f"dropout_{number}")(values)
    return values


def build_grid_rows(images, shape: Shape):
    """Layers that read a grid of patches along its rows and down its columns in turn.

    Each row (or column) is a sequence of its own, and the same layer reads all of them, as in ReNet (Visin et
    al. 2015). Maximum pooling after the second layer makes the grid square. The last layer's readouts are
    averaged over the rows or columns: `(batch, 26, 26)` -> `(batch, 2 * units)`.
    """
    grid = patches(images)
    for number in range(shape.layers):
        down = number % 2 == 1
        if down:
            grid = ops.transpose(grid, (0, 2, 1, 3))
        _, lines, steps, features = grid.shape
        read = shape.bilstm(number, ops.reshape(grid, (-1, steps, features)))
        read = ops.reshape(read, (-1, lines, *read.shape[1:]))
        if number == shape.layers - 1:
            return shape.normalization(number, ops.mean(read, axis=1))
        grid = ops.transpose(read, (0, 2, 1, 3)) if down else read
        if number == 1:
            pool = (PATCH_WIDTH // PATCH_HEIGHT, 1)
            grid = keras.layers.MaxPooling2D(pool, padding="same", name="pool")(grid)
        grid = shape.normalization(number, grid)
        grid = SpatialDropout(shape.dropout / 2, name=f"dropout_{number}")(grid)


def build_grid_columns(images, shape: Shape):
    """`build_grid_rows` on the transposed image: patches are upright, and columns are read first."""
    return build_grid_rows(ops.transpose(images, (0, 2, 1)), shape)


@dataclass(frozen=True)
class Architecture:
    """A kind of network."""

    build: Callable  # from pixels 0..1 `(batch, rows, columns)` and a `Shape` to features `(batch, n)`
    sizes: str = ""  # prefix of the keys `layers` and `units` in the section `model` of params.yaml


ARCHITECTURES = {
    "rows": Architecture(build_rows),
    "grid_rows": Architecture(build_grid_rows, "grid_"),
    "grid_columns": Architecture(build_grid_columns, "grid_"),
}
# `model.architecture: cycle` trains one of these in each fold, in turn; `all` trains all of them in each.
DEFAULT_ARCHITECTURES = ("grid_rows", "grid_columns")


def build_network(
    architecture: str, model: Model, precision: str, size: int = 28, classes: int = 10
) -> keras.Model:
    """Build an untrained network with the sizes of `params.yaml`, named like its architecture.

    From images `(batch, size, size)`, pixels 0..255, to probabilities `(batch, classes)`. The precision is
    that of `BiLSTM`.
    """
    kind = ARCHITECTURES[architecture]
    layers, units = (getattr(model, kind.sizes + name) for name in ("layers", "units"))
    shape = Shape(layers, units, model.readout, model.normalize, model.dropout, precision)
    images = keras.Input((size, size), name="images")
    inner = slice(MARGIN, size - MARGIN)
    pixels = keras.layers.Rescaling(1 / 255)(images[:, inner, inner])
    features = keras.layers.Dropout(shape.dropout, name="dropout")(kind.build(pixels, shape))
    probabilities = keras.layers.Dense(classes, activation="softmax", name="probabilities")(features)
    return keras.Model(images, probabilities, name=architecture)


def average(networks: Sequence[keras.Model], name: str, shift: int = 0) -> keras.Model:
    """Average the probabilities of networks with different names.

    The result is a model from images `(batch, size, size)` to probabilities `(batch, classes)`. It also
    averages over the images shifted to the left and right by up to `shift` pixels.
    """
    images = keras.Input(networks[0].input_shape[1:], name="images")
    views, size = [images], images.shape[2]
    if shift:
        padded = ops.pad(images, ((0, 0), (0, 0), (shift, shift)))
        views = [padded[:, :, start : start + size] for start in range(2 * shift + 1)]
    outputs = [network(view) for network in networks for view in views]
    probabilities = keras.layers.Average(name="probabilities")(outputs) if len(outputs) > 1 else outputs[0]
    return keras.Model(images, probabilities, name=name)


def to_stock(network: keras.Model) -> keras.Model:
    """Copy a network with Keras's own layers in place of this project's, and the same weights.

    It computes in float32, whatever the precision of the network.
    """

    def clone(layer):
        if isinstance(layer, BatchNormalization):
            return keras.layers.BatchNormalization.from_config(layer.get_config())
        if isinstance(layer, SpatialDropout):
            stock = {3: keras.layers.SpatialDropout1D, 4: keras.layers.SpatialDropout2D}
            return stock[len(layer.input.shape)](layer.rate, name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    copy = keras.models.clone_model(to_keras(network), clone_function=clone, recursive=True)
    # All but the counts of steps, which only this project's normalization has.
    copy.set_weights([weight.numpy() for weight in network.weights if weight.name != "steps"])
    return copy
