"""The networks that the pipeline trains: BiLSTM layers, and a softmax, on raw 28x28 images."""

import keras

from pipeline.bilstm import BiLSTM

SIZE = 28
CLASSES = 10


def build_network(layers, units, readout, normalize, dropout, precision):
    """A stack of BiLSTM layers that reads the image row by row.

    Args:
        layers: number of BiLSTM layers; all but the last return sequences.
        units, readout, precision: see `BiLSTM`.
        normalize: batch normalization after each BiLSTM layer.
        dropout: share of values dropped between layers and before the softmax, in training.

    Returns:
        A Keras model from images `(batch, 28, 28)`, pixels 0..255, to the probabilities of the
        ten digits `(batch, 10)`.
    """
    images = keras.Input((SIZE, SIZE), name="images")
    values = keras.layers.Rescaling(1 / 255)(images)
    for layer in range(layers - 1):
        values = BiLSTM(units, precision=precision, name=f"bilstm_{layer}")(values)
        if normalize:
            values = keras.layers.BatchNormalization(name=f"normalization_{layer}")(values)
        # One mask for all steps (Gal & Ghahramani 2016): also far cheaper to draw.
        values = keras.layers.SpatialDropout1D(dropout, name=f"dropout_{layer}")(values)
    values = BiLSTM(units, readout=readout, precision=precision, name=f"bilstm_{layers - 1}")(values)
    if normalize:
        values = keras.layers.BatchNormalization(name="normalization")(values)
    values = keras.layers.Dropout(dropout, name="dropout")(values)
    digits = keras.layers.Dense(CLASSES, activation="softmax", name="digits")(values)
    return keras.Model(images, digits)
