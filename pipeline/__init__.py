"""Kaggle's Digit Recognizer by an ensemble of bidirectional LSTMs, as a DVC pipeline."""
