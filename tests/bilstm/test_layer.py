"""The BiLSTM layer: Keras's numbers, TensorFlow 1's numbers, and at home in every way to use a layer."""

from unittest.mock import Mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import run_python

from pipeline.bilstm import BiLSTM, graph
from pipeline.bilstm import layer as layer_module
from pipeline.bilstm.graph import whole_batches
from pipeline.bilstm.kernels import KEEP, WITH_INPUT
from pipeline.bilstm.ops import operation

# The first use of the layer compiles it, which takes a minute for each precision.
pytestmark = pytest.mark.slow

UNITS, FEATURES, BATCH = 5, 3, 4
READOUTS = ("sequence", "middle", "last", "mean")
RELATIVE = 1e-5  # of an array's largest magnitude
# What bfloat16 products may differ from float32, as a share of an array's largest magnitude.
BFLOAT16_OUTPUT, BFLOAT16_GRADIENT = 0.01, 0.03


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


def states():
    return [tf.constant(values(BATCH, UNITS, seed=seed)) for seed in (10, 11, 12, 13)]


def stock_output(stock, readout, x, initial_state, lengths):
    """What Keras's layer says, each sample on its own and cut to its length."""
    steps, units = x.shape[1], stock.forward_layer.units
    if lengths is None:
        return read(stock(x, initial_state=initial_state), readout, steps, steps, units)
    return tf.concat(
        [
            read(
                stock(
                    x[n : n + 1, :length],
                    initial_state=initial_state and [state[n : n + 1] for state in initial_state],
                ),
                readout,
                steps,
                length,
                units,
            )
            for n, length in enumerate(lengths)
        ],
        axis=0,
    )


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
    return [output, *tape.gradient(loss, [*inputs, *weights], unconnected_gradients="zero")]


