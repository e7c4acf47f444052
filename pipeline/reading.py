"""How a prediction forms: what a network that reads an image's rows says after a part of them.

The stage `check` keeps the probabilities for a few digits, and the report shows them.
"""

import keras
import numpy as np
import tensorflow as tf
from fastlstm import BiLSTM

from pipeline.competition import CLASSES
from pipeline.networks import MARGIN


def find_row_reader(model: keras.Model) -> keras.Model | None:
    """The first network of an ensemble that reads the image row by row (`rows`), or None."""
    names = {layer.name for layer in model.layers}
    if "bilstm_0" in names:
        return None if "patches" in names else model
    found = (find_row_reader(layer) for layer in model.layers if isinstance(layer, keras.Model))
    return next((network for network in found if network is not None), None)


def read_in_part(network: keras.Model, images: np.ndarray) -> np.ndarray:
    """Run a network of `build_rows` on parts of its rows.

    From the top, step t is the network on the rows 0 to t alone, as if the image ended there. From the
    bottom, it is the network on the rows from t on alone. Together, it is the whole image, where the softmax
    sees only what the last layer's two directions know at row t: one has read the rows from the top to t,
    the other those from the bottom to t.

    Args:
        network: from `find_row_reader`.
        images: `(n, 28, 28)`, pixels 0..255.

    Returns:
        Probabilities from the top, from the bottom and together, `(3, n, rows, 10)`, float32.
    """
    pixels = images[:, MARGIN:-MARGIN, MARGIN:-MARGIN].astype("float32") / 255
    layers = [layer for layer in network.layers if layer.name.startswith(("bilstm", "normalization"))]
    last = max(number for number, layer in enumerate(layers) if isinstance(layer, BiLSTM))
    whole = [*layers, network.get_layer("digits")]
    before, layer, after, steps = layers[:last], layers[last], whole[last + 1 :], pixels.shape[1]
    by_step = BiLSTM.from_keras(layer.bidirectional, readout="sequence", precision=layer.precision)

    def apply(layers, values):
        for layer in layers:
            values = layer(values, training=False)
        return values

    @tf.function  # one graph; called one by one, the layers would make a graph for each number of steps
    def run(pixels):
        top = [apply(whole, pixels[:, : step + 1]) for step in range(steps)]
        bottom = [apply(whole, pixels[:, step:]) for step in range(steps)]
        states = tf.reshape(apply([*before, by_step], pixels), (-1, 2 * layer.units))
        together = tf.reshape(apply(after, states), (-1, steps, CLASSES))
        return tf.stack([tf.stack(top, axis=1), tf.stack(bottom, axis=1), together])

    return run(pixels).numpy()
