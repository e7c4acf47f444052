"""The competition's files: written as Kaggle writes them, and every flaw named by row and column."""

import csv
import hashlib

import numpy as np
import pytest
from helpers import refusal

from pipeline import competition as module
from pipeline.competition import (
    COLUMNS,
    FILES,
    ROWS,
    check_files,
    read_digits,
    read_labels,
    write_digits,
    write_labels,
)
from pipeline.files import PipelineError, atomic_write, write_json

HEADER = COLUMNS["train.csv"]


@pytest.fixture(scope="module")
def rows(competition):
    """Six rows of a train.csv as text, header first."""
    images, labels = competition[0]
    return [
        HEADER,
        *(
            [str(value) for value in (label, *image.flat)]
            for image, label in zip(images[:6], labels[:6], strict=True)
        ),
    ]


@pytest.fixture
def train_csv(tmp_path):
    """Writes rows to a train.csv and returns its path."""

    def write(rows, end="\n"):
        path = tmp_path / "train.csv"
        path.write_bytes("".join(",".join(row) + end for row in rows).encode())
        return path

    return write


# Digits


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, 1], ids=["train.csv", "test.csv"])
def test_full_size_round_trip(competition, tmp_path, part):
    name, (images, labels) = FILES[part], competition[part]
    write_digits(tmp_path / name, images, None if part else labels)
    again, again_labels = read_digits(tmp_path / name)
    assert again.dtype == np.uint8 and np.array_equal(again, images)
    assert again_labels is None if part else np.array_equal(again_labels, labels)
    with open(tmp_path / name, newline="") as file:
        text = csv.reader(file)
        assert next(text) == COLUMNS[name]
        assert next(text) == [str(value) for value in (*([] if part else [labels[0]]), *images[0].flat)]


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("last", ["", "end"])
def test_both_line_ends(competition, rows, train_csv, end, last):
    path = train_csv(rows, end)
    if not last:
        path.write_bytes(path.read_bytes().removesuffix(end.encode()))
    images, labels = read_digits(path, limit=6)
    assert np.array_equal(images, competition[0][0][:6]) and np.array_equal(labels, competition[0][1][:6])


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (4, 4), (6, 6), (100, 6)])
def test_limit_keeps_the_first_rows(competition, rows, train_csv, limit, count):
    images, labels = read_digits(train_csv(rows), limit)
    assert len(images) == len(labels) == count
    assert np.array_equal(images, competition[0][0][:count])


@pytest.mark.parametrize(
    "cell",
    ["-1", "256", "0.5", "", "x", "nan", "NA", "inf", "true", "0x10", "99999999999999999999", "\uff15"],
)
@pytest.mark.parametrize("column", [1, 300, 784])
def test_bad_pixel(rows, train_csv, cell, column):
    rows = [list(row) for row in rows]
    rows[4][column] = cell
    message = refusal(read_digits, train_csv(rows), limit=6)
    assert f"row 4, column pixel{column - 1}: found {cell!r}, allowed is a whole number 0..255" in message


@pytest.mark.parametrize("label", ["10", "255", "-1", "1.5", "", "seven"])
def test_bad_label(rows, train_csv, label):
    rows = [list(row) for row in rows]
    rows[2][0] = label
    message = refusal(read_digits, train_csv(rows), limit=6)
    assert "row 2, column label: found " in message and "allowed is a digit 0..9" in message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda row: row[:-1], "row 3 has 784 columns, expected 785"),
        (lambda row: row[:100], "row 3 has 100 columns, expected 785"),
        (lambda row: row + ["0"], "row 3 has 786 columns, expected 785"),
        (lambda row: row + [""], "row 3 has 786 columns, expected 785"),
        (lambda row: ["\xff\x00"], "row 3 has 1 columns, expected 785"),
    ],
    ids=["one short", "cut off", "one more", "comma at the end", "noise"],
)
def test_bad_row(rows, train_csv, change, says):
    assert says in refusal(read_digits, train_csv([*rows[:3], change(rows[3]), *rows[4:]]), limit=6)


