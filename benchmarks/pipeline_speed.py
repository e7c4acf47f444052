"""What the pipeline does beside training steps: the input side, prediction. See training_speed.py.

Both run in a process of their own, with the pipeline's own functions on random pixels; the time
does not depend on what the images show.
"""

import time

import numpy as np

from pipeline.params import load_params
from pipeline.training import Digits, Recipe, Trainer, best_precision

ROWS = 16000
TEST_IMAGES = 28000


def _random_images(rows):
    return np.random.default_rng(0).integers(256, size=(rows, 28, 28), dtype=np.uint8)


def _recipe(params):
    train = params.train
    return Recipe(
        seed=params.seed, **params.model.model_dump(),
        **train.model_dump(exclude={"workers", "engine", "precision"}),
        precision=best_precision() if train.precision == "auto" else train.precision)


def input_share():
    """Share of an epoch's time that goes into its images, from shuffling to batches."""
    params = load_params()
    labels = np.arange(ROWS) % 10
    digits = Digits(_random_images(ROWS), labels, np.arange(ROWS) // 10 % params.prepare.folds)
    trainer = Trainer(_recipe(params), digits)
    values = trainer.initial_values(0)
    # The first epoch compiles; a figure of the second counts.
    for epoch in range(2):
        values, figures = trainer.train_epoch(0, epoch, values)
    return figures["input_seconds"] / figures["seconds"]


def prediction_seconds():
    """Seconds to predict the competition's test images, their number and that of networks."""
    from pipeline.ensemble import build_ensemble, predict
    from pipeline.network import build_network

    params = load_params()
    recipe = _recipe(params)
    ensemble = build_ensemble([
        build_network(**params.model.model_dump(), precision=recipe.precision)
        for _ in range(params.prepare.folds)])
    images = _random_images(TEST_IMAGES)
    # As the stage does, compilation included.
    started = time.perf_counter()
    predict(ensemble, images)
    return time.perf_counter() - started, TEST_IMAGES, params.prepare.folds