def assert_close(ours, theirs, relative=RELATIVE):
    assert len(ours) == len(theirs)
    for one, other in zip(map(np.asarray, ours), map(np.asarray, theirs), strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= relative * np.abs(other).max()


CASES = [  # steps, with initial states, lengths
    (1, False, None),
    (2, False, None),
    (3, True, None),
    (8, False, None),
    (9, True, None),
    (28, False, None),
    (1, True, [1, 1, 1, 1]),
    (2, False, [1, 2, 2, 1]),
    (6, False, [6, 1, 3, 4]),
    (7, True, [2, 7, 4, 1]),
]


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(("steps", "with_states", "lengths"), CASES)
def test_outputs_and_gradients_are_keras_own(readout, steps, with_states, lengths):
    stock = stock_layer()
    layer = BiLSTM.from_keras(stock, readout=readout)
    x = tf.constant(values(BATCH, steps, FEATURES))
    initial = states() if with_states else None
    inputs = [x, *(initial or [])]
    theirs = outcome(
        lambda: stock_output(stock, readout, x, initial, lengths), inputs, stock.trainable_variables
    )
    ours = outcome(
        lambda: layer(x, initial_state=initial, lengths=lengths), inputs, layer.trainable_variables
    )
    assert_close(ours, theirs)


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
@pytest.mark.parametrize(("units", "features"), [(37, 10), (48, 50)])
@pytest.mark.parametrize("with_lengths", [False, True])
def test_bfloat16_of_any_size_and_batch(readout, units, features, with_lengths):
    """Whole blocks of samples and what is left over; a last sample that pairs with none."""
    exact = BiLSTM.from_keras(stock_layer(units, features), readout=readout)
    rough = BiLSTM(units, readout=readout, precision="bfloat16")
    rough.build((None, 6, features))
    for weight in (weights := exact.get_weights()):
        weight *= 2 / np.sqrt(len(weight)) if weight.ndim > 1 else 1
    for layer in (exact, rough):
        layer.set_weights(weights)
    for batch in (1, 77):
        x = tf.constant(values(batch, 6, features))
        initial = [tf.constant(values(batch, units, seed=seed)) for seed in (10, 11, 12, 13)]
        lengths = [1 + n % 6 for n in range(batch)] if with_lengths else None
        found, expected = (
            outcome(
                lambda: layer(x, initial_state=initial, lengths=lengths),
                [x, *initial],
                layer.trainable_variables,
            )
            for layer in (rough, exact)
        )
        assert_close(found[:1], expected[:1], BFLOAT16_OUTPUT)
        assert_close(found[1:], expected[1:], BFLOAT16_GRADIENT)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("batch", [1, 5])
def test_parts_of_a_batch_change_nothing(monkeypatch, readout, batch):
    """A batch is cut into as many parts as there are threads, even where some get no sample."""
    layer, x = BiLSTM(UNITS, readout=readout), tf.constant(values(batch, 6, FEATURES))
    initial = [tf.constant(values(batch, UNITS, seed=seed)) for seed in (10, 11, 12, 13)]
    results = []
    for parts in (1, 3):
        monkeypatch.setattr(layer_module, "parts_of_a_batch", lambda: parts)
        layer(x)
        results.append(
            outcome(
                lambda: layer(x, initial_state=initial, lengths=[6, 3, 1, 2, 4][:batch]),
                [x, *initial],
                layer.trainable_variables,
            )
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
units, results = data["h_fw"].shape[1], {}
for case in ("plain", "full"):
    with tf.Graph().as_default():
        x = tf.constant(data["x"])
        states = {name: tf.constant(data[name]) for name in ("h_fw", "c_fw", "h_bw", "c_bw")}
        options = {"dtype": tf.float32}
        if case == "full":
            options |= {
                "initial_state_fw": v1.nn.rnn_cell.LSTMStateTuple(states["c_fw"], states["h_fw"]),
                "initial_state_bw": v1.nn.rnn_cell.LSTMStateTuple(states["c_bw"], states["h_bw"]),
                "sequence_length": data["lengths"]}
        cells = [v1.nn.rnn_cell.BasicLSTMCell(units, forget_bias=1.0) for _ in range(2)]
        outputs, *_ = v1.nn.static_bidirectional_rnn(*cells, tf.unstack(x, axis=1), **options)
        output = tf.stack(outputs, axis=1)
        weights = v1.trainable_variables()
        loss = tf.reduce_sum(output * data["direction"])
        sources = [x, *(states.values() if case == "full" else ()), *weights]
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
    x, initial = tf.constant(values(BATCH, steps, FEATURES)), states()
    weights = stock.get_weights()
    (kernel_fw, bias_fw), (kernel_bw, bias_bw) = (to_basic_cell(*weights[k : k + 3], 1.0) for k in (0, 3))
    names = ("h_fw", "c_fw", "h_bw", "c_bw")
    np.savez(
        tmp_path / "in.npz",
        x=x,
        lengths=lengths,
        direction=values(BATCH, steps, 2 * UNITS, seed=99),
        kernel_fw=kernel_fw,
        bias_fw=bias_fw,
        kernel_bw=kernel_bw,
        bias_bw=bias_bw,
        **dict(zip(names, map(np.asarray, initial), strict=True)),
    )
    done = run_python("-c", TENSORFLOW_1, tmp_path / "in.npz", tmp_path / "out.npz", TF_USE_LEGACY_KERAS="1")
    assert done.returncode == 0, done.stderr
    theirs = np.load(tmp_path / "out.npz")

    layer = BiLSTM.from_keras(stock)
    for case, inputs, options in (
        ("plain", [x], {}),
        ("full", [x, *initial], {"initial_state": initial, "lengths": lengths}),
    ):
        output, *gradients = outcome(lambda: layer(x, **options), inputs, layer.trainable_variables)
        ours, last = [output, *gradients[: len(inputs)]], gradients[len(inputs) :]
        for k in (0, 3):
            ours += to_basic_cell(*map(np.asarray, last[k : k + 3]), 0.0)
        assert_close(ours, [theirs[f"{case}_{number}"] for number in range(len(ours))])
        if case == "full":
            assert not np.any(output[1]) and not np.any(output[2, 3:])


@pytest.mark.parametrize("readout", READOUTS)
def test_bfloat16_stays_within_its_bound(digits, readout):
    """On real digits, at the default network's size, with Keras's initial weights."""
    keras.utils.set_random_seed(1)
    exact = BiLSTM(128, readout=readout)
    x = tf.constant(digits.images[:64] / np.float32(255))
    exact(x)
    rough = BiLSTM(128, readout=readout, precision="bfloat16")
    rough.build(x.shape)
    rough.set_weights(exact.get_weights())
    (output, *gradients), (rough_output, *rough_gradients) = (
        outcome(lambda: layer(x), [x], layer.trainable_variables) for layer in (exact, rough)
    )
    assert rough_output.dtype == "float32"
    assert all(gradient.dtype == "float32" for gradient in rough_gradients)
    assert_close([rough_output], [output], BFLOAT16_OUTPUT)
    assert_close(rough_gradients, gradients, BFLOAT16_GRADIENT)
    # And it is not float32 under another name.
    assert np.abs(rough_output - output).max() > RELATIVE


# To and from Keras


@pytest.mark.parametrize(
    ("returns_sequences", "readout"),
    [(True, None), (True, "middle"), (True, "mean"), (False, None), (False, "last")],
)
def test_there_and_back(returns_sequences, readout):
    stock = stock_layer(return_sequences=returns_sequences)
    layer = BiLSTM.from_keras(stock, readout=readout, precision="bfloat16")
    again = layer.to_keras()
    assert layer.precision == "bfloat16"
    assert again.forward_layer.return_sequences == returns_sequences
    for ours, back, theirs in zip(layer.get_weights(), again.get_weights(), stock.get_weights(), strict=True):
        assert np.array_equal(ours, theirs) and np.array_equal(back, theirs)


# In use


def small_network(precision="float32"):
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Rescaling(1 / 255),
            BiLSTM(8, precision=precision),
            BiLSTM(8, readout="mean", precision=precision),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


@pytest.mark.parametrize("readout", READOUTS)
def test_the_output_shape_is_known_beforehand(readout):
    layer = BiLSTM(UNITS, readout=readout)
    symbolic = layer(keras.Input((6, FEATURES)))
    assert symbolic.shape[1:] == layer(values(2, 6, FEATURES)).shape[1:]
    assert layer.compute_output_shape((2, 6, FEATURES)) == layer(values(2, 6, FEATURES)).shape


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fit(digits, precision):
    model = small_network(precision)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    # The last batch of an epoch is smaller.
    losses = model.fit(digits.images, digits.labels, batch_size=64, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]


def test_custom_loop_in_and_out_of_a_graph(digits):
    model = small_network()

    def step(images, labels):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, model(images)))
        return [loss, *tape.gradient(loss, model.trainable_variables)]

    in_graph = tf.function(
        step, input_signature=[tf.TensorSpec((None, 28, 28)), tf.TensorSpec((None,), tf.int32)]
    )
    for batch in (1, 2, 7):
        arguments = (
            tf.constant(digits.images[:batch], tf.float32),
            tf.constant(digits.labels[:batch], tf.int32),
        )
        assert_close(in_graph(*arguments), step(*arguments))


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("training", [None, False])
def test_a_gradient_can_be_taken_again(readout, training):
    """The backward pass works in the forward one's memory, unless somebody still needs that."""
    layer = BiLSTM(UNITS, readout=readout)
    x = tf.constant(values(3, 6, FEATURES))
    plain = layer(x)

    @tf.function
    def gradients():
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            output = layer(x, training=training)
            first, second = output[0], 2 * output[0]
        return output, tape.gradient(first, x), tape.gradient(second, x)

    output, once, twice = gradients()
    assert_close([2 * once], [twice])
    assert_close([output], [plain])


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("training", [None, False])
def test_a_persistent_tape_works_outside_of_a_graph(readout, precision, training):
    layer = BiLSTM(UNITS, readout=readout, precision=precision)
    x = tf.constant(values(3, 6, FEATURES))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        output = layer(x, training=training)
        first, second = output[0], 2 * output[0]
    with tf.GradientTape() as once:
        once.watch(x)
        again = layer(x)[0]
    to = [x, *layer.trainable_variables]
    expected = once.gradient(again, to)
    assert_close(tape.gradient(first, to), expected)
    assert_close(tape.gradient(second, to), [2 * value for value in expected])


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("with_states", "lengths"), [(False, None), (True, [2, 6, 4, 1])])
def test_prediction_is_the_same_and_has_the_same_gradient(readout, precision, with_states, lengths):
    """`training=False` keeps nothing for the gradient, and runs once more if that is asked for."""
    layer = BiLSTM(UNITS, readout=readout, precision=precision)
    x, initial = tf.constant(values(BATCH, 6, FEATURES)), states() if with_states else None
    layer(x)
    inputs = [x, *(initial or [])]
    predicted, trained = (
        outcome(
            lambda: layer(x, initial_state=initial, lengths=lengths, training=training),
            inputs,
            layer.trainable_variables,
        )
        for training in (False, True)
    )
    for one, other in zip(predicted, trained, strict=True):
        assert one.numpy().tobytes() == other.numpy().tobytes()


