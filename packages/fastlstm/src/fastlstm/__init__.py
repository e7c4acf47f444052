"""LSTM layers for Keras that train fast on a CPU; see README.md of the distribution."""

from fastlstm.convert import accelerate, explain, to_keras
from fastlstm.layers import LSTM, Bidirectional, BiLSTM

__all__ = ["LSTM", "BiLSTM", "Bidirectional", "accelerate", "explain", "to_keras"]
