"""Kaggle's Digit Recognizer by an ensemble of bidirectional LSTMs, as a DVC pipeline."""

import sys
from importlib.util import find_spec

# One line for a stage run by another Python, such as the system's; `python -m` begins with this argument.
if sys.argv[0] == "-m" and not find_spec("keras"):
    sys.exit(
        f"{sys.executable} lacks the project's libraries; activate the environment (. .venv/bin/activate), "
        "or use make, such as: make repro"
    )
