"""Arguments that are refused, by name; nothing here needs the compiled code."""

import pytest
from fastlstm import LSTM, BiLSTM


@pytest.mark.parametrize("make", [LSTM, BiLSTM])
def test_other_precisions_are_refused(make):
    with pytest.raises(ValueError, match="precision must be one of"):
        make(8, precision="float16")


@pytest.mark.parametrize(
    "argument", [{"units": 0}, {"readout": "first"}, {"activation": "tanh"}, {"merge_mode": "sum"}]
)
def test_bad_arguments_are_refused_by_name(argument):
    with pytest.raises((ValueError, TypeError), match=next(iter(argument))):
        BiLSTM(**{"units": 8, **argument})
