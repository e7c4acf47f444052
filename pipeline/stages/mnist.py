"""Get the 70,000 digits of MNIST and check their SHA-256 sums: data/mnist.npz."""

import sys

import numpy as np

from pipeline.files import replacing
from pipeline.mnist import fetch_mnist
from pipeline.stages import MNIST, run_stage


def main():
    arrays, source = fetch_mnist()
    with replacing(MNIST) as beside:
        np.savez_compressed(beside, **arrays)
    print(f"mnist: 70,000 digits from {source}, SHA-256 sums as expected")


if __name__ == "__main__":
    run_stage(sys.modules[__name__], main)
