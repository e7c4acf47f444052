"""The optimizer: nearly orthogonal steps for the kernels of LSTMs, Keras's AdamW for all other variables."""

import keras
import numpy as np
import pytest
from helpers import small_params

from pipeline.training import trainer
from pipeline.training.optimizer import GATES, Muon, orthogonal_step

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
    for part, expected in zip(np.split(ours, GATES, axis=1), nearest, strict=True):
        assert np.linalg.norm(part - expected, 2) < 0.35  # so all singular values are between 0.65 and 1.35


def test_steps_are_those_of_muon_and_of_keras_adamw():
    random = np.random.default_rng(0)
    shapes = (8, GATES * UNITS), (GATES * UNITS,)
    kernel_start, bias_start = (random.normal(size=shape).astype("float32") for shape in shapes)
    with keras.name_scope("lstm_cell"):
        kernel, bias = keras.Variable(kernel_start, name="kernel"), keras.Variable(bias_start, name="bias")
    stock = keras.Variable(bias_start, name="stock")
    rate = keras.optimizers.schedules.CosineDecay(0.0, 6, warmup_target=0.01, warmup_steps=2)
    ours, adamw = Muon(rate, weight_decay=0.1), keras.optimizers.AdamW(rate, weight_decay=0.1)
    momentum, expected = 0, kernel_start
    for step in range(4):
        gradient, other = (
            keras.ops.convert_to_tensor(random.normal(size=start.shape).astype("float32"))
            for start in (kernel_start, bias_start)
        )
        ours.apply([gradient, other], [kernel, bias])
        adamw.apply([other], [stock])
        now, momentum = float(rate(step)), 0.95 * momentum + 0.05 * gradient
        expected = expected * (1 - 0.1 * now) - now * orthogonal_step(0.95 * momentum + 0.05 * gradient)
    np.testing.assert_allclose(kernel.numpy(), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(bias.numpy(), stock.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_an_epoch_takes_a_step_for_each_batch(digits):
    params = small_params(model={"dropout": 0.0, "grid_layers": 1}, train={"epochs": 1})
    images, targets = digits.images[:128].astype("float32"), np.eye(10, dtype="float32")[digits.labels[:128]]
    model, optimizer, train = trainer._build("grid_rows", params, digits.shape, 32, 4)
    # Two kernels in each of two directions.
    assert sum(velocity is None for velocity in optimizer._velocities) == 4
    network = keras.models.clone_model(model)
    network.set_weights(model.get_weights())
    network.compile(Muon.from_config(optimizer.get_config()), "categorical_crossentropy")
    losses = [network.train_on_batch(images[n : n + 32], targets[n : n + 32]) for n in range(0, 128, 32)]
    loss, _ = train(images, targets).numpy()
    assert loss == pytest.approx(np.mean(losses), rel=1e-4)
    for ours, theirs in zip(model.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