def test_only_training_keeps_what_the_gradient_needs(monkeypatch, digits):
    kept = set()

    def spy(name, dtype, numbers, *inputs):
        if name == "BilstmForward":
            kept.add(int(tf.get_static_value(numbers)[KEEP]))
        return operation(name, dtype, numbers, *inputs)

    monkeypatch.setattr(graph, "operation", spy)
    # In a network within a network, as the ensemble has them.
    inner, images = small_network(), keras.Input((28, 28))
    model = keras.Model(images, inner(images))
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.predict_on_batch(digits.images[:2])
    assert kept == {0}
    kept.clear()
    model.train_on_batch(digits.images[:2], digits.labels[:2])
    assert kept == {1}


def test_the_gradient_of_the_images_is_not_computed_in_training(monkeypatch, digits):
    """But that of the second layer's inputs is, and that of the images for whoever asks for it."""
    asked = []

    def spy(name, dtype, numbers, *inputs):
        if name == "BilstmBackward":
            asked.append(int(tf.get_static_value(numbers)[WITH_INPUT]))
        return operation(name, dtype, numbers, *inputs)

    monkeypatch.setattr(graph, "operation", spy)
    with whole_batches():
        model = small_network()
        model.compile("sgd", "sparse_categorical_crossentropy")
        model.train_on_batch(digits.images[:2], digits.labels[:2])
        assert asked == [1, 0]

        @tf.function
        def saliency(images):
            with tf.GradientTape() as tape:
                tape.watch(images)
                output = model(images)[:, 0]
            return tape.gradient(output, images)

        assert np.any(saliency(tf.constant(digits.images[:2], tf.float32)))
        assert asked == [1, 0, 1, 1]


