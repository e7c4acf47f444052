"""Arguments that are refused, by name; nothing here needs the compiled code."""

import fastlstm
import keras
import pytest
from fastlstm import BiLSTM

UNITS, FEATURES = 5, 3


def lstm(**arguments):
    return keras.layers.LSTM(**{"units": UNITS, "return_sequences": True, **arguments})


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        ((lstm(activation="relu"),), "activation is relu"),
        ((lstm(recurrent_activation="hard_sigmoid"),), "recurrent_activation is hard_sigmoid"),
        ((lstm(use_bias=False),), "use_bias"),
        ((lstm(dropout=0.1),), "dropout"),
        ((lstm(recurrent_dropout=0.1),), "recurrent_dropout"),
        ((lstm(return_state=True),), "return_state"),
        ((lstm(), "sum"), "merge_mode is sum"),
        ((keras.layers.GRU(UNITS),), "GRU"),
        ((lstm(), "concat", None, lstm(units=UNITS + 1, go_backwards=True)), "units"),
        ((lstm(go_backwards=True), "concat", None, lstm()), "swapped"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bidirectional_layers_that_compute_something_else_are_refused(layer, reason):
    stock = keras.layers.Bidirectional(*layer)
    stock.build((None, 4, FEATURES))
    with pytest.raises(ValueError, match=f"BiLSTM.from_keras: .*{reason}"):
        BiLSTM.from_keras(stock)


def test_layers_without_weights_are_refused():
    with pytest.raises(ValueError, match="no weights yet"):
        BiLSTM.from_keras(keras.layers.Bidirectional(lstm()))


@pytest.mark.parametrize("make", [fastlstm.LSTM, fastlstm.BiLSTM])
def test_other_precisions_are_refused(make):
    with pytest.raises(ValueError, match="precision must be one of"):
        make(UNITS, precision="float16")


@pytest.mark.parametrize(
    "argument", [{"units": 0}, {"readout": "first"}, {"activation": "tanh"}, {"merge_mode": "sum"}]
)
def test_bad_arguments_are_refused_by_name(argument):
    with pytest.raises((ValueError, TypeError), match=next(iter(argument))):
        BiLSTM(**{"units": 8, **argument})
