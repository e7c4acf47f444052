"""The folds: every digit in its share, and no held-out row in any."""

import numpy as np
import pytest

from pipeline.files import PipelineError
from pipeline.folds import find_images, make_folds

NOTHING = np.zeros(42_000, bool)


@pytest.fixture(scope="module")
def labels(competition):
    return competition[0][1]


def test_every_fold_has_its_share_of_every_digit(labels):
    folds = make_folds(labels, 5, 2026, NOTHING)
    counts = np.array(
        [[np.sum((folds == fold) & (labels == digit)) for digit in range(10)] for fold in range(5)]
    )
    assert counts.sum() == len(labels)
    assert np.ptp(counts, axis=0).max() <= 1


def test_held_out_rows_are_in_no_fold(labels):
    held_out = np.arange(len(labels)) % 7 == 0
    folds = make_folds(labels, 5, 2026, held_out)
    assert np.array_equal(folds == -1, held_out)
    assert set(folds[~held_out]) == set(range(5))


def test_folds_are_a_function_of_the_seed(labels):
    folds = make_folds(labels, 5, 1, NOTHING)
    assert np.array_equal(folds, make_folds(labels, 5, 1, NOTHING))
    assert not np.array_equal(folds, make_folds(labels, 5, 2, NOTHING))


@pytest.mark.parametrize("missing", range(0, 10, 3))
@pytest.mark.parametrize("left", [4, 1, 0])
def test_fewer_rows_of_a_digit_than_folds(labels, missing, left):
    rows = np.concatenate(
        [np.flatnonzero(labels == digit)[: left if digit == missing else 20] for digit in range(10)]
    )
    with pytest.raises(PipelineError) as error:
        make_folds(labels[rows], 5, 2026, NOTHING[: len(rows)])
    assert f"digit {missing} has {left} rows" in str(error.value)
    assert "prepare.folds = 5" in str(error.value)


def test_held_out_rows_do_not_count(labels):
    held_out = (labels == 3) & (np.cumsum(labels == 3) > 4)
    with pytest.raises(PipelineError, match="digit 3 has 4 rows"):
        make_folds(labels, 5, 2026, held_out)
    with pytest.raises(PipelineError, match=r"fewer than prepare\.folds"):
        make_folds(labels, 5, 2026, ~NOTHING)


def test_the_mnist_test_images_are_found_in_the_competition(mnist, competition):
    references = mnist["test_images"]
    train, test = (find_images(images, references) for images, _ in competition)
    found = np.concatenate([train, test])
    assert np.array_equal(np.sort(found[found >= 0]), np.arange(10_000))
    assert 5_800 < np.sum(train >= 0) < 6_200
    assert np.array_equal(competition[0][0][train >= 0], references[train[train >= 0]])
    assert np.array_equal(competition[0][1][train >= 0], mnist["test_labels"][train[train >= 0]])


def test_one_pixel_makes_another_image(mnist):
    images = mnist["test_images"][:3].copy()
    images[1, 14, 14] ^= 1
    assert find_images(images, mnist["test_images"]).tolist() == [0, -1, 2]
