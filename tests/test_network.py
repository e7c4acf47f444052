"""The networks: what they see of an image, and in which order."""

import keras
import numpy as np
import pytest
from conftest import small_recipe

from pipeline import training
from pipeline.ensemble import build_ensemble, load_network, predict
from pipeline.network import Patches, build_network
from pipeline.training import SHIFTS, network_of_fold


def grid_network(**changes):
    shape = {"layers": 3, "units": 8, "readout": "mean", "normalize": True, "dropout": 0.2,
             "precision": "float32", **changes}
    return build_network("grid_rows", **shape)


@pytest.fixture(scope="module")
def images(digits):
    return digits.images[:8].astype("float32")


def test_patches_reach_a_pixel_into_their_neighbours(images):
    patches = np.array(Patches()(images[:, 1:-1, 1:-1]))
    assert patches.shape == (8, 12, 6, 24)
    for row, column in ((0, 0), (5, 3), (11, 5)):
        expected = images[:, 1 + 2 * row:5 + 2 * row, 1 + 4 * column:7 + 4 * column]
        np.testing.assert_array_equal(patches[:, row, column], expected.reshape(8, 24))


@pytest.mark.parametrize("reader", ["rows", "grid_rows", "grid_columns"])
def test_all_but_the_outermost_pixels_are_read(images, reader):
    network = small_recipe().build_network(reader)
    answers = network.predict_on_batch(images)
    for at, read in ((0, False), (1, True), (26, True), (27, False)):
        for inked in (np.s_[:, at], np.s_[:, :, at]):
            other = images.copy()
            other[inked] = 255 - other[inked]
            assert np.any(network.predict_on_batch(other) != answers) == read


def test_every_line_of_the_grid_is_read_by_the_same_layer(digits):
    """So one layer, which reads along the lines alone, cannot tell where a digit stands in height."""
    low_enough = ~(digits.images[:, :3].any(axis=(1, 2)) | digits.images[:, -5:].any(axis=(1, 2)))
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


def test_a_reader_of_columns_reads_the_transposed_image(images):
    along, down = (small_recipe().build_network(reader) for reader in ("grid_rows", "grid_columns"))
    down.set_weights(along.get_weights())
    np.testing.assert_array_equal(
        down.predict_on_batch(images.transpose(0, 2, 1)), along.predict_on_batch(images))


def test_what_the_folds_train():
    def readers(reader, folds):
        return [small_recipe(reader=reader).readers(fold) for fold in range(folds)]

    for reader in ("rows", "grid_rows", "grid_columns"):
        assert readers(reader, 2) == [[reader]] * 2
    assert readers("turns", 4) == [["rows"], ["grid_rows"], ["grid_columns"], ["rows"]]
    assert readers("all", 2) == [["rows", "grid_rows", "grid_columns"]] * 2


def moved(images, down, right):
    """What moves out of an image is lost, what moves in is black."""
    canvas = np.zeros((len(images), 30, 30), "float32")
    canvas[:, 1 + down:29 + down, 1 + right:29 + right] = images
    return canvas[:, 1:29, 1:29]


@pytest.mark.parametrize("readers", [("rows",), ("rows", "grid_rows")])
@pytest.mark.parametrize("shifts", [SHIFTS, ((1, -1),)])
def test_an_average_over_shifted_images(monkeypatch, images, readers, shifts):
    monkeypatch.setattr(training, "SHIFTS", shifts)
    networks = {reader: small_recipe().build_network(reader) for reader in readers}
    expected = np.mean([network.predict_on_batch(moved(images, *shift))
                        for network in networks.values() for shift in shifts], axis=0)
    model = network_of_fold(0, networks, shifts=True)
    np.testing.assert_allclose(model.predict_on_batch(images), expected, atol=1e-6)


def test_an_ensemble_over_shifted_images_can_be_saved(images, tmp_path):
    folds = [network_of_fold(fold, {reader: small_recipe().build_network(reader)}, shifts=True)
             for fold, reader in enumerate(("rows", "grid_columns"))]
    expected = np.mean([network.predict_on_batch(images) for network in folds], axis=0)
    build_ensemble(folds).save(tmp_path / "ensemble.keras")
    loaded = load_network(tmp_path / "ensemble.keras")
    np.testing.assert_allclose(predict(loaded, images), expected, atol=1e-6)
