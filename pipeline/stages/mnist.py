"""Get the 70,000 digits of MNIST and check their SHA-256 sums: data/mnist.npz."""

from pipeline.files import save_arrays
from pipeline.mnist import fetch_mnist
from pipeline.paths import MNIST
from pipeline.stages import run_stage


def main():
    arrays, source = fetch_mnist()
    save_arrays(MNIST, **arrays)
    print(f"mnist: 70,000 digits from {source}, SHA-256 sums as expected")


if __name__ == "__main__":
    run_stage(main)
