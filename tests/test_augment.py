"""Distortions: a pure function of the random stream; each strength has its effect."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import small_params

from pipeline.augment import augment

COMMITTED = small_params().augment
NOTHING = dict.fromkeys(("rotation", "scaling", "shear", "shift", "displacement"), 0.0)


def stream(seed=1):
    return np.random.default_rng(seed)


@pytest.fixture
def eagerly():
    """Run functions eagerly: compiling for each new strength takes a second."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def test_augmentation_is_a_function_of_the_stream_and_differs_between_images(digits):
    images = np.repeat(digits.images[:1], 600, axis=0)  # more than are distorted at once
    once, again, other = (augment(images, COMMITTED, stream(seed)) for seed in (1, 1, 2))
    assert once.shape == images.shape and once.dtype == np.float32
    assert once.min() >= 0 and once.max() <= 255
    assert once.tobytes() == again.tobytes()
    assert np.all(np.any(once != other, axis=(1, 2)))
    assert len({image.tobytes() for image in once}) == 600


@pytest.mark.usefixtures("eagerly")
def test_without_strength_nothing_changes(digits):
    strengths = COMMITTED.model_copy(update=NOTHING)
    np.testing.assert_allclose(augment(digits.images, strengths, stream()), digits.images, atol=0.01)


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("name", NOTHING)
def test_each_strength_distorts_by_itself_and_more_if_it_is_larger(digits, name):
    images = digits.images[:100].astype("float32")
    largest = getattr(COMMITTED, name)
    differences = []
    for strength in (largest / 4, largest):
        strengths = COMMITTED.model_copy(update={**NOTHING, name: strength})
        differences.append(np.abs(augment(images, strengths, stream()) - images).mean())
    assert 0 < 1.5 * differences[0] < differences[1]


@pytest.mark.usefixtures("eagerly")
def test_a_shift_stays_within_its_limit():
    dots = np.zeros((500, 28, 28), "float32")
    dots[:, 14, 14] = 255
    shifted = augment(dots, COMMITTED.model_copy(update={**NOTHING, "shift": 3.0}), stream())
    ink = shifted.reshape(500, 28, 28).max(axis=0) > 0
    rows, columns = np.nonzero(ink)
    assert rows.min() == columns.min() == 11 and rows.max() == columns.max() == 17
