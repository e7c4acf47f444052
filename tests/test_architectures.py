"""The networks: the pixels that they read, in which order, and that they can be saved and averaged."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import refusal, small_network, small_params

from pipeline import architectures, prediction
from pipeline.architectures import ARCHITECTURES, average, build_network, patches
from pipeline.files import save_network
from pipeline.prediction import load_network, predict


@pytest.fixture(scope="module")
def images(digits):
    return digits.images[:8].astype("float32")


def test_patches_reach_a_pixel_into_their_neighbours(images):
    values = np.array(patches(images[:, 1:-1, 1:-1]))
    assert values.shape == (8, 12, 6, 24)
    for row, column in ((0, 0), (5, 3), (11, 5)):
        expected = images[:, 1 + 2 * row : 5 + 2 * row, 1 + 4 * column : 7 + 4 * column]
        np.testing.assert_array_equal(values[:, row, column], expected.reshape(8, 24))


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization_is_keras_own(training, trainable):
    values = np.random.default_rng(0).normal(2, 3, (4, 5, 6)).astype("float32")
    results = []
    for kind in (architectures.BatchNormalization, keras.layers.BatchNormalization):
        layer, x = kind(trainable=trainable), tf.Variable(values)
        with tf.GradientTape() as tape:
            outputs = layer(x, training=training)
            loss = tf.reduce_sum(outputs * np.sin(values))
        results.append([outputs, *tape.gradient(loss, [x, *layer.trainable_variables])])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 5, 6), (64, 4, 5, 6)])
def test_spatial_dropout_drops_a_feature_at_all_positions(shape):
    layer, values = architectures.SpatialDropout(0.25, seed=1), np.ones(shape, "float32")
    np.testing.assert_array_equal(layer(values, training=False), values)
    dropped = layer(values, training=True).numpy().reshape(64, -1, 6)
    assert (dropped == dropped[:, :1]).all()
    np.testing.assert_allclose(np.unique(dropped), [0, 4 / 3], rtol=1e-6)
    assert 0.15 < (dropped == 0).mean() < 0.35


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_reads_all_pixels_but_the_margin_and_survives_saving(images, tmp_path, architecture):
    network = small_network(architecture)
    probabilities = network.predict_on_batch(images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    # Each image by itself, although the lines of a grid share a batch with those of other images.
    np.testing.assert_allclose(network.predict_on_batch(images[2:3]), probabilities[2:3], atol=1e-6)

    save_network(network, tmp_path / "network.keras")
    loaded = load_network(tmp_path / "network.keras")
    np.testing.assert_array_equal(loaded.predict_on_batch(images), probabilities)

    for at, read in ((0, False), (1, True), (26, True), (27, False)):
        for inked in (np.s_[:, at], np.s_[:, :, at]):
            other = images.copy()
            other[inked] = 255 - other[inked]
            assert np.any(network.predict_on_batch(other) != probabilities) == read


@pytest.mark.slow
def test_every_line_of_a_grid_is_read_by_the_same_layer(digits):
    """So a single layer, which reads along the lines, gives the same for a digit two pixels lower."""
    low_enough = ~(digits.images[:, :3].any(axis=(1, 2)) | digits.images[:, -5:].any(axis=(1, 2)))
    images = digits.images[low_enough][:8].astype("float32")
    moved = np.roll(images, 2, axis=1)
    keras.utils.set_random_seed(1)
    one, two = (
        build_network("grid_rows", small_params(model={"grid_layers": layers}).model, "float32")
        for layers in (1, 2)
    )
    np.testing.assert_allclose(one.predict_on_batch(moved), one.predict_on_batch(images), atol=1e-6)
    assert np.abs(two.predict_on_batch(moved) - two.predict_on_batch(images)).max() > 1e-5


@pytest.mark.slow
def test_grid_columns_reads_the_transposed_image(images):
    along, down = (small_network(architecture) for architecture in ("grid_rows", "grid_columns"))
    down.set_weights(along.get_weights())
    transposed = images.transpose(0, 2, 1)
    np.testing.assert_array_equal(down.predict_on_batch(transposed), along.predict_on_batch(images))


@pytest.mark.slow
def test_an_ensemble_averages_and_depends_on_no_setting(digits, tmp_path, monkeypatch):
    networks = [small_network(architecture) for architecture in ARCHITECTURES]
    folds = [average(networks[:2], "fold_0"), average(networks[2:], "fold_1")]
    ensemble, path = average(folds, "ensemble"), tmp_path / "ensemble.keras"
    each = [network.predict_on_batch(digits.images[:300].astype("float32")) for network in networks]
    expected = (np.mean(each[:2], axis=0) + np.mean(each[2:], axis=0)) / 2
    for number in (0, 1, 256, 300):
        predicted = predict(ensemble, digits.images[:number])
        np.testing.assert_allclose(predicted, expected[:number], rtol=1e-4, atol=1e-6)

    save_network(ensemble, path)
    keras.config.set_image_data_format("channels_first")
    keras.config.set_floatx("float16")
    try:
        loaded = load_network(path)
        monkeypatch.setattr(prediction, "available_cores", lambda: {0})
        np.testing.assert_array_equal(predict(loaded, digits.images[:300]), predicted)
    finally:
        keras.config.set_image_data_format("channels_last")
        keras.config.set_floatx("float32")
    assert [layer.name for layer in loaded.layers if layer.name.startswith("fold_")] == ["fold_0", "fold_1"]


@pytest.mark.slow
def test_an_average_over_shifts(images):
    network = small_network("grid_rows")
    shifted = [np.roll(images, pixels, axis=2) for pixels in (-1, 0, 1)]
    expected = np.mean([network.predict_on_batch(view) for view in shifted], axis=0)
    np.testing.assert_allclose(average([network], "fold_0", 1).predict_on_batch(images), expected, rtol=1e-5)


@pytest.mark.parametrize("content", [None, b"", b"of an earlier run"])
def test_another_file_is_no_network(tmp_path, content):
    if content is not None:
        (tmp_path / "fold_0.keras").write_bytes(content)
    assert "cannot be loaded as a network" in refusal(load_network, tmp_path / "fold_0.keras")


def test_a_saved_network_has_the_same_bytes_at_any_time(tmp_path, monkeypatch):
    network, files = small_network("rows"), (tmp_path / "one.keras", tmp_path / "two.keras")
    save_network(network, files[0])
    later = time.time() + 5
    monkeypatch.setattr(time, "time", lambda: later)  # of zipfile
    save_network(network, files[1])
    assert files[0].read_bytes() == files[1].read_bytes()
