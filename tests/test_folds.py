"""Folds: each has its share of every digit, and held-out rows are in none."""

import numpy as np
import pytest

from pipeline.files import PipelineError
from pipeline.folds import find_images, make_folds

NOTHING = np.zeros(42_000, bool)


@pytest.fixture(scope="module")
def labels(competition):
    return competition[0][1]


def test_folds_are_stratified_and_held_out_rows_are_in_none(labels):
    held_out = np.arange(len(labels)) % 7 == 0
    folds = make_folds(labels, 5, 2026, held_out)
    assert np.array_equal(folds == -1, held_out)
    counts = np.array([np.bincount(labels[folds == fold], minlength=10) for fold in range(5)])
    assert counts.sum() == np.sum(~held_out) and np.ptp(counts, axis=0).max() <= 1


def test_folds_are_a_function_of_the_seed(labels):
    folds = make_folds(labels, 5, 1, NOTHING)
    assert np.array_equal(folds, make_folds(labels, 5, 1, NOTHING))
    assert not np.array_equal(folds, make_folds(labels, 5, 2, NOTHING))


def test_fewer_rows_of_a_label_than_folds(labels):
    held_out = (labels == 3) & (np.cumsum(labels == 3) > 4)
    with pytest.raises(PipelineError, match=r"label 3 has 4 rows to train on, fewer than prepare\.folds = 5"):
        make_folds(labels, 5, 2026, held_out)
    with pytest.raises(PipelineError, match="label 10 has 0 rows"):
        make_folds(labels, 5, 2026, NOTHING, classes=11)


def test_the_mnist_test_images_are_found_in_the_competition(mnist, competition):
    references = mnist["test_images"]
    train, test = (find_images(images, references) for images, _ in competition)
    found = np.concatenate([train, test])
    assert np.array_equal(np.sort(found[found >= 0]), np.arange(10_000))
    assert 5_800 < np.sum(train >= 0) < 6_200
    assert np.array_equal(competition[0][0][train >= 0], references[train[train >= 0]])
    assert np.array_equal(competition[0][1][train >= 0], mnist["test_labels"][train[train >= 0]])
    images = references[:3].copy()
    images[1, 14, 14] ^= 1
    assert find_images(images, references).tolist() == [0, -1, 2]
