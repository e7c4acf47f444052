"""What the layer refuses, by name; nothing here needs its compiled code."""

import keras
import numpy as np
import pytest
from fastlstm import BiLSTM

UNITS, FEATURES = 5, 3


@pytest.mark.parametrize(
    "argument",
    [
        {"activation": "relu"},
        {"recurrent_activation": "hard_sigmoid"},
        {"use_bias": False},
        {"dropout": 0.1},
        {"recurrent_dropout": 0.1},
        {"return_state": True},
        {"kernel_regularizer": "l2"},
        {"recurrent_regularizer": "l2"},
        {"bias_regularizer": "l1"},
        {"activity_regularizer": "l2"},
        {"kernel_constraint": "max_norm"},
        {"recurrent_constraint": "max_norm"},
        {"bias_constraint": "non_neg"},
    ],
    ids=lambda argument: next(iter(argument)),
)
def test_what_the_layer_cannot_do_is_refused_by_name(argument):
    stock = keras.layers.Bidirectional(keras.layers.LSTM(UNITS, return_sequences=True, **argument))
    stock.build((None, 4, FEATURES))
    with pytest.raises(ValueError, match=f"BiLSTM: {next(iter(argument))}"):
        BiLSTM.from_keras(stock)


def two_ways(forward, backward):
    return keras.layers.Bidirectional(forward, backward_layer=backward)


def lstm(units=UNITS, **arguments):
    return keras.layers.LSTM(units, return_sequences=True, **arguments)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: keras.layers.Bidirectional(lstm(), merge_mode="sum"), "merge_mode"),
        (lambda: keras.layers.Bidirectional(lstm(), merge_mode=None), "merge_mode"),
        (lambda: keras.layers.Bidirectional(keras.layers.GRU(UNITS)), "GRU"),
        (lambda: two_ways(lstm(), lstm(UNITS + 1, go_backwards=True)), "units"),
        (lambda: two_ways(lstm(), lstm(go_backwards=True, activation="relu")), "activation"),
        (lambda: two_ways(lstm(go_backwards=True), lstm()), "go_backwards"),
    ],
    ids=["sum", "no merge", "GRU", "units", "activation of one", "directions swapped"],
)
def test_other_bidirectional_layers_are_refused(make, named):
    stock = make()
    stock.build((None, 4, FEATURES))
    with pytest.raises(ValueError, match=f"BiLSTM: .*{named}"):
        BiLSTM.from_keras(stock)


def test_stateful_is_refused_by_name():
    stock = keras.layers.Bidirectional(lstm(stateful=True))
    stock(np.zeros((2, 4, FEATURES), "float32"))
    with pytest.raises(ValueError, match="BiLSTM: stateful"):
        BiLSTM.from_keras(stock)


def test_layers_without_weights_are_refused():
    with pytest.raises(ValueError, match="no weights yet"):
        BiLSTM.from_keras(keras.layers.Bidirectional(lstm()))
    with pytest.raises(ValueError, match="no weights yet"):
        BiLSTM(UNITS).to_keras()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("units", 0),
        ("units", -1),
        ("units", 2.5),
        ("units", "8"),
        ("units", None),
        ("units", True),
        ("readout", "first"),
        ("readout", None),
        ("precision", "float16"),
        ("precision", None),
        ("dtype", "bfloat16"),
        ("dtype", "float64"),
        ("dropout", 0.1),
        ("activation", "tanh"),
        ("return_sequences", True),
        ("merge_mode", "concat"),
        ("go_backwards", True),
        ("stateful", False),
    ],
)
def test_bad_arguments_are_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=argument) as error:
        BiLSTM(**{"units": 8, argument: value})
    assert "BiLSTM" in str(error.value)


def test_an_unknown_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="number of steps must be known"):
        BiLSTM(UNITS)(keras.Input((None, FEATURES)))


@pytest.mark.parametrize("shape", [(0, FEATURES), (6, 0)])
def test_no_steps_or_no_features_are_refused(shape):
    with pytest.raises(ValueError, match="at least 1"):
        BiLSTM(UNITS)(np.zeros((2, *shape), "float32"))