@pytest.mark.parametrize("wrong", ["lengths", "states", "units", "features"])
def test_wrong_shapes_are_refused(wrong):
    """The compiled steps rely on them."""
    layer = BiLSTM(UNITS)
    x = values(BATCH, 6, FEATURES)
    layer(x)
    arguments = {
        "lengths": {"lengths": [6] * (BATCH - 1)},
        "states": {"initial_state": [values(BATCH + 1, UNITS)] * 4},
        "units": {"initial_state": [*[values(BATCH, UNITS)] * 3, values(BATCH, UNITS + 1)]},
        "features": {},
    }[wrong]
    with pytest.raises(ValueError, match="shape"):
        layer(x[..., 1:] if wrong == "features" else x, **arguments)


@pytest.mark.parametrize("argument", ["lengths", "initial_state"])
def test_a_wrong_batch_is_refused_where_only_the_run_knows_it(argument):
    layer = BiLSTM(UNITS)
    x = values(BATCH, 6, FEATURES)
    layer(x)

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 6, FEATURES)),
            tf.TensorSpec((None,), tf.int32),
            tf.TensorSpec((None, UNITS)),
        ]
    )
    def run(x, lengths, state):
        return layer(x, **({"lengths": lengths} if argument == "lengths" else {"initial_state": [state] * 4}))

    lengths, state = [6, 5, 4, 3], values(BATCH, UNITS)
    assert run(x, lengths, state).shape == (BATCH, 6, 2 * UNITS)
    with pytest.raises(tf.errors.InvalidArgumentError, match="the batch of"):
        run(x, lengths[1:], state[1:])


def test_a_second_derivative_is_refused():
    layer = BiLSTM(UNITS, readout="mean")
    x = tf.constant(values(3, 6, FEATURES))
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            output = layer(x)
        slope = inner.gradient(output, x)
    with pytest.raises(tf.errors.InvalidArgumentError, match="cannot be differentiated twice"):
        outer.gradient(slope, x)


@pytest.mark.parametrize("readout", READOUTS)
def test_a_sample_does_not_depend_on_its_batch(readout):
    layer = BiLSTM(UNITS, readout=readout)
    x = values(9, 6, FEATURES)
    whole = layer(x)
    for batch in (1, 2, 5):
        assert_close([layer(x[:batch])], [whole[:batch]])


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(
    ("with_states", "lengths"), [(False, None), (True, None), (False, [6, 1, 3, 4]), (True, [2, 6, 4, 1])]
)
def test_the_hand_over_to_keras_on_a_gpu_changes_nothing(monkeypatch, readout, with_states, lengths):
    layer = BiLSTM.from_keras(stock_layer(), readout=readout)
    x, initial = tf.constant(values(BATCH, 6, FEATURES)), states() if with_states else None
    inputs = [x, *(initial or [])]

    def run():
        return outcome(
            lambda: layer(x, initial_state=initial, lengths=lengths), inputs, layer.trainable_variables
        )

    ours = run()
    handed_over = Mock(side_effect=BiLSTM._call_keras, autospec=True)
    monkeypatch.setattr(BiLSTM, "_call_keras", lambda *arguments: handed_over(*arguments))
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: [kind])
    theirs = run()
    handed_over.assert_called_once()
    assert_close(ours, theirs)


