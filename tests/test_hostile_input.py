"""Any bytes in place of a file give correct data or one clear line, never a traceback.

Hypothesis damages files of each kind; `make fuzz EXAMPLES=10000` tries that many.
"""

import contextlib
import json
import os
import zipfile
from functools import cache

import keras
import numpy as np
import pytest
from helpers import ROOT, small_network, small_params
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.competition import COMPETITIONS, read_digits, read_submission, unpack
from pipeline.files import PipelineError, load_arrays, load_json, save_network
from pipeline.folds import TrainingData
from pipeline.kaggle.history import Submission, read_history, record
from pipeline.mnist import decode_member
from pipeline.params import load_params
from pipeline.prediction import load_network
from pipeline.training.members import Member
from pipeline.training.state import State, StateFiles

EXAMPLES = int(os.environ.get("EXAMPLES", 30))
COMPETITION = COMPETITIONS["digit-recognizer"]
# Content that other readers have failed on.
TOKENS = [
    *(b"\0", b"\r", b'"', b"'", b",", b";", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80"),
    *(b"-1", b"nan", b"1e999", b"!!python/object/apply:os.system [id]"),
    *(b"9" * 5000, b"[" * 5000, b'{"a":' * 5000, b"- " * 2000, b"&a [*a]", b"? {a: 1}\n: 2", b"2001-99-99"),
    *(b"1_0:60", b"0o9", b"0b", b"<<: 3", b"!!timestamp x", b"!!binary x"),
]  # fmt: skip
MEMBER = Member(0, "rows", 1)


@cache
def undamaged(kind, folder):
    """The bytes of a correct file of this kind."""
    path = folder / f"undamaged_{kind}"
    if kind == "params.yaml":
        return (ROOT / "params.yaml").read_bytes()
    if kind in ("train.csv", "test.csv"):
        columns = COMPETITION.columns(kind)
        return "".join(f"{','.join(row)}\n" for row in [columns, *[["7"] * len(columns)] * 2]).encode()
    if kind == "sample_submission.csv":
        return b"ImageId,Label\r\n1,0\r\n2,0\r\n"
    if kind == "history.csv":
        for reference in (1, 2):
            record(path, Submission(reference, "2026-01-01T00:00:00Z", "a, message"), "0a" * 32)
    elif kind == "archive.zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in COMPETITION.files:
                archive.writestr(name, name * 20)
    elif kind == "arrays.npz":
        path = path.with_suffix(".npz")
        np.savez_compressed(path, images=np.arange(500, dtype=np.uint8), labels=np.ones(3))
    elif kind == "state.npz":
        states = state_files(folder)
        states.write(MEMBER, State([np.arange(100), np.ones(3)], [{"epoch": 1, "loss": 2.5}]))
        path = states._path(MEMBER)
    elif kind == "network.keras":
        save_network(small_network("rows"), path)
    else:
        return json.dumps({"source": "kaggle", "sha256": {"a": 1}}).encode()
    return path.read_bytes()


@cache
def state_files(folder):
    images = np.zeros((4, 28, 28), np.uint8)
    data = TrainingData(images, images[:, 0, 0], np.arange(4) % 2)
    return StateFiles(folder / "states", small_params(), data)


def read_state(path):
    states = state_files(path.parent)
    states._path(MEMBER).write_bytes(path.read_bytes())
    states.read(MEMBER)


def unpack_beside(path):
    (path.parent / "unpacked").mkdir(exist_ok=True)
    unpack(path, path.parent / "unpacked", COMPETITION)


READERS = {
    "params.yaml": load_params,
    "train.csv": lambda path: read_digits(path, COMPETITION, limit=2),
    "test.csv": lambda path: read_digits(path, COMPETITION, limit=2),
    "sample_submission.csv": lambda path: read_submission(path, COMPETITION),
    "history.csv": read_history,
    "archive.zip": unpack_beside,
    "arrays.npz": lambda path: load_arrays(path, "prepare", "images", "labels"),
    "state.npz": read_state,
    "network.keras": load_network,
    "source.json": lambda path: load_json(path, "download"),
    "mnist.pkl.gz": lambda path: decode_member(path.read_bytes()),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@st.composite
def damaged(draw, content):
    """The content with one to four parts deleted, repeated or replaced."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.sampled_from([0, 1, 2, 8, 100, len(content)]))
        other = st.binary(max_size=8) | st.sampled_from(TOKENS) | st.just(content[start:end] * 2)
        content = content[:start] + draw(st.just(b"") | other) + content[end:]
    return content


@pytest.mark.parametrize("kind", READERS)
def test_any_bytes_give_data_or_one_line(kind, folder):
    path, tried = folder / kind, 0

    @settings(
        max_examples=max(EXAMPLES // (10 if kind == "network.keras" else 1), 5),
        deadline=None,
        database=None,
        derandomize="EXAMPLES" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(undamaged(kind, folder)) | st.binary(max_size=300))
    def read(content):
        nonlocal tried
        tried += 1
        path.write_bytes(content)
        try:
            READERS[kind](path)
        except PipelineError as error:
            assert str(error).isprintable()

    path.write_bytes(undamaged(kind, folder))
    if kind != "mnist.pkl.gz":
        READERS[kind](path)
    read()
    print(f"{kind}: {tried} inputs, no traceback")


def test_nothing_in_a_file_is_run(folder):
    """A pickle, a YAML tag and a Keras lambda would create a folder."""
    command = "__import__('os').mkdir('made')"

    class Pickled:
        def __reduce__(self):
            return eval, (command,)

    np.savez(folder / "arrays.npz", images=np.array([Pickled()]), labels=np.ones(1))
    tag = f"seed: !!python/object/apply:builtins.eval [{json.dumps(command)}]"
    (folder / "params.yaml").write_text(tag)
    with contextlib.chdir(folder):
        network = keras.Sequential([keras.Input((1,)), keras.layers.Lambda(lambda x: (eval(command), x)[1])])
        (folder / "made").rmdir()  # building the network has run it
        network.save("network.keras")
        for kind in ("arrays.npz", "params.yaml", "network.keras"):
            with pytest.raises(PipelineError):
                READERS[kind](folder / kind)
    assert not (folder / "made").exists()
