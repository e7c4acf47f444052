"""The DVC stages, one module each, run as `python -m pipeline.stages.<name>`.

Only stages know where files lie; the paths below are those of `dvc.yaml`.
"""

import argparse
import os
import sys
from pathlib import Path

from pipeline.files import PipelineError

# TensorFlow's start-up messages are about itself; its errors come as exceptions all the same.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

MNIST = Path("data/mnist.npz")
RAW = Path("data/raw")
SOURCE = RAW / "source.json"
SAMPLE_SUBMISSION = RAW / "sample_submission.csv"
DIGITS = Path("data/digits.npz")
TRAINING_STATE = Path("data/training_state")
CHECKPOINTS = Path("data/checkpoints")
OOF = Path("data/oof.npz")
ENSEMBLE = Path("data/ensemble.keras")
PREDICTIONS = Path("data/predictions.npz")
SUBMISSION = Path("submissions/submission.csv")
METRICS = Path("metrics")


def checkpoint(fold):
    return CHECKPOINTS / f"fold_{fold}.keras"


def run_stage(module, main):
    """Run a stage's `main()`; an error meant for the user becomes one line and exit status 1."""
    name = module.__spec__.name.rpartition(".")[2]
    argparse.ArgumentParser(prog=f"python -m pipeline.stages.{name}",
                            description=module.__doc__).parse_args()
    try:
        main()
    except PipelineError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; run it again to go on")
