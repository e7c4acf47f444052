"""The BiLSTM layer is at home in every way to use a Keras layer."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from fastlstm import BiLSTM, accelerate, graph, to_keras
from fastlstm.graph import whole_batches
from fastlstm.ops import operation
from stock import (
    BATCH,
    FEATURES,
    PAIRS,
    READOUTS,
    UNITS,
    assert_close,
    fast_layer,
    outcome,
    run_python,
    stock_layer,
    values,
)

# The first use of the layer compiles it, which takes a minute for each precision.
pytestmark = pytest.mark.slow


# To and from Keras


@pytest.mark.parametrize("readout", ["sequence", "last"])
def test_there_and_back(readout):
    stock = stock_layer(return_sequences=readout == "sequence")
    layer = fast_layer(stock, readout, precision="bfloat16")
    again = to_keras(layer)
    assert again.forward_layer.return_sequences == (readout == "sequence")
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
    """The backward pass leaves what the forward pass saved as it is."""
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


@pytest.mark.parametrize(("readout", "predicting", "precision"), PAIRS)
def test_a_persistent_tape_works_outside_of_a_graph(readout, predicting, precision):
    layer, training = BiLSTM(UNITS, readout=readout, precision=precision), False if predicting else None
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


@pytest.mark.parametrize(("readout", "with_lengths", "precision"), PAIRS)
def test_prediction_is_the_same_and_has_the_same_gradient(readout, with_lengths, precision):
    """A graph of a prediction keeps nothing for the gradient, and runs once more if that is asked for."""
    layer = BiLSTM(UNITS, readout=readout, precision=precision)
    x, lengths = tf.constant(values(BATCH, 6, FEATURES)), [2, 6, 4, 1] if with_lengths else None
    layer(x)
    predicted, trained = (
        outcome(function, [x], layer.trainable_variables)
        for function in [
            tf.function(lambda: layer(x, lengths=lengths, training=training)).get_concrete_function()
            for training in (False, True)
        ]
    )
    for one, other in zip(predicted, trained, strict=True):
        assert one.numpy().tobytes() == other.numpy().tobytes()


@pytest.fixture
def added(monkeypatch):
    """The operations that are added to graphs, and the settings of each."""
    added = []

    def spy(name, plan, *inputs, with_x=False, **options):
        added.append(SimpleNamespace(name=name, save=plan.save, with_x=with_x))
        return operation(name, plan, *inputs, with_x=with_x, **options)

    monkeypatch.setattr(graph, "operation", spy)
    with whole_batches():
        yield added


def test_only_training_keeps_what_the_gradient_needs(added, digits):
    # In a network within a network.
    inner, images = small_network(), keras.Input((28, 28))
    model = keras.Model(images, inner(images))
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.predict_on_batch(digits.images[:2])
    assert {each.save for each in added} == {False}
    added.clear()
    model.train_on_batch(digits.images[:2], digits.labels[:2])
    assert {each.save for each in added} == {True}


def test_a_training_loop_without_the_argument_training_runs_each_step_once(added):
    """There Keras calls an LSTM with `training=False`."""
    model = keras.Sequential([keras.Input((5, FEATURES)), keras.layers.LSTM(UNITS)])
    accelerate(model)

    @tf.function
    def gradients(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x))
        return tape.gradient(loss, model.trainable_variables)

    gradients(tf.constant(values(BATCH, 5, FEATURES)))
    assert [each.name for each in added if each.name != "Backward"] == ["Pack", "Forward"]


def test_the_gradient_of_gathered_samples():
    """It is no tensor, but tf.IndexedSlices."""
    layer, x = BiLSTM(16), tf.constant(values(BATCH, 5, FEATURES))
    layer(x)
    results = [
        tf.function(
            lambda each=each: outcome(lambda: tf.gather(each(x), [0, 2, 2]), [x], each.trainable_variables)
        )()
        for each in (layer, to_keras(layer))
    ]
    assert_close(*results)


def test_the_gradient_of_the_images_is_not_computed_in_training(added, digits):
    """But that of the second layer's inputs is, and that of the images for whoever asks for it."""
    model = small_network()
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.train_on_batch(digits.images[:2], digits.labels[:2])
    # TensorFlow drops the last operation, because nothing uses its result.
    assert [each.with_x for each in added if each.name == "Backward"] == [True, False, True]

    @tf.function
    def saliency(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            output = model(images)[:, 0]
        return tape.gradient(output, images)

    assert np.any(saliency(tf.constant(digits.images[:2], tf.float32)))


def test_behind_a_layer_with_a_loop_the_gradient_of_the_inputs_is_computed_once(added):
    gru = keras.layers.GRU(4, return_sequences=True)
    model = keras.Sequential([keras.Input((6, FEATURES)), gru, BiLSTM(UNITS, "last"), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.train_on_batch(values(BATCH, 6, FEATURES), np.ones((BATCH, 1)))
    assert [each.with_x for each in added if each.name == "Backward"] == [True]


@pytest.mark.parametrize("wrong", ["lengths", "features"])
def test_wrong_shapes_are_refused(wrong):
    """The compiled steps rely on them."""
    layer = BiLSTM(UNITS)
    x = values(BATCH, 6, FEATURES)
    layer(x)
    lengths = [6] * (BATCH - 1) if wrong == "lengths" else None
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="shape"):
        layer(x[..., 1:] if wrong == "features" else x, lengths=lengths)


@pytest.mark.parametrize("wrap", [lambda function: function, tf.function], ids=["eager", "graph"])
def test_two_tapes_work_and_a_second_derivative_is_refused(wrap):
    layer = BiLSTM(UNITS, readout="mean")
    x = tf.constant(values(3, 6, FEATURES))

    def differentiate(twice):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                output = layer(x)
            slope = inner.gradient(output, x)
            output = output * 2
        return slope, outer.gradient(slope if twice else output, x)

    slope, twice_as_steep = wrap(lambda: differentiate(False))()
    assert_close([twice_as_steep], [2 * slope])
    with pytest.raises(tf.errors.InvalidArgumentError, match="cannot be differentiated twice"):
        wrap(lambda: differentiate(True))()


def test_outside_of_a_graph_one_graph_serves_every_size_of_a_batch():
    layer, counts = BiLSTM(UNITS, readout="last"), set()
    for size in (1, 9, 4):
        inputs = np.ones((size, 5, FEATURES), "float32")
        assert np.array_equal(layer(inputs), layer(inputs, mask=np.ones((size, 5), bool)))
        counts.add(graph._in_a_graph.experimental_get_tracing_count())
    assert len(counts) == 1


@pytest.mark.parametrize("readout", READOUTS)
def test_a_sample_does_not_depend_on_its_batch(readout):
    layer = BiLSTM(UNITS, readout=readout)
    x = values(9, 6, FEATURES)
    whole = layer(x)
    for batch in (1, 2, 5):
        assert_close([layer(x[:batch])], [whole[:batch]])


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("lengths", [None, [2, 6, 4, 1]])
def test_the_hand_over_to_keras_on_a_gpu_changes_nothing(monkeypatch, readout, lengths):
    layer = fast_layer(stock_layer(), readout=readout)
    x = tf.constant(values(BATCH, 6, FEATURES))

    def run():
        return outcome(lambda: layer(x, lengths=lengths), [x], layer.trainable_variables)

    ours = run()
    gpu = SimpleNamespace(device_type="GPU")
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: [gpu])
    theirs = run()
    assert layer.fallback == "there is a GPU or TPU"
    assert_close(ours, theirs)


@pytest.mark.parametrize("readout", READOUTS)
def test_functions_that_run_eagerly_compute_the_same(readout):
    layer = fast_layer(stock_layer(), readout=readout)
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
        assert b"Fastlstm" not in graph and b"While" in graph
    loaded = tf.saved_model.load(tmp_path / "exported")
    assert_close([loaded.serve(x)], [expected])


def test_a_saved_network_loads_after_an_import_of_the_layer_alone(digits, tmp_path):
    model = small_network()
    images = digits.images[:5].astype("float32")
    model.save(tmp_path / "network.keras")
    np.save(tmp_path / "images.npy", images)
    done = run_python(
        "-c",
        """
from fastlstm import BiLSTM
import keras
import numpy as np
network = keras.models.load_model("network.keras")
np.save("network.npy", network(np.load("images.npy")))
""",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "compiling" not in done.stderr  # this process has compiled the layer
    assert_close([np.load(tmp_path / "network.npy")], [model(images)])


def test_too_little_memory_for_a_long_sequence_is_an_error_of_tensorflow():
    done = run_python(
        "-c",
        """
import resource
from pathlib import Path
import numpy as np
import tensorflow as tf
from fastlstm import BiLSTM

layer = BiLSTM(16, readout="last")
short, long = tf.zeros((1, 4, 1)), tf.zeros((1, 500_000, 1))
before = layer(short, training=False)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))
try:
    layer(long, training=False)
except tf.errors.ResourceExhaustedError as error:
    assert "fastlstm: no memory" in str(error), error
    np.testing.assert_array_equal(layer(short, training=False), before)
    print("refused")
""",
    )
    assert done.stdout == "refused\n", done.stderr


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
    states = [values(BATCH, UNITS, seed=seed) for seed in range(4)]
    loaded = keras.models.load_model(tmp_path / "network.keras")
    output = loaded([x, lengths, *states])
    assert_close([output], [layer(x, lengths=lengths, initial_state=states)])


def test_a_clone_is_built_from_the_config():
    layer = BiLSTM(UNITS, readout="mean", precision="bfloat16", name="it")
    again = BiLSTM.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


def test_a_wrong_number_of_features_is_refused_where_only_the_run_knows_it():
    layer = BiLSTM(UNITS)
    layer.build((None, 6, FEATURES))
    run = tf.function(layer, input_signature=[tf.TensorSpec((None, 6, None))])
    assert run(np.zeros((2, 6, FEATURES), "float32")).shape == (2, 6, 2 * UNITS)
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected shape"):
        run(np.zeros((2, 6, FEATURES + 1), "float32"))
