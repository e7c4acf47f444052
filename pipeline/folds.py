"""Which row trains what: the cross-validation folds, and the guard against the leak.

Kaggle's 70,000 digits are those of MNIST, reshuffled, so about 6,000 rows of `train.csv` are
images of the MNIST test split. Who trains on them cannot measure accuracy on that split.
"""

import numpy as np
from sklearn.model_selection import StratifiedKFold

from pipeline.competition import CLASSES
from pipeline.files import PipelineError

HELD_OUT = -1


def find_images(images, references):
    """For each image, the index of the identical reference image, or -1: `(n,)` int32.

    Args:
        images: `(n, 28, 28)` uint8; references: `(m, 28, 28)` uint8.
    """
    index = {reference.tobytes(): number for number, reference in enumerate(references)}
    return np.array([index.get(image.tobytes(), -1) for image in images], np.int32)


def make_folds(labels, folds, seed, held_out):
    """Deal the rows out to folds, each with its share of every digit.

    Args:
        labels: `(n,)`; held_out: `(n,)` bool, rows that no fold may train on or validate with.

    Returns:
        The fold of each row `(n,)` int8, `HELD_OUT` for held-out rows.

    Raises:
        PipelineError: a digit has fewer rows than there are folds.
    """
    fold_of = np.full(len(labels), HELD_OUT, np.int8)
    rows = np.flatnonzero(~held_out)
    counts = np.bincount(labels[rows], minlength=CLASSES)
    if counts.min() < folds:
        raise PipelineError(f"train.csv: digit {counts.argmin()} has {counts.min()} rows to train on, "
                            f"fewer than prepare.folds = {folds}")
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, validation) in enumerate(splitter.split(rows, labels[rows])):
        fold_of[rows[validation]] = fold
    return fold_of
