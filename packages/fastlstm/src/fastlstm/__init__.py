"""BiLSTM: a bidirectional LSTM layer for Keras that trains fast on a CPU. See README.md in this folder."""

from fastlstm.layer import BiLSTM

__all__ = ["BiLSTM"]
