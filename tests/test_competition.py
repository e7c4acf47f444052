"""The competition's files: Kaggle's format, and errors that name file, row and column."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from helpers import refusal, zipped

from pipeline.competition import (
    COMPETITIONS,
    check_files,
    copy_files,
    find_competition,
    read_digits,
    read_submission,
    unpack,
    write_digits,
    write_submission,
)
from pipeline.files import PipelineError, atomic_write, sha256, write_json

DIGITS, KANNADA = COMPETITIONS["digit-recognizer"], COMPETITIONS["Kannada-MNIST"]
HEADER = DIGITS.columns("train.csv")


@pytest.fixture(scope="module")
def rows(competition):
    """Six rows of a train.csv as text, header first."""
    images, labels = competition[0]
    cells = np.column_stack([labels[:6], images[:6].reshape(6, -1)]).tolist()
    return [HEADER, *([str(cell) for cell in row] for row in cells)]


@pytest.fixture
def train_csv(tmp_path):
    """Writes rows to a train.csv and returns its path."""

    def write(rows, separator=",", end="\n"):
        path = tmp_path / "train.csv"
        path.write_bytes("".join(separator.join(row) + end for row in rows).encode())
        return path

    return write


def changed(rows, row, column, cell):
    rows = [list(row) for row in rows]
    rows[row][column] = cell
    return rows


# Images


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, 1], ids=["train.csv", "test.csv"])
def test_full_size_round_trip(competition, tmp_path, part):
    name, (images, labels) = DIGITS.files[part], competition[part]
    write_digits(tmp_path / name, DIGITS, images, None if part else labels)
    again, again_labels, ids = read_digits(tmp_path / name, DIGITS)
    assert again.dtype == np.uint8 and np.array_equal(again, images)
    assert again_labels is None if part else np.array_equal(again_labels, labels)
    assert np.array_equal(ids, np.arange(1, len(images) + 1))
    with open(tmp_path / name, newline="") as file:
        text = csv.reader(file)
        assert next(text) == DIGITS.columns(name)
        assert next(text) == [str(value) for value in (*([] if part else [labels[0]]), *images[0].flat)]


@pytest.mark.parametrize(
    ("separator", "end", "header"),
    [
        (",", "\n", HEADER),
        (",", "\r\n", HEADER),
        (",", "\r", HEADER),
        (", ", "\n", HEADER),
        (",", "\n", [f'"{it}"' for it in HEADER]),
    ],
    ids=["LF", "CRLF", "CR", "blanks", "quoted by R"],
)
@pytest.mark.parametrize("last_line_end", [True, False])
def test_spreadsheets_ways_to_write_csv_are_read(
    competition, rows, train_csv, separator, end, header, last_line_end
):
    path = train_csv([header, *rows[1:]], separator, end)
    if not last_line_end:
        path.write_bytes(path.read_bytes().removesuffix(end.encode()))
    for limit, count in ((None, 6), (4, 4), (100, 6)):
        images, labels, _ = read_digits(path, DIGITS, limit)
        assert np.array_equal(images, competition[0][0][:count])
        assert np.array_equal(labels, competition[0][1][:count])


@pytest.mark.parametrize(
    "cell", ["-1", "256", "0.5", "", "x", "nan", "NA", "inf", "true", "0x10", "9" * 20, "\uff15"]
)
@pytest.mark.parametrize("column", [1, 784])
def test_bad_pixel(rows, train_csv, cell, column):
    message = refusal(read_digits, train_csv(changed(rows, 4, column, cell)), DIGITS)
    assert f"row 4, column pixel{column - 1}: found {cell!r}, allowed is an integer 0..255" in message


@pytest.mark.parametrize("label", ["10", "255", "256", "-1", "1.5", "", "seven"])
def test_bad_label(rows, train_csv, label):
    message = refusal(read_digits, train_csv(changed(rows, 2, 0, label)), DIGITS)
    assert "row 2, column label: found " in message and "allowed is an integer 0..9" in message


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        (lambda row: row[:-1], 784),
        (lambda row: row[:100], 100),
        (lambda row: [*row, "0"], 786),
        (lambda row: ["\xff\x00"], 1),
    ],
    ids=["one short", "cut off", "one more", "noise"],
)
def test_bad_row(rows, train_csv, change, columns):
    one = [*rows[:3], change(rows[3]), *rows[4:]]
    assert f"row 3 has {columns} columns, expected 785" in refusal(read_digits, train_csv(one), DIGITS)
    every = [rows[0], *map(change, rows[1:])]
    assert f"row 1 has {columns} columns, expected 785" in refusal(read_digits, train_csv(every), DIGITS)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (HEADER[:-1], "column 785 of the header is '', expected 'pixel783'"),
        (HEADER[1:], "column 1 of the header is 'pixel0', expected 'label'"),
        ([*HEADER, "extra"], "column 786 of the header is 'extra', expected ''"),
        (["Label", *HEADER[1:]], "column 1 of the header is 'Label', expected 'label'"),
        ([HEADER[0], *HEADER[:0:-1]], "column 2 of the header is 'pixel783', expected 'pixel0'"),
        (["7"] * 785, "column 1 of the header is '7', expected 'label'"),
        ([";".join(HEADER)], "column 1 of the header is 'label;pixel0;"),
    ],
    ids=["missing", "no label", "extra", "renamed", "reordered", "none", "semicolons"],
)
def test_bad_header(rows, train_csv, header, says):
    message = refusal(read_digits, train_csv([header, *rows[1:]]), DIGITS)
    assert says in message and message.endswith("the header must be label,pixel0,pixel1,...,pixel783")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no such file"),
        (b"\n<!DOCTYPE html><html>sign in</html>", "is an HTML page"),
        (",".join(HEADER).encode() + b"\n", "has no rows"),
        (b"PK\x03\x04rest of a zip", "column 1 of the header is 'PK??rest of a zip', expected 'label'"),
        (b"", "column 1 of the header is '', expected 'label'"),
    ],
    ids=["none", "html", "header only", "zip", "empty"],
)
def test_something_else_in_place_of_the_file(tmp_path, content, says):
    if content is not None:
        (tmp_path / "train.csv").write_bytes(content)
    assert says in refusal(read_digits, tmp_path / "train.csv", DIGITS)


def test_a_quote_that_is_never_closed(rows, train_csv):
    many = changed(rows[:1] + rows[1:] * 50, 101, 0, '"1')
    assert "row 101" in refusal(read_digits, train_csv(many), DIGITS)


# Submissions


def test_a_submission_comes_back_and_has_the_bytes_of_kaggles_own(tmp_path):
    path, ids = tmp_path / "sample_submission.csv", np.arange(28_000, 0, -1)
    write_submission(path, DIGITS, ids, ids % 10)
    again = read_submission(path, DIGITS)
    assert np.array_equal(again["ImageId"], ids) and np.array_equal(again["Label"], ids % 10)
    write_submission(path, DIGITS, ids[::-1], 0)
    assert sha256(path) == "6ebaa8f99662433c2ad4fee65c76d8eb12ad627c3d2de1901704712e31bc0d9a"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ImageId,Label\n1,0\n2,0\n2,0\n", "row 3, column ImageId: id 2 occurs twice"),
        ("ImageId,Label\n1,0\n2,10\n", "row 2, column Label: found '10', allowed is an integer 0..9"),
        ("ImageId,Label\n1,0\n2,-1\n", "row 2, column Label: found '-1', allowed is an integer 0..9"),
        ("ImageId,Label\n1,0\n2,0.5\n", "row 2, column Label: found '0.5'"),
        ("ImageId,Label\n1,0\n2,\n", "row 2, column Label: found ''"),
        ("ImageId,Label\n1,0\nx,1\n", "row 2, column ImageId: found 'x', allowed is an integer"),
        (f"ImageId,Label\n1,{'9' * 20}\n", "row 1, column Label: found '999"),
        ("ImageId,Label\n1,0\n2\n", "row 2 has 1 columns, expected 2"),
        ("ImageId,Label\n1,0,0\n2,0,0\n", "row 1 has 3 columns, expected 2"),
        (
            "ImageId,label\n1,0\n",
            "column 2 of the header is 'label', expected 'Label'; the header must be ImageId,Label",
        ),
        ("Label,ImageId\n0,1\n", "column 1 of the header is 'Label', expected 'ImageId'"),
        ("<html></html>", "is an HTML page"),
    ],
)
def test_bad_submission(tmp_path, text, says):
    (tmp_path / "sample_submission.csv").write_text(text)
    assert says in refusal(read_submission, tmp_path / "sample_submission.csv", DIGITS)


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    write_json(tmp_path / "file.json", "old")
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "file.json") as tmp:
        tmp.write_text("half")
        raise KeyboardInterrupt
    assert [file.read_text() for file in tmp_path.iterdir()] == ['"old"\n']


# All files of a competition


def test_find_competition():
    assert find_competition(" Digit-Recognizer ") is DIGITS
    assert (
        find_competition("https://www.kaggle.com/competitions/digit-recognizer/data?select=train.csv")
        is DIGITS
    )
    assert find_competition("kaggle.com/c/kannada-mnist") is KANNADA
    with pytest.raises(PipelineError, match=r"is 'titanic', allowed: digit-recognizer, Kannada-MNIST; add"):
        find_competition("titanic")


def write_files(folder, competition, images, labels, test_ids, sample_ids):
    """Write a competition's files, all with the same images."""
    for name in competition.files:
        columns = competition.columns(name)
        if name == "sample_submission.csv":
            table = [columns, *([number, 0] for number in sample_ids)]
        else:
            first = {"test.csv": test_ids if competition.id else None}.get(name, labels)
            pixels = images.reshape(len(images), -1)
            table = [columns, *(pixels if first is None else np.column_stack([first, pixels])).tolist()]
        (folder / name).write_text("".join(",".join(map(str, row)) + "\n" for row in table))


