"""The BiLSTM layer's outputs and gradients: Keras's numbers, and TensorFlow 1's."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from fastlstm import BiLSTM, dispatch
from fastlstm.graph import whole_batches
from stock import (
    BATCH,
    BFLOAT16_GRADIENT,
    BFLOAT16_OUTPUT,
    FEATURES,
    READOUTS,
    RELATIVE,
    UNITS,
    assert_close,
    outcome,
    run_python,
    stock_layer,
    stock_output,
    values,
)

# The first use of the layer compiles it, which takes a minute for each precision.
pytestmark = pytest.mark.slow


CASES = [  # steps, lengths
    (1, None),
    (2, None),
    (9, None),
    (28, None),
    (1, [1, 1, 1, 1]),
    (2, [1, 2, 2, 1]),
    (7, [2, 7, 4, 1]),
]


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(("steps", "lengths"), CASES)
def test_outputs_and_gradients_are_keras_own(readout, steps, lengths):
    stock = stock_layer()
    layer = BiLSTM.from_keras(stock, readout=readout)
    x = tf.constant(values(BATCH, steps, FEATURES))
    theirs = outcome(lambda: stock_output(stock, readout, x, lengths), [x], stock.trainable_variables)
    ours = outcome(lambda: layer(x, lengths=lengths), [x], layer.trainable_variables)
    assert_close(ours, theirs)
    assert layer.fallback is None


@pytest.mark.parametrize("units", [4, 16, 32, 37])
@pytest.mark.parametrize("features", [1, 8, 10, 50])
def test_any_size_and_batch(units, features):
    """Tiles of every width and height, whole ones and what is left over."""
    stock = stock_layer(units, features)
    layer = BiLSTM.from_keras(stock)
    for batch in (16, 29):
        x = tf.constant(values(batch, 5, features))
        theirs = outcome(lambda: stock(x), [x], stock.trainable_variables)
        assert_close(outcome(lambda: layer(x), [x], layer.trainable_variables), theirs)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(("units", "features", "with_lengths"), [(37, 10, True), (48, 50, False)])
def test_bfloat16_of_any_size_and_batch(readout, units, features, with_lengths):
    """Whole blocks of samples and what is left over; a last sample that pairs with none."""
    stock = stock_layer(units, features)
    for weight in (weights := stock.get_weights()):
        weight *= 2 / np.sqrt(len(weight)) if weight.ndim > 1 else 1
    stock.set_weights(weights)
    layer = BiLSTM.from_keras(stock, readout=readout, precision="bfloat16")
    for batch in (1, 77):
        x = tf.constant(values(batch, 6, features))
        lengths = [1 + n % 6 for n in range(batch)] if with_lengths else None
        theirs = outcome(lambda: stock_output(stock, readout, x, lengths), [x], stock.trainable_variables)
        ours = outcome(lambda: layer(x, lengths=lengths), [x], layer.trainable_variables)
        assert_close(ours[:1], theirs[:1], BFLOAT16_OUTPUT)
        assert_close(ours[1:], theirs[1:], BFLOAT16_GRADIENT)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("batch", [1, 5])
def test_parts_of_a_batch_change_nothing(monkeypatch, readout, batch):
    """A batch is cut into as many parts as there are threads, even where some get no sample."""
    layer, x = BiLSTM(UNITS, readout=readout), tf.constant(values(batch, 6, FEATURES))
    results = []
    for parts in (1, 3):
        monkeypatch.setattr(dispatch, "parts_of_a_batch", lambda: parts)
        layer(x)
        results.append(
            outcome(lambda: layer(x, lengths=[6, 3, 1, 2, 4][:batch]), [x], layer.trainable_variables)
        )
    assert np.array_equal(results[0][0], results[1][0])
    assert_close(*results)


def test_a_batch_is_cut_for_threads_that_nobody_else_keeps_busy(monkeypatch):
    monkeypatch.setenv("TF_NUM_INTEROP_THREADS", "3")
    layer = BiLSTM(UNITS)
    layer.build((None, 5, FEATURES))

    def operations():
        function = tf.function(lambda x: layer(x, training=False))
        graph = function.get_concrete_function(tf.TensorSpec((None, 5, FEATURES))).graph
        return [each.type for each in graph.get_operations()].count("BilstmForward")

    assert operations() == 3
    with whole_batches():
        assert operations() == 1
    assert operations() == 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_without_weights_the_states_stay_exactly_zero(precision):
    layer = BiLSTM(UNITS, precision=precision)
    layer.build((None, 5, FEATURES))
    layer.set_weights([np.zeros_like(weight) for weight in layer.get_weights()])
    assert not np.any(layer(values(BATCH, 5, FEATURES)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("large", [1e30, 3e38, np.inf])
def test_gates_bear_any_argument(precision, large):
    stock = stock_layer(32)
    kernel, recurrent, bias = stock.forward_layer.get_weights()
    signs = np.random.default_rng(1).choice([-large, large], bias.shape)
    for lstm in (stock.forward_layer, stock.backward_layer):
        lstm.set_weights([kernel * 0, recurrent * 0, signs])
    layer, x = BiLSTM.from_keras(stock, precision=precision), values(BATCH, 5, FEATURES)
    assert_close([layer(x)], [stock(x)], BFLOAT16_OUTPUT if precision == "bfloat16" else RELATIVE)


def test_last_is_return_sequences_false():
    stock = stock_layer(return_sequences=False)
    x = values(BATCH, 6, FEATURES)
    layer = BiLSTM.from_keras(stock)
    assert layer.readout == "last"
    assert_close([layer(x)], [stock(x)])


def test_exact_numbers_from_constant_weights():
    """Every weight of a kind the same, so that all gates of a direction have the same argument."""
    steps, units = 3, 2
    layer = BiLSTM(units)
    layer.build((None, steps, 1))
    layer.set_weights(
        [
            np.full(weight.shape, value)
            for weight, value in zip(layer.get_weights(), (0.5, 0.25, 0.125, -0.5, 0.75, -0.25), strict=True)
        ]
    )

    def direction(kernel, recurrent, bias, inputs):
        h = c = 0.0
        for x in inputs:
            z = kernel * x + recurrent * units * h + bias
            gate = 1 / (1 + np.exp(-z))
            c = gate * c + gate * np.tanh(z)
            h = gate * np.tanh(c)
            yield h

    x = np.array([1.0, -2.0, 4.0])
    forward = list(direction(0.5, 0.25, 0.125, x))
    backward = list(direction(-0.5, 0.75, -0.25, x[::-1]))[::-1]
    assert forward[0] == pytest.approx(0.2256, abs=1e-4)  # by hand, z = 0.625
    expected = [[f, f, b, b] for f, b in zip(forward, backward, strict=True)]
    np.testing.assert_allclose(layer(x.reshape(1, steps, 1).astype("float32"))[0], expected, rtol=1e-5)


TENSORFLOW_1 = """
import sys

