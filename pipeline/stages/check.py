"""Measure the ensemble on the MNIST test split, honestly: metrics/check.json and figures."""

import sys

import matplotlib
import numpy as np
import pandas as pd

from pipeline.accuracy import measure
from pipeline.figures import draw_confusion, draw_mistakes
from pipeline.files import load_arrays, replacing, write_json
from pipeline.mnist import load_mnist
from pipeline.report import in_words
from pipeline.stages import DIGITS, ENSEMBLE, METRICS, MNIST, OOF, run_stage


def main():
    # TensorFlow comes with them, and must come when its log is out of the way (see run_stage).
    from pipeline.article import PRINTED, TEST_BATCH
    from pipeline.ensemble import load_network, predict, use_one_thread_an_operation

    use_one_thread_an_operation()
    mnist = load_mnist(MNIST)
    images, labels = mnist["test_images"], mnist["test_labels"]
    clean = np.ones(len(labels), bool)
    clean[mnist_test_images_trained_on()] = False
    probabilities = predict(load_network(ENSEMBLE), images)
    predicted = np.argmax(probabilities, axis=1)

    result = {"contaminated": not clean.all(), **measure(probabilities[clean], labels[clean])}
    if result["contaminated"]:
        everything = measure(probabilities, labels)
        result["contaminated_accuracy_on_all_images"] = everything["accuracy"]
    result["article_test_batch"] = {
        "images": TEST_BATCH,
        "article": PRINTED[max(PRINTED)][1],
        "ours": float(np.mean(predicted[:TEST_BATCH] == labels[:TEST_BATCH])),
    }
    matplotlib.use("Agg")
    with replacing(METRICS / "confusion.csv") as beside:
        pd.DataFrame({"actual": labels, "predicted": predicted})[clean].to_csv(beside, index=False)
    with replacing(METRICS / "confusion.png") as beside:
        draw_confusion(beside, labels[clean], predicted[clean])
    with replacing(METRICS / "mistakes.png") as beside:
        draw_mistakes(beside, images[clean], labels[clean], probabilities[clean])
    write_json(METRICS / "check.json", result)
    print(f"check: {in_words(result)}")


def mnist_test_images_trained_on():
    """Numbers of the images of the MNIST test split that a network trained on, with a label or without."""
    index, test_index = load_arrays(DIGITS, "prepare", "mnist_index", "test_mnist_index")
    folds, test_trained_on = load_arrays(OOF, "train", "folds", "test_trained_on")
    trained_on = np.concatenate([index[folds >= 0], test_index[test_trained_on]])
    return trained_on[trained_on >= 0]


if __name__ == "__main__":
    run_stage(sys.modules[__name__], main)