PIXELS_FROM_1 = replace(DIGITS, slug="pixels-from-1", first_pixel=1, test=None)


@pytest.mark.parametrize("entry", [DIGITS, KANNADA, PIXELS_FROM_1], ids=lambda it: it.slug)
def test_all_files_are_checked(digits, tmp_path, entry):
    competition = replace(entry, size=4, rows=((12, 12), (42_000, 28_000)))
    images, labels = digits.images[:12, 12:16, 12:16], digits.labels[:12]
    ids = np.arange(12) * 7 + 100 if competition.id else np.arange(1, 13)
    write_files(tmp_path, competition, images, labels, ids, ids[::-1])
    for name in competition.files:
        path = tmp_path / name
        whole = path.read_bytes()
        check_files(tmp_path, competition)
        path.write_text("<html>")
        with pytest.raises(PipelineError, match=f"{name}: is an HTML page"):
            check_files(tmp_path, competition)
        path.write_bytes(whole)

    with pytest.raises(PipelineError, match="have 12 and 12 rows, expected 12 and 9 or 60,000 and 10,000"):
        check_files(tmp_path, replace(competition, rows=((12, 9), (60_000, 10_000))))
    message = rf"sample_submission\.csv: lacks the id {ids[-1]} \(11 rows, expected 12\)"
    write_submission(tmp_path / "sample_submission.csv", competition, ids[:-1], 0)
    with pytest.raises(PipelineError, match=message):
        check_files(tmp_path, competition)
    write_submission(tmp_path / "sample_submission.csv", competition, [*ids, 5000], 0)
    with pytest.raises(PipelineError, match=r"has an id that test\.csv lacks: 5000"):
        check_files(tmp_path, competition)


