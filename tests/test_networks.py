"""The networks: the pixels that they read, their order, averages, and saving."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import run_python, small_network
from pipeline.networks import (
    ARCHITECTURES,
    SHIFTS,
    Patches,
    average,
    build_ensemble,
    build_network,
    load_network,
    predict,
)

from pipeline import networks, params
from pipeline.files import PipelineError, save_network


def grid_network(**changes):
    shape = {
        "layers": 3,
        "units": 8,
        "readout": "mean",
        "normalize": True,
        "dropout": 0.2,
        "precision": "float32",
        **changes,
    }
    return build_network("grid_rows", **shape)


@pytest.fixture(scope="module")
def images(digits):
    return digits.images[:8].astype("float32")


def test_the_parameters_allow_the_architectures_that_can_be_built():
    assert tuple(ARCHITECTURES) == params.ARCHITECTURES


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="is 'columns', allowed: rows, grid_rows, grid_columns"):
        small_network("columns")


def test_patches_reach_a_pixel_into_their_neighbours(images):
    patches = np.array(Patches()(images[:, 1:-1, 1:-1]))
    assert patches.shape == (8, 12, 6, 24)
    for row, column in ((0, 0), (5, 3), (11, 5)):
        expected = images[:, 1 + 2 * row : 5 + 2 * row, 1 + 4 * column : 7 + 4 * column]
        np.testing.assert_array_equal(patches[:, row, column], expected.reshape(8, 24))


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization_is_keras_own(training, trainable):
    values = np.random.default_rng(0).normal(2, 3, (4, 5, 6)).astype("float32")
    results = []
    for kind in (networks.BatchNormalization, keras.layers.BatchNormalization):
        layer, x = kind(trainable=trainable), tf.Variable(values)
        with tf.GradientTape() as tape:
            outputs = layer(x, training=training)
            loss = tf.reduce_sum(outputs * np.sin(values))
        results.append([outputs, *tape.gradient(loss, [x, *layer.trainable_variables])])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_moving_averages_serve_after_few_steps_and_are_slow_after_many():
    values = np.random.default_rng(0).normal(2, 3, (64, 5, 6)).astype("float32")
    layer = networks.BatchNormalization()
    for _ in range(20):
        layer(values, training=True)
    mean, variance = values.mean((0, 1)), values.var((0, 1))
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-3)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-3)
    assert layer.steps == 20
    layer.steps.assign(2000)
    layer(values + 1, training=True)
    np.testing.assert_allclose(layer.moving_mean, mean + 0.01, rtol=1e-3)
    steps = layer.steps.numpy()
    layer(values, training=False)
    assert layer.steps == steps


@pytest.mark.parametrize("shape", [(64, 5, 6), (64, 4, 5, 6)])
def test_spatial_dropout_drops_a_feature_at_all_places(shape):
    layer, values = networks.SpatialDropout(0.25, seed=1), np.ones(shape, "float32")
    np.testing.assert_array_equal(layer(values, training=False), values)
    dropped = layer(values, training=True).numpy().reshape(64, -1, 6)
    assert (dropped == dropped[:, :1]).all()
    np.testing.assert_allclose(np.unique(dropped), [0, 4 / 3], rtol=1e-6)
    assert 0.15 < (dropped == 0).mean() < 0.35
    assert (dropped != layer(values, training=True).numpy().reshape(dropped.shape)).any()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_but_the_outermost_pixels_are_read(images, architecture):
    network = small_network(architecture)
    answers = network.predict_on_batch(images)
    for at, read in ((0, False), (1, True), (26, True), (27, False)):
        for inked in (np.s_[:, at], np.s_[:, :, at]):
            other = images.copy()
            other[inked] = 255 - other[inked]
            assert np.any(network.predict_on_batch(other) != answers) == read


@pytest.mark.slow
def test_every_line_of_the_grid_is_read_by_the_same_layer(digits):
    """So one layer, which reads only along the lines, is invariant to vertical shifts."""
    low_enough = ~(digits.images[:, :3].any(axis=(1, 2)) | digits.images[:, -5:].any(axis=(1, 2)))
    images = digits.images[low_enough][:8].astype("float32")
    assert len(images) == 8
    moved = np.roll(images, 2, axis=1)
    keras.utils.set_random_seed(1)
    one, two = (grid_network(layers=layers) for layers in (1, 2))
    np.testing.assert_allclose(one.predict_on_batch(moved), one.predict_on_batch(images), atol=1e-6)
    assert np.abs(two.predict_on_batch(moved) - two.predict_on_batch(images)).max() > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"layers": 1, "readout": "middle"}, {"layers": 4, "readout": "last"}, {"layers": 5, "normalize": False}],
)
def test_a_grid_of_any_shape_gives_probabilities(images, change):
    network = grid_network(**change)
    probabilities = network.predict_on_batch(images)
    assert probabilities.shape == (8, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    # Images are independent, although their lines share a batch.
    np.testing.assert_allclose(network.predict_on_batch(images[2:3]), probabilities[2:3], atol=1e-6)


@pytest.mark.slow
def test_grid_columns_reads_the_transposed_image(images):
    along, down = (small_network(architecture) for architecture in ("grid_rows", "grid_columns"))
    down.set_weights(along.get_weights())
    transposed = images.transpose(0, 2, 1)
    np.testing.assert_array_equal(down.predict_on_batch(transposed), along.predict_on_batch(images))


@pytest.mark.slow
def test_any_number_of_images_is_predicted(digits):
    network = small_network("rows")
    expected = network.predict_on_batch(digits.images[:300].astype("float32"))
    for number in (0, 1, 256, 300):
        predicted = predict(network, digits.images[:number])
        np.testing.assert_allclose(predicted, expected[:number], rtol=1e-5, atol=1e-7)


def moved(images, down, right):
    """What moves out of an image is lost, what moves in is black."""
    canvas = np.zeros((len(images), 30, 30), "float32")
    canvas[:, 1 + down : 29 + down, 1 + right : 29 + right] = images
    return canvas[:, 1:29, 1:29]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architectures", "shifts"), [(("rows",), SHIFTS), (("rows", "grid_rows"), ((1, -1),))]
)
def test_test_time_augmentation(monkeypatch, images, architectures, shifts):
    monkeypatch.setattr(networks, "SHIFTS", shifts)
    each = [small_network(architecture) for architecture in architectures]
    expected = np.mean(
        [network.predict_on_batch(moved(images, *shift)) for network in each for shift in shifts], axis=0
    )
    model = average(each, architectures, "fold_0", tta=True)
    np.testing.assert_allclose(model.predict_on_batch(images), expected, atol=1e-6)


@pytest.mark.slow
def test_an_ensemble_with_test_time_augmentation_can_be_saved(images, tmp_path):
    folds = [
        average([small_network(architecture)], [architecture], f"fold_{fold}", tta=True)
        for fold, architecture in enumerate(("rows", "grid_columns"))
    ]
    expected = np.mean([network.predict_on_batch(images) for network in folds], axis=0)
    build_ensemble(folds).save(tmp_path / "ensemble.keras")
    loaded = load_network(tmp_path / "ensemble.keras")
    np.testing.assert_allclose(predict(loaded, images), expected, atol=1e-6)
    np.testing.assert_array_equal(predict(loaded, images, threads=1), predict(loaded, images, threads=3))


@pytest.mark.slow
@pytest.mark.parametrize("imports", ["import pipeline, keras", "import keras, pipeline"])
def test_keras_loads_the_networks_once_the_package_is_imported(images, tmp_path, imports):
    network = small_network("grid_rows")
    network.save(tmp_path / "network.keras")
    np.save(tmp_path / "images.npy", images)
    load = "numpy.save('out.npy', keras.models.load_model('network.keras')(numpy.load('images.npy')))"
    done = run_python("-c", f"{imports}\nimport numpy\n{load}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), network.predict_on_batch(images), atol=1e-6)


@pytest.mark.parametrize("content", [None, b"", b"of an earlier run"])
def test_what_is_not_a_network_is_refused(tmp_path, content):
    path = tmp_path / "fold_0.keras"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PipelineError, match="is not a network that can be loaded") as error:
        load_network(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.slow
def test_another_projects_settings_of_keras_change_nothing(images, tmp_path):
    network = average([small_network(name) for name in ARCHITECTURES], ARCHITECTURES, "all")
    save_network(network, tmp_path / "network.keras")
    expected = predict(network, images)
    keras.config.set_image_data_format("channels_first")
    keras.config.set_floatx("float16")
    try:
        loaded = load_network(tmp_path / "network.keras")
        np.testing.assert_array_equal(predict(loaded, images), expected)
    finally:
        keras.config.set_image_data_format("channels_last")
        keras.config.set_floatx("float32")


def test_a_saved_network_has_the_same_bytes_at_any_time(tmp_path):
    network = small_network("rows")
    files = tmp_path / "one.keras", tmp_path / "two.keras"
    save_network(network, files[0])
    time.sleep(2.1)  # a zip archive counts time in steps of 2 seconds
    save_network(network, files[1])
    assert files[0].read_bytes() == files[1].read_bytes()
