"""Which row trains what: the cross-validation folds, and the guard against the leak.

Kaggle's 70,000 digits are those of MNIST, reshuffled, so about 6,000 rows of `train.csv` are
images of the MNIST test split. A model trained on them cannot be evaluated on that split.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from pipeline.competition import CLASSES
from pipeline.files import PipelineError

HELD_OUT = -1


@dataclass(frozen=True)
class TrainingData:
    """The rows of `train.csv`.

    Attributes:
        images: `(n, 28, 28)` uint8.
        labels: `(n,)`, integers 0 to 9.
        folds: `(n,)`, each row's fold, `HELD_OUT` for rows in no fold.
    """

    images: np.ndarray
    labels: np.ndarray
    folds: np.ndarray

    def split(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the rows to train on and to validate with; held-out rows are in neither."""
        return (
            np.flatnonzero((self.folds != fold) & (self.folds != HELD_OUT)),
            np.flatnonzero(self.folds == fold),
        )


def find_images(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Find images among reference images, pixel by pixel.

    Args:
        images: `(n, 28, 28)` uint8.
        references: `(m, 28, 28)` uint8.

    Returns:
        `(n,)` int32: for each image, the index of the identical reference image, or -1.
    """
    index = {reference.tobytes(): number for number, reference in enumerate(references)}
    return np.array([index.get(image.tobytes(), -1) for image in images], np.int32)


def make_folds(labels: np.ndarray, folds: int, seed: int, held_out: np.ndarray) -> np.ndarray:
    """Deal the rows out to folds, each with its share of every digit.

    Args:
        labels: `(n,)`.
        folds: number of folds.
        seed: of the shuffle.
        held_out: `(n,)` bool, rows that no fold may train on or validate with.

    Returns:
        The fold of each row `(n,)` int8, `HELD_OUT` for held-out rows.

    Raises:
        PipelineError: a digit has fewer rows than there are folds.
    """
    fold_of = np.full(len(labels), HELD_OUT, np.int8)
    rows = np.flatnonzero(~held_out)
    counts = np.bincount(labels[rows], minlength=CLASSES)
    if counts.min() < folds:
        raise PipelineError(
            f"train.csv: digit {counts.argmin()} has {counts.min()} rows to train on, "
            f"fewer than prepare.folds = {folds}"
        )
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, validation) in enumerate(splitter.split(rows, labels[rows])):
        fold_of[rows[validation]] = fold
    return fold_of


def fold_table(labels: np.ndarray, folds: np.ndarray, mnist_index: np.ndarray) -> pd.DataFrame:
    """The table of `data/folds.csv`: a row a row of `train.csv`, numbered from 0; -1 stands for none."""
    return pd.DataFrame(
        {"row": np.arange(len(labels)), "label": labels, "fold": folds, "mnist_test_index": mnist_index}
    )