def test_columns_of_other_competitions(digits, tmp_path):
    images, labels, ids = digits.images[:12], digits.labels[:12], np.arange(12) * 7 + 100
    write_files(tmp_path, KANNADA, images, labels, ids, ids)
    for name in ("train.csv", "Dig-MNIST.csv"):
        found, found_labels, _ = read_digits(tmp_path / name, KANNADA)
        assert np.array_equal(found, images) and np.array_equal(found_labels, labels)
    path = tmp_path / "test.csv"
    found, no_labels, found_ids = read_digits(path, KANNADA)
    assert np.array_equal(found, images) and no_labels is None and np.array_equal(found_ids, ids)
    for cell, says in ((100, "row 2, column id: id 100 occurs twice"), ("x", "row 2, column id: found 'x'")):
        write_files(tmp_path, KANNADA, images, labels, [100, cell, *ids[2:]], ids)
        assert says in refusal(read_digits, path, KANNADA)

    write_files(tmp_path, PIXELS_FROM_1, images, labels, None, ids)
    header = (tmp_path / "train.csv").read_text().partition("\n")[0]
    assert header.startswith("label,pixel1,") and header.endswith(",pixel784")
    assert np.array_equal(read_digits(tmp_path / "train.csv", PIXELS_FROM_1)[0], images)


# Archives and folders

WHOLE = {name: np.random.default_rng(number).bytes(5_000) for number, name in enumerate(DIGITS.files)}


@pytest.mark.parametrize("packed", [True, False])
def test_the_files_as_a_browser_saves_them(tmp_path, packed):
    source, folder = tmp_path / "Downloads", tmp_path / "raw"
    source.mkdir(), folder.mkdir()
    for wrong in (source, "~Downloads"):  # the latter is a user's folder, if there is such a user
        with pytest.raises(PipelineError, match=r"it contains neither digit-recognizer\.zip nor train\.csv"):
            copy_files(wrong, folder, DIGITS)
    files = {**WHOLE, "notes.txt": b"more", "../evil": b"x"}
    if packed:
        files = {"digit-recognizer.zip": zipped(files)}
    for name, content in files.items():
        (source / name).write_bytes(content)
    copy_files(source, folder, DIGITS)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == WHOLE


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be unpacked"),
        (b"<html></html>", "cannot be unpacked: it is an HTML page"),
        (zipped(WHOLE)[:-30], "cannot be unpacked"),
        (zipped(WHOLE).replace(WHOLE["train.csv"][2_000:2_010], bytes(10)), "cannot be unpacked"),
        (
            zipped({"train.csv": "x", "test.csv": "x"}),
            "There is no item named 'sample_submission.csv' in the archive",
        ),
    ],
    ids=["empty", "html", "cut off", "other bytes", "missing member"],
)
def test_bad_archive(tmp_path, content, says):
    (tmp_path / "a.zip").write_bytes(content)
    assert says in refusal(unpack, tmp_path / "a.zip", tmp_path, DIGITS)
