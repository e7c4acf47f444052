"""The networks: what they see of an image, and in which order."""

import keras
import numpy as np
import pytest
from conftest import small_recipe

from pipeline.network import Patches, build_network


def grid_network(**changes):
    shape = {"layers": 3, "units": 8, "readout": "mean", "normalize": True, "dropout": 0.2,
             "precision": "float32", **changes}
    return build_network("grid", **shape)


@pytest.fixture(scope="module")
def images(digits):
    return digits.images[:8].astype("float32")


def test_patches_reach_a_pixel_into_their_neighbours(images):
    patches = np.array(Patches()(images))
    assert patches.shape == (8, 14, 7, 24)
    bordered = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    for row, column in ((0, 0), (5, 3), (13, 6)):
        expected = bordered[:, 2 * row:2 * row + 4, 4 * column:4 * column + 6]
        np.testing.assert_array_equal(patches[:, row, column], expected.reshape(8, 24))


def test_every_line_of_the_grid_is_read_by_the_same_layer(digits):
    """So one layer, which reads along the lines alone, cannot tell where a digit stands in height."""
    low_enough = ~(digits.images[:, :1].any(axis=(1, 2)) | digits.images[:, -3:].any(axis=(1, 2)))
    images = digits.images[low_enough][:8].astype("float32")
    assert len(images) == 8
    moved = np.roll(images, 2, axis=1)
    keras.utils.set_random_seed(1)
    one, two = (grid_network(layers=layers) for layers in (1, 2))
    np.testing.assert_allclose(one.predict_on_batch(moved), one.predict_on_batch(images), atol=1e-6)
    assert np.abs(two.predict_on_batch(moved) - two.predict_on_batch(images)).max() > 1e-5


@pytest.mark.parametrize("change", [
    {"layers": 1}, {"layers": 4}, {"layers": 5}, {"readout": "middle"}, {"readout": "last"},
    {"normalize": False}])
def test_a_grid_of_any_shape_gives_probabilities(images, change):
    network = grid_network(**change)
    probabilities = network.predict_on_batch(images)
    assert probabilities.shape == (8, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    # Each image by itself, although its lines share a batch with those of the others.
    np.testing.assert_allclose(network.predict_on_batch(images[2:3]), probabilities[2:3], atol=1e-6)


def test_what_the_folds_train():
    assert [small_recipe(reader="rows").readers(fold) for fold in range(3)] == [["rows"]] * 3
    assert [small_recipe(reader="grid").readers(fold) for fold in range(3)] == [["grid"]] * 3
    assert [small_recipe(reader="turns").readers(fold) for fold in range(3)] == [["rows"], ["grid"], ["rows"]]
    assert [small_recipe(reader="both").readers(fold) for fold in range(3)] == [["rows", "grid"]] * 3
