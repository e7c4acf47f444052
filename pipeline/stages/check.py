"""Evaluate the ensemble on the MNIST test split, honestly: metrics/check.json, data/check.npz."""

import time

import numpy as np

from pipeline.files import load_arrays, save_arrays, write_json
from pipeline.metrics import evaluate, worst_first
from pipeline.mnist import load_mnist
from pipeline.paths import CHECK, DIGITS, ENSEMBLE, METRICS, MNIST
from pipeline.report.summary import check_in_words
from pipeline.stages import run_stage

# The digits whose reading is shown: the first of each of these, and as many of the surest mistakes.
READ = (2, 4, 5, 7)
MISREAD = 2


def main():
    # Imports TensorFlow, which must not come before its log is out of the way (see run_stage).
    from pipeline.networks import load_network, predict, use_one_thread_per_operation
    from pipeline.reading import find_row_reader, read_in_part

    mnist = load_mnist(MNIST)
    images, labels = mnist["test_images"], mnist["test_labels"]
    use_one_thread_per_operation()
    clean = np.ones(len(labels), bool)
    clean[mnist_test_images_trained_on()] = False
    ensemble = load_network(ENSEMBLE)
    started = time.perf_counter()
    probabilities = predict(ensemble, images)
    seconds = time.perf_counter() - started
    folds = sum(layer.name.startswith("fold_") for layer in ensemble.layers)
    each = np.stack([predict(ensemble.get_layer(f"fold_{fold}"), images) for fold in range(folds)])

    mistakes = [image for image in worst_first(probabilities, labels) if clean[image]]
    shown = [*(np.flatnonzero(labels == digit)[0] for digit in READ), *mistakes[:MISREAD]]
    reader = find_row_reader(ensemble)
    reading = [] if reader is None else read_in_part(reader, images[shown])
    save_arrays(CHECK, probabilities=probabilities, each=each, clean=clean, shown=shown, reading=reading)
    result = evaluate(probabilities[clean], labels[clean], seconds=round(seconds, 1))
    write_json(METRICS / "check.json", result)
    print(f"check: {check_in_words(result, np.mean(probabilities.argmax(axis=1) == labels))}")


def mnist_test_images_trained_on():
    """The numbers of the images of the MNIST test split that a network trained on."""
    index, folds = load_arrays(DIGITS, "prepare", "mnist_index", "folds")
    return index[(index >= 0) & (folds >= 0)]


if __name__ == "__main__":
    run_stage(main)
