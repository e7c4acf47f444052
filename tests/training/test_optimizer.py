"""The optimizer: orthogonal steps for the kernels of LSTMs, Keras's AdamW for all other variables."""

import keras
import numpy as np
import pytest
from helpers import small_params

from pipeline.training import trainer
from pipeline.training.optimizer import GATES, orthogonal_step

UNITS = 16


@pytest.mark.parametrize("inputs", [8, UNITS, 40])
def test_the_step_of_each_gate_is_nearly_its_nearest_orthogonal_matrix(inputs):
    random, rank = np.random.default_rng(inputs), min(inputs, UNITS)
    gates, nearest = [], []
    for _ in range(GATES):
        left, right = (np.linalg.qr(random.normal(size=(size, rank)))[0] for size in (inputs, UNITS))
        gates.append(left * np.linspace(0.1, 1, rank) @ right.T)
        nearest.append(left @ right.T)
    step = orthogonal_step(np.concatenate(gates, axis=1).astype("float32"))
    ours = step.numpy() / (0.2 * max(inputs, UNITS) ** 0.5)
    # The iteration stops with singular values between 0.7 and 1.2.
    for part, expected in zip(np.split(ours, GATES, axis=1), nearest, strict=True):
        singular = np.linalg.svd(part, compute_uv=False)
        assert singular[-1] > 0.65 and singular[0] < 1.25
        assert np.linalg.norm(part - expected, 2) < 0.35


@pytest.mark.slow
def test_all_other_variables_take_the_step_of_keras_adamw(digits):
    params = small_params(model={"dropout": 0.0}, train={"epochs": 1, "warmup": 0.0})
    images, targets = digits.images[:32].astype("float32"), np.eye(10, dtype="float32")[digits.labels[:32]]
    model, _, train = trainer._build("grid_rows", params, digits.shape, 32, 1)
    stock = keras.models.clone_model(model)
    stock.set_weights(model.get_weights())
    stock.compile(keras.optimizers.AdamW(0.01, weight_decay=0.1), "categorical_crossentropy")
    before = model.get_weights()
    loss, _ = train(images, targets).numpy()
    assert stock.train_on_batch(images, targets) == pytest.approx(loss, rel=1e-5)
    kernels = 0
    for variable, start, theirs in zip(model.weights, before, stock.get_weights(), strict=True):
        ours = variable.numpy()
        if "lstm_cell/" in variable.path and ours.ndim == 2:
            kernels += 1
            assert np.abs(ours - theirs).max() > 1e-3
            step = (ours - start * (1 - 0.01 * 0.1)) / 0.01
            assert 0.14 < np.sqrt(np.mean(step**2)) < 0.25
        else:
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert kernels == 2 * 2 * params.model.grid_layers
