"""Whole models: accelerate, explain, to_keras, masks, and the life of a Keras model."""

import copy
import pickle

import fastlstm
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from stock import assert_close, run_python, values

pytestmark = pytest.mark.slow
BATCH, STEPS, FEATURES, WORDS = 5, 6, 3, 9


def sequential():
    return keras.Sequential(
        [
            keras.Input((STEPS, FEATURES)),
            layers.LSTM(4, return_sequences=True, go_backwards=True, dropout=0.2, seed=3),
            layers.Bidirectional(layers.LSTM(4), merge_mode="ave"),
        ]
    )


def masked():
    return keras.Sequential(
        [
            keras.Input((STEPS,), dtype="int32"),
            layers.Embedding(WORDS, FEATURES, mask_zero=True, embeddings_initializer="normal"),
            layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
            layers.LSTM(4, return_sequences=True),
            layers.GRU(4, return_sequences=True),
            layers.LSTM(4, activation="relu"),
        ]
    )


def nested_and_shared():
    shared = layers.LSTM(4, return_sequences=True)
    inner_input = keras.Input((STEPS, 4))
    inner = keras.Model(inner_input, layers.Bidirectional(layers.LSTM(4))(inner_input))
    inputs = [keras.Input((STEPS, FEATURES)), keras.Input((STEPS, FEATURES))]
    return keras.Model(inputs, layers.Dense(2)(layers.add([inner(shared(x)) for x in inputs])))


def time_distributed():
    return keras.Sequential(
        [keras.Input((2, STEPS, FEATURES)), layers.TimeDistributed(layers.LSTM(4)), layers.LSTM(4)]
    )


def time_distributed_over_unknown_steps():
    return keras.Sequential([keras.Input((None, STEPS, FEATURES)), layers.TimeDistributed(layers.LSTM(4))])


def encoder_and_decoder():
    source, target = keras.Input((STEPS, FEATURES)), keras.Input((STEPS, FEATURES))
    encoded, *states = layers.LSTM(4, return_state=True)(layers.LSTM(4, return_sequences=True)(source))
    decoded = layers.LSTM(4, return_sequences=True)(target, initial_state=states)
    return keras.Model([source, target], layers.concatenate([layers.Flatten()(decoded), encoded]))


def unknown_steps():
    return keras.Sequential(
        [keras.Input((None, FEATURES)), layers.LSTM(4, return_sequences=True), layers.LSTM(4)]
    )


MODELS = [
    sequential,
    masked,
    nested_and_shared,
    time_distributed,
    time_distributed_over_unknown_steps,
    encoder_and_decoder,
    unknown_steps,
]


def data_of(model):
    """Random inputs of a model; indices begin and end with padding in some rows."""
    if model.inputs[0].dtype == "int32":
        words = np.random.default_rng(0).integers(1, WORDS, (BATCH, STEPS))
        words[0, 2:] = words[1, :3] = words[2, 1] = words[3] = 0
        return words
    inputs = [values(BATCH, *(size or 2 for size in x.shape[1:]), seed=n) for n, x in enumerate(model.inputs)]
    return inputs if len(inputs) > 1 else inputs[0]


def make_twice(make):
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        model = make()
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        models.append(model)
    return models


@pytest.mark.parametrize("make", MODELS)
def test_an_accelerated_model_predicts_and_trains_as_before(make):
    stock, model = make_twice(make)
    x = data_of(stock)
    before, _ = model.predict(x, verbose=0), stock.predict(x, verbose=0)
    assert fastlstm.accelerate(model) is model
    assert_close([model.predict(x, verbose=0)], [stock.predict(x, verbose=0)])
    assert_close([model.predict(x, verbose=0)], [before])
    stock.predict(x, verbose=0)  # dropout draws a random number here, too
    target = np.ones_like(before)
    losses = [
        each.fit(x, target, epochs=2, batch_size=3, shuffle=False, verbose=0) for each in (model, stock)
    ]
    assert_close([losses[0].history["loss"]], [losses[1].history["loss"]])
    assert_close(model.get_weights(), stock.get_weights())
    assert any(isinstance(layer, fastlstm.LSTM | fastlstm.Bidirectional) for layer in model._flatten_layers())


@pytest.mark.parametrize("make", MODELS)
def test_an_accelerated_model_lives_as_keras_models_do(make, tmp_path):
    model, _ = make_twice(make)
    fastlstm.accelerate(model)
    x = data_of(model)
    expected = [model(x)]
    model.save(tmp_path / "model.keras")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    stock = fastlstm.to_keras(model)
    stock.save(tmp_path / "stock.keras")
    assert b"fastlstm" not in (tmp_path / "stock.keras").read_bytes()
    copies = [
        keras.models.load_model(tmp_path / "model.keras"),
        keras.models.load_model(tmp_path / "stock.keras"),
        clone,
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        fastlstm.accelerate(stock),
    ]
    for other in copies:
        assert_close([other(x)], expected)