import numpy as np
import tensorflow as tf

v1, data = tf.compat.v1, dict(np.load(sys.argv[1]))
v1.disable_v2_behavior()
units, results = len(data["bias_fw"]) // 4, {}
for case in ("plain", "lengths"):
    with tf.Graph().as_default():
        x = tf.constant(data["x"])
        options = {"sequence_length": data["lengths"]} if case == "lengths" else {}
        cells = [v1.nn.rnn_cell.BasicLSTMCell(units, forget_bias=1.0) for _ in range(2)]
        outputs, *_ = v1.nn.static_bidirectional_rnn(
            *cells, tf.unstack(x, axis=1), dtype=tf.float32, **options)
        output = tf.stack(outputs, axis=1)
        weights = v1.trainable_variables()
        loss = tf.reduce_sum(output * data["direction"])
        sources = [x, *weights]
        with v1.Session() as session:
            for weight, name in zip(weights, ("kernel_fw", "bias_fw", "kernel_bw", "bias_bw")):
                weight.load(data[name], session)
            for number, value in enumerate(session.run([output, *tf.gradients(loss, sources)])):
                results[f"{case}_{number}"] = value
np.savez(sys.argv[2], **results)
"""


def to_basic_cell(kernel, recurrent, bias, forget_bias):
    """Keras's arrays as BasicLSTMCell has them: inputs above states, gates i, j, f, o."""

    def reorder(array):
        i, f, c, o = np.split(array, 4, axis=-1)
        return np.concatenate([i, c, f, o], axis=-1)

    bias = np.split(reorder(bias), 4)
    return reorder(np.concatenate([kernel, recurrent])), np.concatenate(
        [bias[0], bias[1], bias[2] - forget_bias, bias[3]]
    )


def test_outputs_and_gradients_are_tensorflow_1s(tmp_path):
    """`static_bidirectional_rnn` over `BasicLSTMCell`, as tutorials of its time used it."""
    stock, steps = stock_layer(), 6
    lengths = np.array([6, 0, 3, 1], "int32")
    x = tf.constant(values(BATCH, steps, FEATURES))
    weights = stock.get_weights()
    (kernel_fw, bias_fw), (kernel_bw, bias_bw) = (to_basic_cell(*weights[k : k + 3], 1.0) for k in (0, 3))
    np.savez(
        tmp_path / "in.npz",
        x=x,
        lengths=lengths,
        direction=values(BATCH, steps, 2 * UNITS, seed=99),
        kernel_fw=kernel_fw,
        bias_fw=bias_fw,
        kernel_bw=kernel_bw,
        bias_bw=bias_bw,
    )
    done = run_python("-c", TENSORFLOW_1, tmp_path / "in.npz", tmp_path / "out.npz", TF_USE_LEGACY_KERAS="1")
    assert done.returncode == 0, done.stderr
    theirs = np.load(tmp_path / "out.npz")

    layer = BiLSTM.from_keras(stock)
    for case, options in (("plain", {}), ("lengths", {"lengths": lengths})):
        output, d_x, *last = outcome(lambda: layer(x, **options), [x], layer.trainable_variables)
        ours = [output, d_x]
        for k in (0, 3):
            ours += to_basic_cell(*map(np.asarray, last[k : k + 3]), 0.0)
        assert_close(ours, [theirs[f"{case}_{number}"] for number in range(len(ours))])
        if case == "lengths":
            assert not np.any(output[1]) and not np.any(output[2, 3:])


@pytest.mark.parametrize("readout", READOUTS)
def test_bfloat16_stays_within_its_bound(digits, readout):
    """On real digits, at the default network's size, with Keras's initial weights."""
    keras.utils.set_random_seed(1)
    stock = keras.layers.Bidirectional(keras.layers.LSTM(128, return_sequences=True))
    x = tf.constant(digits.images[:64] / np.float32(255))
    stock.build(x.shape)
    layer = BiLSTM.from_keras(stock, readout=readout, precision="bfloat16")
    theirs = outcome(lambda: stock_output(stock, readout, x, None), [x], stock.trainable_variables)
    ours = outcome(lambda: layer(x), [x], layer.trainable_variables)
    assert all(value.dtype == "float32" for value in ours)
    assert_close(ours[:1], theirs[:1], BFLOAT16_OUTPUT)
    assert_close(ours[1:], theirs[1:], BFLOAT16_GRADIENT)
    # And it is not float32 under another name.
    assert np.abs(ours[0] - theirs[0]).max() > RELATIVE
