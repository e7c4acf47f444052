"""The article's system is trained as in TensorFlow 1."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import run_python

from pipeline import article


def as_basic_lstm_cells(weights):
    """Our network's weights in TensorFlow 1's layout.

    Its gates are in the order i, j (the candidate), f, o; Keras's are i, f, candidate, o. It has one
    matrix for input and state, and adds the forget bias of 1.0 itself.
    """
    cells = []
    for kernel, recurrent, bias in (weights[:3], weights[3:6]):
        i, f, candidate, o = np.split(np.concatenate([kernel, recurrent]), 4, axis=1)
        cells.append(np.concatenate([i, candidate, f, o], axis=1))
        i, f, candidate, o = np.split(bias, 4)
        cells.append(np.concatenate([i, candidate, f - 1.0, o]))
    return [*cells, *weights[6:]]


@pytest.mark.slow
def test_training_is_that_of_tensorflow_1(mnist, tmp_path):
    network = article.build_article_network(128, "middle", "float32", seed=1)
    images, labels = mnist["train_images"], mnist["train_labels"]
    batches = list(article.draw_batches(images, labels, batch_size=200, steps=10, seed=1))
    weights = as_basic_lstm_cells(network.get_weights())
    np.savez(
        tmp_path / "job.npz",
        learning_rate=0.002,
        images=[images for images, _ in batches],
        labels=[labels for _, labels in batches],
        **{f"weights_{number}": array for number, array in enumerate(weights)},
    )
    ours = list(article.train(network, batches, learning_rate=0.002))

    program = run_python(
        Path(__file__).with_name("article_in_tensorflow1.py"), tmp_path / "job.npz", TF_USE_LEGACY_KERAS="1"
    )
    assert program.returncode == 0, program.stderr
    theirs = json.loads(program.stdout)
    assert len(ours) == 10 and ours[-1] < ours[0] / 2
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_batches_go_through_all_images_in_an_order_of_the_seed(mnist):
    images, labels = mnist["test_images"][:250], np.arange(250)

    def epochs(seed):
        drawn = [part for _, part in article.draw_batches(images, labels, 100, steps=4, seed=seed)]
        return np.concatenate(drawn[:2]), np.concatenate(drawn[2:])

    first, second = epochs(seed=1)
    assert len(set(first)) == len(set(second)) == 200
    assert (first != second).any() and (first != epochs(seed=2)[0]).any()
    np.testing.assert_array_equal(epochs(seed=1), (first, second))
