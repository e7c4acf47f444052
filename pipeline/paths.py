"""Paths of all files of the pipeline, relative to the project's folder; the same as in `dvc.yaml`."""

from pathlib import Path

PARAMS = Path("params.yaml")
MNIST = Path("data/mnist.npz")
RAW = Path("data/raw")
SOURCE = RAW / "source.json"
SAMPLE_SUBMISSION = RAW / "sample_submission.csv"
DIGITS = Path("data/digits.npz")
CLEAN = Path("data/clean.npz")
TRAINING_STATE = Path("data/training_state")
SWEEP = Path("data/sweep")
TIMES = Path("data/times")
CHECKPOINTS = Path("data/checkpoints")
OOF = Path("data/oof.npz")
ENSEMBLE = Path("data/ensemble.keras")
EXPORT = Path("data/ensemble_of_keras.keras")
ARTICLE = Path("data/article.keras")
PREDICTIONS = Path("data/predictions.npz")
CHECK = Path("data/check.npz")
SUBMISSION = Path("submissions/submission.csv")
SCORE = Path("submissions/score.json")
HISTORY = Path("submissions/history.csv")
METRICS = Path("metrics")
EPOCHS_TABLE = METRICS / "history.csv"


def checkpoint(fold: int) -> Path:
    """Path of the trained model of a fold."""
    return CHECKPOINTS / f"fold_{fold}.keras"
