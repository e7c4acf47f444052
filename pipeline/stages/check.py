"""Evaluate the ensemble on the MNIST test split, honestly: metrics/check.json and pictures."""

import sys

import numpy as np

from pipeline.files import atomic_write, load_arrays, write_json
from pipeline.metrics import evaluate
from pipeline.mnist import load_mnist
from pipeline.paths import DIGITS, ENSEMBLE, METRICS, MNIST
from pipeline.report.page import in_words
from pipeline.report.plots import draw_confusion, draw_mistakes
from pipeline.stages import run_stage


def main():
    # Imports TensorFlow, which must not come before its log is out of the way (see run_stage).
    from pipeline.article import PRINTED, TEST_BATCH
    from pipeline.networks import load_network, predict, use_one_thread_per_operation

    mnist = load_mnist(MNIST)
    images, labels = mnist["test_images"], mnist["test_labels"]
    use_one_thread_per_operation()
    clean = np.ones(len(labels), bool)
    clean[mnist_test_images_trained_on()] = False
    probabilities = predict(load_network(ENSEMBLE), images)
    predicted = np.argmax(probabilities, axis=1)

    result = {"contaminated": not clean.all(), **evaluate(probabilities[clean], labels[clean])}
    if result["contaminated"]:
        result["contaminated_accuracy_on_all_images"] = float(np.mean(predicted == labels))
    result["article_test_batch"] = {
        "images": TEST_BATCH,
        "article": PRINTED[max(PRINTED)][1],
        "ours": float(np.mean(predicted[:TEST_BATCH] == labels[:TEST_BATCH])),
    }
    with atomic_write(METRICS / "confusion.png") as tmp:
        draw_confusion(tmp, labels[clean], predicted[clean])
    with atomic_write(METRICS / "mistakes.png") as tmp:
        draw_mistakes(tmp, images[clean], labels[clean], probabilities[clean])
    write_json(METRICS / "check.json", result)
    print(f"check: {in_words(result)}")


def mnist_test_images_trained_on():
    """The numbers of the images of the MNIST test split that a network trained on."""
    index, folds = load_arrays(DIGITS, "prepare", "mnist_index", "folds")
    return index[(index >= 0) & (folds >= 0)]


if __name__ == "__main__":
    run_stage(sys.modules[__name__], main)
