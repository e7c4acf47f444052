"""Read and check the CSV files, find MNIST test images, make the folds: data/digits.npz, data/folds.csv."""

import time

from pipeline.competition import read_digits
from pipeline.files import save_arrays, write_csv
from pipeline.folds import find_images, fold_table, make_folds
from pipeline.mnist import load_mnist
from pipeline.params import load_params
from pipeline.paths import DIGITS, FOLDS_TABLE, MNIST, RAW
from pipeline.stages import run_stage


def main():
    params = load_params()
    prepare = params.prepare
    started = time.perf_counter()
    images, labels = read_digits(RAW / "train.csv", prepare.limit)
    test_images, _ = read_digits(RAW / "test.csv", prepare.limit)
    print(
        f"prepare: {len(images)} rows of train.csv and {len(test_images)} of test.csv, read and checked in "
        f"{time.perf_counter() - started:.1f} s"
    )
    mnist_index = find_images(images, load_mnist(MNIST)["test_images"])
    in_mnist_test = mnist_index >= 0
    print(
        f"prepare: {in_mnist_test.sum()} rows of train.csv are images of the MNIST test split: "
        + (
            "held out, no network trains on them"
            if prepare.hold_out_mnist_test
            else "not held out (prepare.hold_out_mnist_test is false)"
        )
    )
    folds = make_folds(labels, prepare.folds, params.seed, in_mnist_test & prepare.hold_out_mnist_test)
    save_arrays(
        DIGITS, images=images, labels=labels, folds=folds, mnist_index=mnist_index, test_images=test_images
    )
    write_csv(FOLDS_TABLE, fold_table(labels, folds, mnist_index))


if __name__ == "__main__":
    run_stage(main)
