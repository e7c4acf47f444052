"""Kaggle's Digit Recognizer by an ensemble of bidirectional LSTMs, as a DVC pipeline.

After `import pipeline`, `keras.models.load_model` loads its networks: their layers are registered
as soon as Keras is imported, be it before or after this package, which does not import it itself.
"""

import importlib
import sys
from importlib.util import find_spec

# Another Python, such as the system's, runs a stage (`python -m` begins with that argument): one line.
if sys.argv[0] == "-m" and not find_spec("keras"):
    sys.exit(
        f"{sys.executable} lacks the project's libraries; activate the environment (. .venv/bin/activate), "
        "or use make, such as: make repro"
    )

from wrapt import register_post_import_hook


def _then_import(module, after):
    register_post_import_hook(lambda _: importlib.import_module(module), after)


_then_import("pipeline.bilstm", after="keras")
# Not after Keras: it needs the whole of pipeline.bilstm, which may be what has imported Keras.
_then_import("pipeline.networks", after="pipeline.bilstm")