@pytest.mark.parametrize("readout", READOUTS)
def test_functions_that_run_eagerly_compute_the_same(readout):
    layer = BiLSTM.from_keras(stock_layer(), readout=readout)
    x = tf.constant(values(BATCH, 6, FEATURES))
    ours = outcome(lambda: layer(x), [x], layer.trainable_variables)
    tf.config.run_functions_eagerly(True)
    try:
        theirs = outcome(lambda: layer(x), [x], layer.trainable_variables)
    finally:
        tf.config.run_functions_eagerly(False)
    assert_close(ours, theirs)


def test_an_exported_network_needs_no_operation_of_ours(tmp_path):
    model = keras.Sequential([keras.Input((6, FEATURES)), BiLSTM(UNITS, "mean")])
    x = values(2, 6, FEATURES)
    expected = model.predict(x, verbose=0)  # has traced a graph with our operations
    model.export(tmp_path / "exported", verbose=False)
    tf.saved_model.save(model, tmp_path / "saved")
    for name in ("exported", "saved"):
        graph = (tmp_path / name / "saved_model.pb").read_bytes()
        assert b"Bilstm" not in graph and b"While" in graph
    loaded = tf.saved_model.load(tmp_path / "exported")
    assert_close([loaded.serve(x)], [expected])


@pytest.mark.parametrize(
    "imports",
    ["import pipeline, keras", "import keras, pipeline", "from pipeline.bilstm import BiLSTM; import keras"],
)
def test_a_saved_network_loads_after_import_pipeline(digits, tmp_path, imports):
    model = small_network()
    images = digits.images[:5].astype("float32")
    model.save(tmp_path / "network.keras")
    np.save(tmp_path / "images.npy", images)
    done = run_python(
        "-c",
        f"""
{imports}
import numpy as np
network = keras.models.load_model("network.keras")
np.save("network.npy", network(np.load("images.npy")))
""",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert_close([np.load(tmp_path / "network.npy")], [model(images)])


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_saving_keeps_everything(tmp_path, readout, precision):
    model = keras.Sequential([keras.Input((6, FEATURES)), BiLSTM(UNITS, readout, precision, name="it")])
    model.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    layer = loaded.get_layer("it")
    assert (layer.units, layer.readout, layer.precision) == (UNITS, readout, precision)
    x = values(2, 6, FEATURES)
    assert np.array_equal(loaded(x), model(x))


def test_states_and_lengths_in_a_saved_model(tmp_path):
    inputs = keras.Input((6, FEATURES))
    others = [keras.Input((), dtype="int32"), *(keras.Input((UNITS,)) for _ in range(4))]
    layer = BiLSTM(UNITS, readout="mean")
    model = keras.Model([inputs, *others], layer(inputs, lengths=others[0], initial_state=others[1:]))
    model.save(tmp_path / "network.keras")
    x, lengths = values(BATCH, 6, FEATURES), np.array([6, 1, 3, 4])
    loaded = keras.models.load_model(tmp_path / "network.keras")
    output = loaded([tf.constant(x), tf.constant(lengths), *states()])
    assert_close([output], [layer(x, lengths=lengths, initial_state=states())])


def test_a_clone_is_built_from_the_config():
    layer = BiLSTM(UNITS, readout="mean", precision="bfloat16", name="it")
    again = BiLSTM.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


def test_a_wrong_number_of_features_is_refused_where_only_the_run_knows_it():
    layer = BiLSTM(UNITS)
    layer.build((None, 6, FEATURES))
    run = tf.function(layer, input_signature=[tf.TensorSpec((None, 6, None))])
    assert run(np.zeros((2, 6, FEATURES), "float32")).shape == (2, 6, 2 * UNITS)
    with pytest.raises(tf.errors.InvalidArgumentError, match="not compatible with expected shape"):
        run(np.zeros((2, 6, FEATURES + 1), "float32"))
