"""The competition's archive: unpacked whole, or refused without a file outside of the folder."""

import io
import zipfile

import numpy as np
import pytest
from helpers import refusal

from pipeline import competition as module
from pipeline.competition import FILES, unpack
from pipeline.files import PipelineError


def archive(**files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return packed.getvalue()


WHOLE = {name: np.random.default_rng(number).bytes(5_000) for number, name in enumerate(FILES)}


def test_unpack(tmp_path):
    (tmp_path / "a.zip").write_bytes(archive(**WHOLE, **{"notes.txt": "more"}))
    unpack(tmp_path / "a.zip", tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == WHOLE


def flipped(content):
    middle = content.index(WHOLE["train.csv"][2_000:2_010])
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_members_that_are_folders_do_no_harm(tmp_path):
    (tmp_path / "a.zip").write_bytes(archive(**WHOLE, **{"./": "", "folder/": ""}))
    unpack(tmp_path / "a.zip", tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(FILES)


def test_any_damage_to_an_archive_is_refused_or_harmless(tmp_path):
    random, whole = np.random.default_rng(0), np.frombuffer(archive(**WHOLE), np.uint8)
    directory = len(whole) - 300  # the archive's own list of members is at its end
    refused = 0
    for _ in range(300):
        damaged = whole.copy()
        damaged[random.integers(directory, len(whole), 3)] = random.integers(256, size=3)
        (tmp_path / "a.zip").write_bytes(damaged)
        try:
            unpack(tmp_path / "a.zip", tmp_path / "out")
        except PipelineError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert all((tmp_path / "out" / name).read_bytes() == content for name, content in WHOLE.items())
    assert refused > 100


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no such file"),
        (b"", "is not a whole zip archive"),
        (b"<html></html>", "is not a whole zip archive"),
        (archive(**WHOLE)[:-30], "is not a whole zip archive"),
        (archive(**WHOLE)[:6_000], "is not a whole zip archive"),
        (flipped(archive(**WHOLE)), "is not a whole zip archive"),
        (archive(**{**WHOLE, "../evil": "x"}), "member '../evil' would be written outside"),
        (archive(**{**WHOLE, "a/../../evil": "x"}), "would be written outside"),
        (archive(**{**WHOLE, "/evil": "x"}), "member '/evil' would be written outside"),
        (archive(**{**WHOLE, "..\\evil": "x"}), "would be written outside"),
        (archive(**{**WHOLE, "C:evil": "x"}), "would be written outside"),
        (archive(**{"train.csv": "x", "test.csv": "x"}), "has no member 'sample_submission.csv'"),
        (archive(**{f"folder/{name}": "x" for name in FILES}), "has no member 'train.csv'"),
    ],
    ids=[
        "none",
        "empty",
        "html",
        "cut at the end",
        "cut in the middle",
        "flipped bit",
        "parent",
        "parent within",
        "absolute",
        "backslash",
        "drive",
        "missing member",
        "members in a folder",
    ],
)
def test_bad_archive(tmp_path, content, says):
    path = tmp_path / "a.zip"
    if content is not None:
        path.write_bytes(content)
    assert says in refusal(unpack, path, tmp_path / "in" / "out")
    assert not list(tmp_path.rglob("evil*")) and not list(tmp_path.rglob(".*"))


def test_a_member_that_would_fill_the_disk(tmp_path, monkeypatch):
    (tmp_path / "a.zip").write_bytes(archive(**WHOLE))
    monkeypatch.setattr(module, "LARGEST_MEMBER", 4_999)
    assert "has 5000 bytes, allowed are 4999" in refusal(unpack, tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()
