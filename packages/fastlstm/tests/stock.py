"""Keras's own layer with random weights, and its outputs and gradients: the reference of the tests."""

import os
import subprocess
import sys
from pathlib import Path

import fastlstm
import keras
import numpy as np
import tensorflow as tf

UNITS, FEATURES, BATCH = 5, 3, 4
READOUTS = ("sequence", "middle", "last", "mean")
# Readout, an option, precision: half of all combinations, with every pair of values among them.
PAIRS = [
    (readout, option, ("float32", "bfloat16")[(number + option) % 2])
    for number, readout in enumerate(READOUTS)
    for option in (False, True)
]
# Of an array's largest magnitude; and absolutely, because gates have errors of some 1e-7.
RELATIVE, ABSOLUTE = 1e-5, 2e-7
# Tolerance of bfloat16 against float32, as a share of an array's largest magnitude.
BFLOAT16_OUTPUT, BFLOAT16_GRADIENT = 0.01, 0.03


def run_python(*arguments, **options):
    """Run this Python with the same package; options of `subprocess.run` and environment variables."""
    cwd = options.pop("cwd", None)
    environment = {**os.environ, "PYTHONPATH": str(Path(fastlstm.__file__).parents[1]), **options}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, text=True, capture_output=True, env=environment)


def values(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(0, 0.5, shape).astype("float32")


def stock_layer(units=UNITS, features=FEATURES, **arguments):
    """Keras's own layer with random weights, biases too."""
    layer = keras.layers.Bidirectional(keras.layers.LSTM(units, **{"return_sequences": True, **arguments}))
    layer.build((None, None, features))
    layer.set_weights(
        [values(*weight.shape, seed=number) for number, weight in enumerate(layer.get_weights())]
    )
    return layer


def fast_layer(stock, readout="sequence", precision="float32"):
    """A BiLSTM with the weights of Keras's layer."""
    layer = fastlstm.BiLSTM(stock.forward_layer.units, readout, precision)
    layer.build((None, None, stock.forward_layer.cell.kernel.shape[0]))
    layer.set_weights(stock.get_weights())
    return layer


def stock_output(stock, readout, x, lengths):
    """Output of Keras's layer, run on the samples of each length separately and truncated to it."""
    steps, units = x.shape[1], stock.forward_layer.units
    lengths = np.full(len(x), steps) if lengths is None else np.array(lengths)
    outputs, order = [], []
    for length in set(lengths):
        rows = np.flatnonzero(lengths == length)
        sequence = stock(tf.gather(x, rows)[:, :length])
        outputs.append(read(sequence, readout, steps, length, units))
        order.extend(rows)
    return tf.gather(tf.concat(outputs, axis=0), np.argsort(order))


def read(sequence, readout, steps, length, units):
    whole = tf.pad(sequence, ((0, 0), (0, steps - length), (0, 0)))
    return {
        "sequence": whole,
        "middle": whole[:, steps // 2],
        "last": tf.concat([sequence[:, -1, :units], sequence[:, 0, units:]], axis=-1),
        "mean": tf.reduce_mean(sequence, axis=1),
    }[readout]


def outcome(call, inputs, weights):
    """The output, and the gradients of a random sum of it with respect to inputs and weights."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        output = call()
        loss = tf.reduce_sum(output * values(*output.shape, seed=99))
    gradients = tape.gradient(loss, [*inputs, *weights], unconnected_gradients="zero")
    return [output, *map(tf.convert_to_tensor, gradients)]


def assert_close(ours, theirs, relative=RELATIVE):
    assert len(ours) == len(theirs)
    for one, other in zip(map(np.asarray, ours), map(np.asarray, theirs), strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max(initial=0) <= relative * np.abs(other).max(initial=0) + ABSOLUTE