@pytest.mark.parametrize("more", [["0"], [""], ["0", "0"]])
def test_cells_beyond_the_header_in_every_row(rows, train_csv, more):
    message = refusal(read_digits, train_csv([HEADER, *(row + more for row in rows[1:])]), limit=6)
    assert f"{785 + len(more)} columns, expected 785" in message


def test_a_file_that_ends_within_a_row(rows, train_csv):
    path = train_csv(rows)
    path.write_bytes(path.read_bytes()[:-500])
    assert "row 6 has " in refusal(read_digits, path, limit=6)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (HEADER[:-1], "column 'pixel783' is missing"),
        (HEADER[1:], "column 'label' is missing"),
        ([*HEADER, "extra"], "column 'extra' does not belong there"),
        (["Label", *HEADER[1:]], "column 'label' is missing, found 'Label'"),
        ([*HEADER[:2], "pixel01", *HEADER[3:]], "column 'pixel1' is missing, found 'pixel01'"),
        ([HEADER[0], *HEADER[:0:-1]], "columns are out of order: column 2 is 'pixel783'"),
        ([*HEADER[:5], "pixel3", *HEADER[6:]], "column 'pixel3' is there more than once"),
        (["7"] * 785, "column '7' is there more than once"),
    ],
    ids=["missing", "no label", "extra", "renamed", "renamed pixel", "reordered", "duplicated", "none"],
)
def test_bad_header(rows, train_csv, header, says):
    assert says in refusal(read_digits, train_csv([header, *rows[1:]]), limit=6)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html><html>sign in</html>", "is an HTML page"),
        (b"\n <html>", "is an HTML page"),
        (b"PK\x03\x04rest of a zip", "is a zip archive"),
        (b"", "column 'label' is missing"),
        (bytes(1000), "column 'label' is missing"),
    ],
    ids=["html", "html after a blank", "zip", "empty", "zeros"],
)
def test_something_else_in_place_of_the_file(tmp_path, content, says):
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    if says == "is an HTML page" and content.startswith(b"\n"):
        says = "column 'label' is missing"
    assert says in refusal(read_digits, path)


def test_no_file(tmp_path):
    assert "there is no such file" in refusal(read_digits, tmp_path / "train.csv")
    (tmp_path / "test.csv").mkdir()
    assert "cannot be read" in refusal(read_digits, tmp_path / "test.csv")


@pytest.mark.parametrize("count", [0, 1, 6])
def test_wrong_number_of_rows(rows, train_csv, count):
    assert f"{count} rows, expected 42000" in refusal(read_digits, train_csv(rows[: count + 1]))


def test_a_quote_that_is_never_closed(competition, train_csv):
    rows = [
        [str(value) for value in (label, *image.flat)]
        for image, label in zip(competition[0][0][:300], competition[0][1][:300], strict=True)
    ]
    rows[100][0] = '"' + rows[100][0]
    assert "row 101" in refusal(read_digits, train_csv([HEADER, *rows]), limit=300)


# Labels


