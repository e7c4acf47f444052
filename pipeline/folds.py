"""Cross-validation folds, and the search for training images that are in the clean test set.

Digit Recognizer's digits are those of MNIST, reshuffled: about 6,000 rows of `train.csv` are images of the
MNIST test split. A network trained on them cannot be evaluated on that split.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedKFold

from pipeline.files import PipelineError

HELD_OUT = -1


@dataclass(frozen=True)
class TrainingData:
    """The rows of `train.csv`."""

    images: np.ndarray  # `(n, size, size)` uint8
    labels: np.ndarray  # `(n,)`, integers 0 to `classes - 1`
    folds: np.ndarray  # `(n,)`, each row's fold, `HELD_OUT` for rows in no fold
    classes: int = 10  # number of classes

    @property
    def shape(self) -> tuple[int, int]:
        """Width and height of the square images in pixels, and the number of classes."""
        return self.images.shape[1], self.classes

    def split(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the rows to train on, and of those to validate on; held-out rows are in neither."""
        return (
            np.flatnonzero((self.folds != fold) & (self.folds != HELD_OUT)),
            np.flatnonzero(self.folds == fold),
        )


def find_images(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Find images `(n, size, size)` among references `(m, size, size)`, pixel by pixel, uint8 both.

    Returns:
        `(n,)` int32: for each image, the index of the identical reference image, or -1.
    """
    index = {reference.tobytes(): number for number, reference in enumerate(references)}
    return np.array([index.get(image.tobytes(), -1) for image in images], np.int32)


def make_folds(
    labels: np.ndarray, folds: int, seed: int, held_out: np.ndarray, classes: int = 10
) -> np.ndarray:
    """Assign rows to folds, stratified by label; each label needs at least `folds` rows.

    Labels are `(n,)`, `held_out` is `(n,)` bool: rows that no fold may train or validate on.

    Returns:
        The fold of each row `(n,)` int8, `HELD_OUT` for held-out rows.
    """
    fold_of = np.full(len(labels), HELD_OUT, np.int8)
    rows = np.flatnonzero(~held_out)
    counts = np.bincount(labels[rows], minlength=classes)
    if counts.min() < folds:
        raise PipelineError(
            f"train.csv: label {counts.argmin()} has {counts.min()} rows to train on, "
            f"fewer than prepare.folds = {folds}"
        )
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, validation) in enumerate(splitter.split(rows, labels[rows])):
        fold_of[rows[validation]] = fold
    return fold_of
