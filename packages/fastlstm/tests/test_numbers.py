"""Outputs and gradients of the compiled operations: the numbers of the NumPy reference."""

import numpy as np
import pytest
import tensorflow as tf
from fastlstm import BiLSTM, graph
from fastlstm.graph import whole_batches
from reference import lstm, lstm_gradient
from stock import (
    BATCH,
    BFLOAT16_GRADIENT,
    BFLOAT16_OUTPUT,
    FEATURES,
    READOUTS,
    RELATIVE,
    UNITS,
    assert_close,
    fast_layer,
    outcome,
    stock_layer,
    values,
)

# The first use of the layer compiles it.
pytestmark = pytest.mark.slow


def random_layer(units, features, readout, precision):
    layer = BiLSTM(units, readout=readout, precision=precision)
    layer.build((None, None, features))
    weights = [values(*weight.shape, seed=number) for number, weight in enumerate(layer.get_weights())]
    layer.set_weights([w * 2 / np.sqrt(len(w)) if w.ndim > 1 else w for w in weights])
    return layer


def readout_weights(readout, mask):
    """`(batch, time, time or 1)` for each direction: the share of each step's states in each output."""
    batch, time = mask.shape
    if readout == "sequence":
        return [np.tile(np.eye(time), (batch, 1, 1))] * 2
    if readout == "mean":
        return [(mask / mask.sum(1, keepdims=True))[:, :, None]] * 2
    last = mask.sum(1).astype(int) - 1
    places = (np.full(batch, time // 2),) * 2 if readout == "middle" else (last, np.zeros(batch, int))
    return [np.eye(time)[place][:, :, None] for place in places]


def reference(layer, x, lengths):
    """Output and gradients as `outcome` has them."""
    batch, time, _ = x.shape
    mask = np.ones((batch, time)) if lengths is None else (np.arange(time) < np.array(lengths)[:, None]) * 1.0
    x, weights = np.asarray(x, "float64"), [weight.astype("float64") for weight in layer.get_weights()]
    shares, outputs, runs = readout_weights(layer.readout, mask), [], []
    for d, order in enumerate((slice(None), slice(None, None, -1))):
        h, steps = lstm(x[:, order], *weights[3 * d : 3 * d + 3], mask[:, order])
        outputs.append(np.einsum("btu,bts->bsu", h[:, order], shares[d]))
        runs.append((order, steps))
    output = np.concatenate(outputs, axis=-1)
    d_output = values(*(output.shape if layer.readout == "sequence" else output[:, 0].shape), seed=99)
    d_x, gradients = 0, []
    for d, (order, steps) in enumerate(runs):
        d_part = np.split(d_output.reshape(output.shape), 2, axis=-1)[d]
        d_h = np.einsum("bsu,bts->btu", d_part, shares[d]) * mask[:, :, None]
        kernel, recurrent, _ = weights[3 * d : 3 * d + 3]
        d_inputs, *others = lstm_gradient(
            x[:, order], kernel, recurrent, mask[:, order], steps, d_h[:, order]
        )
        d_x, gradients = d_x + d_inputs[:, order], gradients + others
    return [output if layer.readout == "sequence" else output[:, 0], d_x, *gradients]


def compare(layer, x, lengths=None):
    ours = outcome(lambda: layer(x, lengths=lengths), [x], layer.trainable_variables)
    assert layer.fallback is None
    theirs = reference(layer, x, lengths)
    in_bfloat16 = layer.precision == "bfloat16"
    assert_close(ours[:1], theirs[:1], BFLOAT16_OUTPUT if in_bfloat16 else RELATIVE)
    assert_close(ours[1:], theirs[1:], BFLOAT16_GRADIENT if in_bfloat16 else RELATIVE)


CASES = [  # steps, lengths
    (1, None),
    (2, None),
    (9, None),
    (28, None),
    (1, [1, 1, 1, 1]),
    (2, [1, 2, 2, 1]),
    (7, [2, 7, 4, 1]),
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(("steps", "lengths"), CASES)
def test_steps_lengths_and_readouts(readout, steps, lengths, precision):
    compare(
        random_layer(UNITS, FEATURES, readout, precision),
        tf.constant(values(BATCH, steps, FEATURES)),
        lengths,
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("units", "features"), [(4, 1), (16, 8), (32, 50), (37, 10), (48, 16)])
def test_any_size_and_batch(units, features, precision):
    """Tiles of every width and height, whole ones and remainders, and more steps than share a product."""
    layer = random_layer(units, features, "sequence", precision)
    for batch, steps in ((1, 17), (16, 5), (29, 9), (29, 33), (77, 5)):
        compare(layer, tf.constant(values(batch, steps, features)))


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("batch", [1, 5])
def test_parts_of_a_batch_change_nothing(monkeypatch, readout, batch):
    """A batch is divided among operations, even if some get no sample."""
    layer, x = BiLSTM(UNITS, readout=readout), tf.constant(values(batch, 6, FEATURES))
    results = []
    for parts in (1, 3):
        monkeypatch.setattr(graph, "parts_of_a_batch", lambda: parts)
        layer(x)
        results.append(
            outcome(lambda: layer(x, lengths=[6, 3, 1, 2, 4][:batch]), [x], layer.trainable_variables)
        )
    assert np.array_equal(results[0][0], results[1][0])
    assert_close(*results)


def test_a_batch_is_divided_unless_the_caller_keeps_every_core_busy(monkeypatch):
    monkeypatch.setenv("TF_NUM_INTEROP_THREADS", "3")
    layer = BiLSTM(UNITS)
    layer.build((None, 5, FEATURES))

    def operations():
        function = tf.function(lambda x: layer(x, training=False))
        graph = function.get_concrete_function(tf.TensorSpec((None, 5, FEATURES))).graph
        return sum(operation.type.startswith("FastlstmForward") for operation in graph.get_operations())

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
    for layer in (stock.forward_layer, stock.backward_layer):
        layer.set_weights([kernel * 0, recurrent * 0, signs])
    layer, x = fast_layer(stock, precision=precision), values(BATCH, 5, FEATURES)
    assert_close([layer(x)], [stock(x)], BFLOAT16_OUTPUT if precision == "bfloat16" else RELATIVE)
