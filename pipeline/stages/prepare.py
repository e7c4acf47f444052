"""Read and check the CSV files, find clean test images among them, make the folds: data/digits.npz."""

import numpy as np

from pipeline.competition import find_competition, read_digits
from pipeline.files import save_arrays
from pipeline.folds import find_images, make_folds
from pipeline.mnist import check_are_mnist, load_mnist
from pipeline.params import load_params
from pipeline.paths import CLEAN, DIGITS, MNIST, RAW
from pipeline.stages import run_stage


def main():
    params = load_params()
    competition, limit = find_competition(params.download.competition), params.prepare.limit
    images, labels, _ = read_digits(RAW / "train.csv", competition, limit)
    test_images, _, test_ids = read_digits(RAW / "test.csv", competition, limit)
    print(f"prepare: {len(images):,} rows of train.csv and {len(test_images):,} of test.csv")
    clean_images, clean_labels = read_clean_test_set(competition, images, test_images)
    test_index = find_images(images, clean_images)
    in_clean, hold_out = test_index >= 0, params.prepare.hold_out_mnist_test
    if name := competition.test_name:
        state = "held out" if hold_out else "trained on (prepare.hold_out_mnist_test is false)"
        print(f"prepare: {in_clean.sum():,} rows of train.csv are images of the {name}: {state}")
    folds = make_folds(labels, params.prepare.folds, params.seed, in_clean & hold_out, competition.classes)
    save_arrays(
        DIGITS,
        images=images,
        labels=labels,
        folds=folds,
        test_index=test_index,
        test_images=test_images,
        test_ids=test_ids,
        classes=np.array(competition.classes),
    )
    save_arrays(CLEAN, images=clean_images, labels=clean_labels)


def read_clean_test_set(competition, images, test_images):
    """Images and labels of the clean test set; empty where the competition has none."""
    if competition.test is None:
        return np.empty((0, *images.shape[1:]), np.uint8), np.empty(0, np.uint8)
    if competition.test == "mnist":
        mnist = load_mnist(MNIST)
        for name, part in (("train.csv", images), ("test.csv", test_images)):
            check_are_mnist(part, mnist, RAW / name)
        return mnist["test_images"], mnist["test_labels"]
    clean_images, labels, _ = read_digits(RAW / competition.test, competition)
    return clean_images, labels


if __name__ == "__main__":
    run_stage(main)
