"""Keras's own configurations of LSTM and Bidirectional: the same outputs, gradients and training step.

The rows follow the tests of `LSTM` and `Bidirectional` in Keras. Each says whether the fast path is used.
"""

import fastlstm
import keras
import numpy as np
import pytest
import tensorflow as tf
from stock import assert_close, values

# The first use of the layer compiles it, which takes a minute for each precision.
pytestmark = pytest.mark.slow
BATCH, STEPS, FEATURES, UNITS = 4, 6, 3, 5

MASKS = {
    "right": np.arange(STEPS) < np.array([[6], [1], [4], [3]]),
    "some empty": np.arange(STEPS) < np.array([[6], [0], [4], [0]]),
    "left": np.arange(STEPS) >= np.array([[0], [5], [2], [3]]),
    "holes": np.array([[1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 1, 0], [1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]], bool),
    "none": np.ones((BATCH, STEPS), bool),
}
FAST, STOCK = True, False
# Arguments of LSTM, call arguments, whether the fast path is used in training.
LSTMS = [
    ({}, {}, FAST),
    ({"return_sequences": True}, {}, FAST),
    ({"go_backwards": True}, {}, FAST),
    ({"go_backwards": True, "return_sequences": True}, {}, FAST),
    ({"unroll": True, "return_sequences": True}, {}, FAST),
    ({"implementation": 1}, {}, FAST),
    ({"use_bias": False}, {}, FAST),
    ({"unit_forget_bias": False, "return_sequences": True}, {}, FAST),
    ({"dropout": 0.5, "seed": 1}, {}, FAST),
    ({"dropout": 0.5, "seed": 1, "return_sequences": True, "go_backwards": True}, {}, FAST),
    ({"dropout": 0.5, "recurrent_dropout": 0.5, "seed": 1}, {}, STOCK),
    ({"kernel_regularizer": "l2", "recurrent_regularizer": "l1", "bias_regularizer": "l2"}, {}, FAST),
    ({"activity_regularizer": "l2", "return_sequences": True}, {}, FAST),
    ({"kernel_constraint": "max_norm", "bias_constraint": "non_neg"}, {}, FAST),
    ({"activation": "relu"}, {}, STOCK),
    ({"recurrent_activation": "hard_sigmoid"}, {}, STOCK),
    ({"activation": None}, {}, STOCK),
    ({"return_state": True}, {}, STOCK),
    ({"return_state": True, "return_sequences": True}, {}, STOCK),
    ({"stateful": True}, {}, STOCK),
    ({}, {"states": 2}, STOCK),
    ({"return_sequences": True, "return_state": True}, {"states": 2}, STOCK),
    ({"dtype": "float64"}, {}, STOCK),
    *(
        (arguments, {"mask": mask}, FAST)
        for mask in MASKS
        for arguments in (
            {},
            {"return_sequences": True},
            {"go_backwards": True},
            {"return_sequences": True, "go_backwards": True},
            {"zero_output_for_mask": True},
            {"return_sequences": True, "zero_output_for_mask": True},
        )
    ),
    ({"return_sequences": True, "return_state": True}, {"mask": "right"}, STOCK),
    ({"return_sequences": True}, {"mask": "right", "states": 2}, STOCK),
    ({"return_sequences": True, "unroll": True}, {"mask": "left"}, FAST),
]
# Arguments of LSTM and of Bidirectional, call arguments, whether one operation computes both directions.
BIDIRECTIONALS = [
    *(
        ({"return_sequences": sequences}, {"merge_mode": merge}, {}, FAST)
        for sequences in (False, True)
        for merge in ("concat", "sum", "ave", "mul", None)
    ),
    *(
        ({"return_sequences": sequences}, {"merge_mode": merge}, {"mask": mask}, FAST)
        for sequences in (False, True)
        for merge, mask in (("concat", "right"), ("sum", "some empty"), ("concat", "holes"), ("mul", "left"))
    ),
    ({"return_sequences": True, "return_state": True}, {}, {}, STOCK),
    ({"return_state": True}, {"merge_mode": None}, {}, STOCK),
    ({"return_sequences": True}, {}, {"states": 4}, STOCK),
    ({"return_state": True}, {}, {"states": 4, "mask": "right"}, STOCK),
    ({"stateful": True}, {}, {}, STOCK),
    ({"go_backwards": True, "return_sequences": True}, {"backward_layer": {}}, {}, STOCK),
    ({"go_backwards": True}, {"backward_layer": {}}, {"mask": "right"}, STOCK),
    ({}, {"backward_layer": {"units": 7}, "merge_mode": "concat"}, {}, STOCK),
    ({}, {"backward_layer": {"activation": "relu"}}, {}, STOCK),
    ({"use_bias": False}, {"backward_layer": {"use_bias": True}}, {}, FAST),
    ({"dropout": 0.5, "seed": 1}, {}, {}, STOCK),
    ({"activity_regularizer": "l2"}, {}, {}, STOCK),
    ({"kernel_regularizer": "l2", "unroll": True}, {"trainable": False}, {}, FAST),
]


