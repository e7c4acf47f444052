"""Predictions from partial images, for networks that read an image row by row.

The stage `check` saves them for a few digits, and the report shows them.
"""

import re

import keras
import numpy as np
import tensorflow as tf
from fastlstm import BiLSTM

from pipeline.architectures import MARGIN


def find_row_reader(model: keras.Model) -> keras.Model | None:
    """The first network of an ensemble whose architecture is `rows`, or None."""
    # A member is named by its architecture, with its seed if a fold has several.
    if re.fullmatch(r"rows(_\d+)?", model.name):
        return model
    networks = (find_row_reader(layer) for layer in model.layers if isinstance(layer, keras.Model))
    return next((network for network in networks if network is not None), None)


def read_in_part(network: keras.Model, images: np.ndarray) -> np.ndarray:
    """Run a network of `build_rows` on parts of its rows.

    From the top, step t is the network on rows 0 to t alone, as if the image ended there. From the bottom, it
    is the network on the rows from t on alone. Together, it is the whole image, but the softmax gets only the
    last layer's two states at row t: one direction has read rows 0 to t, the other the rows from t on.

    Args:
        network: from `find_row_reader`.
        images: `(n, size, size)`, pixels 0..255.

    Returns:
        Probabilities from the top, from the bottom and together, `(3, n, rows, classes)`, float32.
    """
    pixels = images[:, MARGIN:-MARGIN, MARGIN:-MARGIN].astype("float32") / 255
    layers = [layer for layer in network.layers if layer.name.startswith(("bilstm", "normalization"))]
    last = max(number for number, layer in enumerate(layers) if isinstance(layer, BiLSTM))
    whole = [*layers, network.get_layer("probabilities")]
    before, layer, after, steps = layers[:last], layers[last], whole[last + 1 :], pixels.shape[1]
    by_step = BiLSTM.from_keras(layer.bidirectional, readout="sequence", precision=layer.precision)

    def apply(layers, values):
        for layer in layers:
            values = layer(values, training=False)
        return values

    @tf.function  # one graph; called eagerly, each layer would build a graph for each number of steps
    def run(pixels):
        top = [apply(whole, pixels[:, : step + 1]) for step in range(steps)]
        bottom = [apply(whole, pixels[:, step:]) for step in range(steps)]
        states = tf.reshape(apply([*before, by_step], pixels), (-1, 2 * layer.units))
        together = tf.reshape(apply(after, states), (-1, steps, network.output_shape[-1]))
        return tf.stack([tf.stack(top, axis=1), tf.stack(bottom, axis=1), together])

    return run(pixels).numpy()