def test_the_sample_submission_is_kaggles_byte_for_byte(tmp_path):
    path = tmp_path / "sample_submission.csv"
    write_labels(path, range(1, 28_001), 0)
    assert len(path.read_bytes()) == 240_909
    assert (
        hashlib.sha256(path.read_bytes()).hexdigest()
        == "6ebaa8f99662433c2ad4fee65c76d8eb12ad627c3d2de1901704712e31bc0d9a"
    )


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_labels_come_back_in_their_order(tmp_path, end):
    ids = np.random.default_rng(0).permutation(28_000) + 1
    write_labels(tmp_path / "submission.csv", ids, ids % 10)
    content = (tmp_path / "submission.csv").read_bytes()
    assert content.startswith(b"ImageId,Label\r\n%d,%d\r\n" % (ids[0], ids[0] % 10))
    (tmp_path / "submission.csv").write_bytes(content.replace(b"\r\n", end))
    again, labels = read_labels(tmp_path / "submission.csv")
    assert np.array_equal(again, ids) and np.array_equal(labels, ids % 10)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ImageId,Label\n1,0\n2,0\n2,0\n", "row 3: id 2 is there twice"),
        ("ImageId,Label\n1,0\n2,0\n4,0\n", "id 4 does not belong there; allowed are the ids 1..3"),
        ("ImageId,Label\n0,0\n1,0\n", "id 0 does not belong there"),
        ("ImageId,Label\n1,0\n2,10\n", "row 2, column Label: found 10, allowed is a digit 0..9"),
        ("ImageId,Label\n1,0\n2,-1\n", "row 2, column Label: found -1"),
        ("ImageId,Label\n1,0\n2,0.5\n", "expected two whole numbers"),
        ("ImageId,Label\n1,0\n2,\n", "expected two whole numbers"),
        ("ImageId,Label\n1,0\n2\n", "expected two whole numbers"),
        ("ImageId,Label\n1,0\nx,1\n", "expected two whole numbers"),
        ("ImageId,Label\n1,0\n2,0,0\n", "expected two whole numbers"),
        ("ImageId,Label\n1,0,0\n2,0,0\n", "expected two whole numbers"),
        ("ImageId,Label\n1,99999999999999999999\n", "expected two whole numbers"),
        ("ImageId,label\n1,0\n", "column 'Label' is missing, found 'label'"),
        ("Label,ImageId\n0,1\n", "columns are out of order"),
        ("ImageId\n1\n", "column 'Label' is missing"),
        ("ImageId,Label,Label\n1,0,0\n", "column 'Label' is there more than once"),
        ("<html></html>", "is an HTML page"),
    ],
)
def test_bad_labels(tmp_path, text, says):
    (tmp_path / "sample_submission.csv").write_text(text)
    assert says in refusal(read_labels, tmp_path / "sample_submission.csv", limit=3)


def test_too_few_labels(tmp_path):
    write_labels(tmp_path / "submission.csv", range(1, 28_001), 0)
    lines = (tmp_path / "submission.csv").read_bytes().splitlines(True)
    (tmp_path / "submission.csv").write_bytes(b"".join(lines[:-1]))
    assert "27999 rows, expected 28000" in refusal(read_labels, tmp_path / "submission.csv")


# Writing


@pytest.mark.parametrize(
    ("ids", "labels"),
    [([1, 2, 2], 0), ([1, 2, 4], 0), ([1, 2, 3], 10), ([1, 2, 3], [0, -1, 0]), ([1, 2, 3], 0.5)],
)
@pytest.mark.parametrize("before", [None, b"an earlier submission"])
def test_a_bad_submission_never_appears(tmp_path, ids, labels, before):
    path = tmp_path / "submission.csv"
    if before:
        path.write_bytes(before)
    with pytest.raises(PipelineError):
        write_labels(path, ids, labels, limit=3)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([before] if before else [])


def test_too_few_rows_never_appear(tmp_path):
    with pytest.raises(PipelineError, match="3 rows, expected 28000"):
        write_labels(tmp_path / "submission.csv", [1, 2, 3], 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("before", [None, "old"])
def test_a_failed_write_leaves_what_was_there(tmp_path, before):
    path = tmp_path / "folder" / "file.json"
    if before:
        write_json(path, before)
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as tmp:
        tmp.write_text("half")
        raise KeyboardInterrupt
    assert [file.read_text() for file in path.parent.iterdir()] == (['"old"\n'] if before else [])


def test_all_files_are_checked(competition, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS", {name: 6 for name in ROWS})
    (images, labels), _ = competition

    def write():
        write_digits(tmp_path / "train.csv", images[:6], labels[:6])
        write_digits(tmp_path / "test.csv", images[:6])
        write_labels(tmp_path / "sample_submission.csv", range(1, 7), 0)

    for name in FILES:
        write()
        check_files(tmp_path)
        (tmp_path / name).write_text("<html>")
        with pytest.raises(PipelineError, match=f"{name}: is an HTML page"):
            check_files(tmp_path)