def build(package, lstm, bidirectional=None):
    """The layer of `keras.layers` or `fastlstm`, with random weights."""
    keras.utils.set_random_seed(5)
    layer = package.LSTM(**{"units": UNITS, **lstm})
    if bidirectional is not None:
        bidirectional = dict(bidirectional)
        if (back := bidirectional.pop("backward_layer", None)) is not None:
            back = {**lstm, "units": UNITS, "go_backwards": not lstm.get("go_backwards", False), **back}
            bidirectional["backward_layer"] = package.LSTM(**back)
        layer = package.Bidirectional(layer, **bidirectional)
    layer.build((BATCH, STEPS, FEATURES))
    layer.set_weights([values(*weight.shape, seed=n) for n, weight in enumerate(layer.get_weights())])
    return layer


def outcome(layer, call, training, as_function):
    """Outputs, and gradients with respect to inputs, states and weights.

    There are two calls where the second one begins with other states, or draws other numbers.
    """
    direction = getattr(layer, "forward_layer", layer)
    calls = 2 if direction.stateful or direction.dropout or direction.recurrent_dropout else 1
    dtype = layer.compute_dtype
    units = [layer.units] * 2 if hasattr(layer, "units") else []
    units = units or [layer.forward_layer.units] * 2 + [layer.backward_layer.units] * 2
    x = tf.constant(values(BATCH, STEPS, FEATURES), dtype)
    states = [tf.constant(values(BATCH, u, seed=7 + n)) for n, u in enumerate(units[: call.get("states", 0)])]
    arguments = {"mask": tf.constant(MASKS[call["mask"]])} if "mask" in call else {}
    arguments |= {"initial_state": states} if states else {}

    def run(x):
        with tf.GradientTape() as tape:
            tape.watch([x, *states])
            outputs = []
            for _ in range(calls):
                outputs += tf.nest.flatten(layer(x, training=training, **arguments))
            losses = [tf.reduce_sum(y * values(*y.shape, seed=n)) for n, y in enumerate(outputs)]
            loss = tf.add_n(losses + [tf.cast(loss, dtype) for loss in layer.losses])
        targets = [x, *states, *layer.trainable_weights]
        return outputs, tape.gradient(loss, targets, unconnected_gradients="zero")

    outputs, gradients = (tf.function(run) if as_function else run)(x)
    return [*outputs, *gradients]


def check(stock, fast, call, is_fast):
    # Graphs only of the fast path: what Keras computes is traced by Keras's own code.
    for training, as_function in ((False, is_fast), (True, False)):
        ours = outcome(fast, call, training, as_function)
        theirs = outcome(stock, call, training, False)
        for layer in (stock, fast):
            if getattr(layer, "stateful", False):
                layer.reset_state()
        assert_close(ours, theirs)
    assert (fast.fallback is None) == is_fast, fast.fallback


def name(value):
    return str(value) if isinstance(value, dict) else None


@pytest.mark.parametrize(("arguments", "call", "is_fast"), LSTMS, ids=name)
def test_lstm(arguments, call, is_fast):
    check(build(keras.layers, arguments), build(fastlstm, arguments), call, is_fast)


@pytest.mark.parametrize(("lstm", "bidirectional", "call", "is_fast"), BIDIRECTIONALS, ids=name)
def test_bidirectional(lstm, bidirectional, call, is_fast):
    check(build(keras.layers, lstm, bidirectional), build(fastlstm, lstm, bidirectional), call, is_fast)
