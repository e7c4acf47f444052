"""Read and check the CSV files, find the MNIST test images, make the folds: data/digits.npz."""

import sys
import time

import numpy as np

from pipeline.competition import read_digits
from pipeline.files import replacing
from pipeline.folds import find_images, make_folds
from pipeline.mnist import load_mnist
from pipeline.params import load_params
from pipeline.stages import DIGITS, MNIST, RAW, run_stage


def main():
    params = load_params()
    limit = params.prepare.limit
    started = time.perf_counter()
    images, labels = read_digits(RAW / "train.csv", limit)
    test_images, _ = read_digits(RAW / "test.csv", limit)
    print(f"prepare: {len(images)} rows of train.csv and {len(test_images)} of test.csv, read and "
          f"checked in {time.perf_counter() - started:.1f} s")
    mnist_test_images = load_mnist(MNIST)["test_images"]
    mnist_index = find_images(images, mnist_test_images)
    test_mnist_index = find_images(test_images, mnist_test_images)
    in_mnist_test = mnist_index >= 0
    held_out = in_mnist_test & params.prepare.hold_out_mnist_test
    test_held_out = (test_mnist_index >= 0) & params.prepare.hold_out_mnist_test
    folds = make_folds(labels, params.prepare.folds, params.seed, held_out)
    print(f"prepare: {in_mnist_test.sum()} rows of train.csv and {np.sum(test_mnist_index >= 0)} of test.csv "
          "are images of the MNIST test split: "
          + ("held out, no network trains on them" if params.prepare.hold_out_mnist_test
             else "not held out (prepare.hold_out_mnist_test is false)"))
    with replacing(DIGITS) as beside:
        np.savez_compressed(beside, images=images, labels=labels, folds=folds,
                            mnist_index=mnist_index, test_images=test_images,
                            test_mnist_index=test_mnist_index, test_held_out=test_held_out)


if __name__ == "__main__":
    run_stage(sys.modules[__name__], main)