def test_subclassed_models_are_accelerated():
    class Network(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = [layers.LSTM(4, return_sequences=True), layers.LSTM(4)]

        def call(self, x):
            return self.parts[1](self.parts[0](x))

    model, x = Network(), values(BATCH, STEPS, FEATURES)
    expected = model.predict(x, verbose=0)
    fastlstm.accelerate(model)
    assert_close([model.predict(x, verbose=0)], [expected])
    assert [text for _, text in fastlstm.explain(model)] == ["fast", "fast"]


def test_explain_names_the_reason():
    class Own(layers.LSTM):
        pass

    model = masked()
    model.add(layers.Reshape((1, 4)))
    model.add(Own(3, name="own", return_sequences=True))
    model.add(layers.LSTM(3, stateful=False, return_state=False, recurrent_dropout=0.1, name="dropped"))
    fastlstm.accelerate(model)
    model.compile("sgd", "mse")
    x = data_of(model)
    model.train_on_batch(x, np.zeros((BATCH, 3)))
    texts = [text for _, text in fastlstm.explain(model)]
    assert texts == [
        "fast",
        "fast",
        "stays Keras's own: GRU is not an LSTM of Keras",
        "stays Keras's own: activation is relu, not tanh",
        "stays Keras's own: Own is not an LSTM of Keras",
        "fast, but the last call was computed by Keras's layer: "
        "recurrent_dropout, and dropout with implementation=1, in training",
    ]


@pytest.mark.parametrize("readout", ["sequence", "middle", "last", "mean"])
@pytest.mark.parametrize("mask_zero", [False, True])
def test_every_readout_becomes_layers_of_keras(readout, mask_zero, tmp_path):
    inputs = keras.Input((STEPS,), dtype="int32")
    embedded = layers.Embedding(WORDS, FEATURES, mask_zero=mask_zero, embeddings_initializer="normal")(inputs)
    model = keras.Model(inputs, fastlstm.BiLSTM(4, readout)(embedded))
    x = data_of(model)
    x[3, 0] = 1  # Keras's mean of no steps is NaN
    expected = model.predict(x, verbose=0)
    stock = fastlstm.to_keras(model)
    assert all(type(layer).__module__.startswith("keras.") for layer in stock._flatten_layers())
    assert_close([stock.predict(x, verbose=0)], [expected])
    stock.save(tmp_path / "stock.keras")
    assert b"fastlstm" not in (tmp_path / "stock.keras").read_bytes()
    assert_close([keras.models.load_model(tmp_path / "stock.keras").predict(x, verbose=0)], [expected])


def test_the_copy_for_keras_has_what_preprocessing_layers_learned():
    normalization, words = layers.Normalization(), layers.TextVectorization(output_sequence_length=STEPS)
    fastlstm.to_keras(keras.Sequential([layers.TextVectorization()]))  # not adapted yet
    normalization.adapt(3 + 5 * values(100, STEPS, FEATURES))
    words.adapt(["a stitch in time saves nine", "time and tide wait for no man"])
    embedding = layers.Embedding(20, FEATURES, mask_zero=True)
    for first, x in (
        ([keras.Input((STEPS, FEATURES)), normalization], values(BATCH, STEPS, FEATURES)),
        ([keras.Input((), dtype="string"), words, embedding], tf.constant(["no time", "nine tides"])),
    ):
        model = keras.Sequential([*first, layers.Bidirectional(layers.LSTM(4))])
        model.compile("sgd", lambda labels, outputs: keras.ops.mean(outputs))  # Keras cannot save this loss
        expected = model.predict(x, verbose=0)
        assert_close([fastlstm.to_keras(fastlstm.accelerate(model)).predict(x, verbose=0)], [expected])


def test_a_model_whose_code_creates_fast_layers_has_no_copy_for_keras():
    class Network(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.lstm = fastlstm.LSTM(4, name="own")

        def call(self, x):
            return self.lstm(x)

    with pytest.raises(ValueError, match="layers created by the model's code: own"):
        fastlstm.to_keras(Network())


def test_accelerate_changes_the_precision_of_fast_layers_too():
    model = sequential()
    x = data_of(model)
    exact = model.predict(x, verbose=0)
    fastlstm.accelerate(fastlstm.accelerate(model), "bfloat16")
    rough = model.predict(x, verbose=0)
    assert 1e-5 < np.abs(rough - exact).max() < 0.02
    bidirectional = model.layers[1]
    precisions = {layer.precision for layer in (bidirectional, bidirectional.forward_layer)}
    assert precisions == {"bfloat16"}
    own = fastlstm.Bidirectional(fastlstm.LSTM(4, precision="bfloat16"))
    assert own.precision == own.backward_layer.precision == "bfloat16"
    assert_close([fastlstm.accelerate(model).predict(x, verbose=0)], [exact])


def test_explain_says_what_keras_computes_inside_of_a_bidirectional():
    model = keras.Sequential([keras.Input((STEPS, FEATURES)), fastlstm.Bidirectional(layers.GRU(2))])
    model.predict(values(BATCH, STEPS, FEATURES), verbose=0)
    assert fastlstm.explain(model)[0][1].endswith("it contains GRU, not LSTM")


def test_integers_are_computed_fast():
    stock, layer = layers.LSTM(4), fastlstm.LSTM(4)
    x = np.random.default_rng(0).integers(0, 3, (BATCH, STEPS, FEATURES), "uint8")
    expected, _ = stock(x), layer(x)
    layer.set_weights(stock.get_weights())
    assert_close([layer(x)], [expected])
    assert layer.fallback is None


def test_lengths_add_to_a_mask():
    words, lengths = np.array([[1, 2, 3, 4], [5, 6, 0, 0]]), np.array([3, 4])
    embedding = layers.Embedding(WORDS, FEATURES, mask_zero=True)
    first, second = fastlstm.BiLSTM(4), fastlstm.BiLSTM(4, "mean")
    inputs = keras.Input((4,)), keras.Input((), dtype="int32")
    outputs = second(first(embedding(inputs[0]), lengths=inputs[1]), lengths=inputs[1])
    predicted = keras.Model(inputs, outputs).predict([words, lengths], verbose=0)
    for row, steps in ((0, 3), (1, 2)):
        alone = second(first(embedding(words[row : row + 1, :steps])))
        assert_close([predicted[row : row + 1]], [alone])


def test_padding_that_is_not_a_number_reaches_nothing():
    mask = np.arange(STEPS) < np.array([[6], [1], [4], [0]])
    x = values(4, STEPS, FEATURES)
    padded = np.where(mask[:, :, None], x, np.nan).astype("float32")
    for make in (fastlstm.LSTM, fastlstm.BiLSTM):
        for state in (False, True):
            layer = make(4)
            layer.build((None, STEPS, FEATURES))
            states = [tf.ones((4, 4))] * (4 if make is fastlstm.BiLSTM else 2) if state else None
            results = []
            for inputs in (x, padded):
                inputs = tf.constant(inputs)
                with tf.GradientTape() as tape:
                    tape.watch(inputs)
                    output = layer(inputs, mask=mask, initial_state=states)
                results.append([output, *tape.gradient(output, [inputs, *layer.trainable_weights])])
            assert_close(results[1], results[0])


@pytest.mark.parametrize("policy", ["float64", "float16", "mixed_float16", "mixed_bfloat16"])
def test_other_dtypes_are_computed_as_keras_does(policy):
    keras.utils.set_random_seed(1)
    stock = layers.Bidirectional(layers.LSTM(4, dtype=policy), dtype=policy)
    layer = fastlstm.BiLSTM(4, "last", dtype=policy)
    x = values(BATCH, STEPS, FEATURES)
    stock(x), layer(x)
    layer.set_weights(stock.get_weights())
    assert layer(x).dtype == stock(x).dtype
    assert {weight.dtype for weight in layer.weights} == {weight.dtype for weight in stock.weights}
    assert np.array_equal(layer(x), stock(x))


def test_a_saved_model_keeps_its_dtype_under_another_default(tmp_path):
    model = keras.Sequential([keras.Input((STEPS, FEATURES)), fastlstm.BiLSTM(4), fastlstm.LSTM(4)])
    model.save(tmp_path / "model.keras")
    x = values(BATCH, STEPS, FEATURES)
    expected = model.predict(x, verbose=0)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        loaded = keras.models.load_model(tmp_path / "model.keras").predict(x, verbose=0)
        assert fastlstm.LSTM(4)(x).dtype == fastlstm.BiLSTM(4, "mean")(x).dtype == "float64"
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
    assert_close([loaded], [expected])


def test_xla_exports_and_unknown_steps_are_computed_by_keras(tmp_path):
    model = keras.Sequential([keras.Input((STEPS, FEATURES)), fastlstm.BiLSTM(4), fastlstm.LSTM(4)])
    x = values(BATCH, STEPS, FEATURES)
    expected = [model.predict(x, verbose=0)]
    assert_close([tf.function(model, jit_compile=True)(x)], expected)
    assert "XLA" in model.layers[0].fallback
    unknown = tf.TensorSpec((None, None, FEATURES))
    assert_close([tf.function(model, input_signature=[unknown])(x)], expected)
    model.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "exported")
    assert_close([loaded.serve(x)], expected)
    assert b"Fastlstm" not in (tmp_path / "exported" / "saved_model.pb").read_bytes()


def test_frozen_layers_stay_frozen():
    model = sequential()
    model.layers[0].trainable = False
    fastlstm.accelerate(model)
    model.compile("sgd", "mse")
    before = model.get_weights()
    x = data_of(model)
    model.train_on_batch(x, np.ones((BATCH, 4)))
    changed = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert changed == [False] * 3 + [True] * 6


def test_in_a_mirrored_strategy():
    done = run_python(
        "-c",
        """
import keras, numpy as np, tensorflow as tf, fastlstm
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
x, y = np.random.default_rng(0).normal(size=(8, 6, 3)).astype("float32"), np.ones((8, 4))
def train(make):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6, 3)), make(4)])
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return model.layers[0].fallback if make is fastlstm.LSTM else None, model.get_weights()
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    fallback, ours = train(fastlstm.LSTM)
_, theirs = train(keras.layers.LSTM)
assert fallback is None, fallback
for a, b in zip(ours, theirs):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
""",
    )
    assert done.returncode == 0, done.stderr
