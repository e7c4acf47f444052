"""Kaggle's Digit Recognizer by an ensemble of bidirectional LSTMs, as a DVC pipeline.

After `import pipeline`, `keras.models.load_model` loads its networks: their layers are registered
as soon as Keras is imported, be it before or after this package, which does not import it itself.
"""

import importlib

from wrapt import register_post_import_hook


def _register_layers(_keras):
    importlib.import_module("pipeline.bilstm")


register_post_import_hook(_register_layers, "keras")
