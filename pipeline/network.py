"""The networks that the pipeline trains: BiLSTM layers, and a softmax, on raw 28x28 images."""

import keras
from keras import ops

from pipeline.bilstm import BiLSTM

SIZE = 28
CLASSES = 10
# Only 1 image in 76 has any ink in its outermost pixels; they are not read.
MARGIN = 1
# The grid's patches are so many pixels apart, and reach one further to each side.
PATCH_HEIGHT, PATCH_WIDTH = 2, 4
OVERLAP = 1


def build_network(reader, *, layers, units, readout, normalize, dropout, precision, margin=MARGIN):
    """A network of one of three kinds.

    Args:
        reader: `"rows"`, see `read_rows`; `"grid_rows"`, see `read_grid`; `"grid_columns"`, the same on
            the transposed image, so that patches stand upright and columns are read first.
        layers: number of BiLSTM layers; units, readout, precision: see `BiLSTM`.
        normalize: batch normalization after each BiLSTM layer.
        dropout: share of values that training drops before the softmax and between layers; between
            the layers of a grid, half of it.
        margin: pixels at each side of an image that are not read; a grid takes no other than `MARGIN`.

    Returns:
        A Keras model from images `(batch, 28, 28)`, pixels 0..255, to the probabilities of the
        ten digits `(batch, 10)`.
    """
    images = keras.Input((SIZE, SIZE), name="images")
    read = slice(margin, SIZE - margin)
    values = keras.layers.Rescaling(1 / 255)(images[:, read, read])
    if reader == "grid_columns":
        values = ops.transpose(values, (0, 2, 1))

    def bilstm(layer, values):
        last = layer == layers - 1
        return BiLSTM(units, readout=readout if last else "sequence", precision=precision,
                      name=f"bilstm_{layer}")(values)

    def normalized(layer, values):
        return keras.layers.BatchNormalization(name=f"normalization_{layer}")(values) if normalize else values

    read_image = read_rows if reader == "rows" else read_grid
    values = read_image(values, layers, bilstm, normalized, dropout)
    values = keras.layers.Dropout(dropout, name="dropout")(values)
    digits = keras.layers.Dense(CLASSES, activation="softmax", name="digits")(values)
    return keras.Model(images, digits)


def read_rows(images, layers, bilstm, normalized, dropout):
    """A stack of layers that read the image row by row: `(batch, rows, columns)` -> `(batch, 2 * units)`."""
    values = images
    for layer in range(layers):
        values = normalized(layer, bilstm(layer, values))
        if layer < layers - 1:
            # One mask for all steps (Gal & Ghahramani 2016): also far cheaper to draw.
            values = keras.layers.SpatialDropout1D(dropout, name=f"dropout_{layer}")(values)
    return values


def read_grid(images, layers, bilstm, normalized, dropout):
    """Layers that read a grid of patches along its rows and down its columns in turn.

    A row (or column) is a sequence of its own, all are read by the same layer, as in ReNet (Visin et
    al. 2015). After the second layer, if more follow, the maximum of each two patches that lie one above
    the other makes the grid square. The last layer's readouts are averaged.

    Args:
        images: `(batch, 26, 26)`.
        bilstm, normalized: functions of a layer's number and values, see `build_network`.

    Returns:
        `(batch, 2 * units)`.
    """
    grid = Patches(name="patches")(images)
    for layer in range(layers):
        down, last = layer % 2 == 1, layer == layers - 1
        if down:
            grid = ops.transpose(grid, (0, 2, 1, 3))
        _, lines, steps, features = grid.shape
        read = bilstm(layer, ops.reshape(grid, (-1, steps, features)))
        if last:
            read = ops.mean(ops.reshape(read, (-1, lines, read.shape[-1])), axis=1)
            return normalized(layer, read)
        grid = ops.reshape(read, (-1, lines, steps, read.shape[-1]))
        if down:
            grid = ops.transpose(grid, (0, 2, 1, 3))
        if layer == 1:
            grid = keras.layers.MaxPooling2D((PATCH_WIDTH // PATCH_HEIGHT, 1), name="maximum")(grid)
        grid = keras.layers.SpatialDropout2D(dropout / 2, name=f"dropout_{layer}")(normalized(layer, grid))


@keras.saving.register_keras_serializable("pipeline")
class Patches(keras.layers.Layer):
    """Overlapping patches of images: `(batch, 26, 26)` -> `(batch, 12, 6, 24)`."""

    def call(self, images):
        return ops.image.extract_patches(
            images[..., None], size=(PATCH_HEIGHT + 2 * OVERLAP, PATCH_WIDTH + 2 * OVERLAP),
            strides=(PATCH_HEIGHT, PATCH_WIDTH), padding="valid")
