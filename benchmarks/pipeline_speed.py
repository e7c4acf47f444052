"""What the pipeline does beside training steps: the input side, prediction. See training_speed.py.

Both run in a process of their own, with the pipeline's own functions on random pixels; the time
does not depend on what the images show.
"""

import time
from dataclasses import replace
from itertools import chain

import numpy as np

from pipeline.params import load_params
from pipeline.training import Digits, Network, Recipe, Trainer, network_of_fold, rounds

ROWS = 16000
TEST_IMAGES = 28000


def _random_images(rows):
    return np.random.default_rng(0).integers(256, size=(rows, 28, 28), dtype=np.uint8)


def input_share():
    """Share of a row reader's epoch that goes into its images, from shuffling to batches."""
    params = load_params()
    labels = np.arange(ROWS) % 10
    folds = np.arange(ROWS) // 10 % params.prepare.folds
    digits = Digits(_random_images(ROWS), labels, folds, _random_images(0))
    # The last epoch distorts no image; it must not be the one that counts.
    trainer = Trainer(replace(Recipe.from_params(params), epochs=3), digits)
    network = Network(0, "rows")
    values = trainer.initial_values(network)
    # The first epoch compiles; a figure of the second counts.
    for epoch in range(2):
        values, figures = trainer.train_epoch(network, epoch, values)
    return figures["input_seconds"] / figures["seconds"]


def prediction_seconds():
    """Seconds to predict the competition's test images, their number and that of networks."""
    from pipeline.ensemble import build_ensemble, predict, use_one_thread_an_operation

    use_one_thread_an_operation()
    params = load_params()
    recipe, folds = Recipe.from_params(params), params.prepare.folds
    networks = list(chain(*rounds(recipe, folds)))
    ensemble = build_ensemble([
        network_of_fold(fold, {network.name: recipe.build_network(network.reader)
                               for network in networks if network.fold == fold}, recipe.shifts)
        for fold in range(folds)])
    images = _random_images(TEST_IMAGES)
    # As the stage does, compilation included.
    started = time.perf_counter()
    predict(ensemble, images)
    return time.perf_counter() - started, TEST_IMAGES, len(networks)
