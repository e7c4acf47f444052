"""The competition's files: their format, reading, writing and checking.

`train.csv` has the header `label,pixel0,...,pixel783` and 42,000 rows; `test.csv` the same without
the label and 28,000 rows; pixels are whole numbers 0..255, row by row of a 28x28 image.
"""

import re
import shutil
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.files import PipelineError, atomic_write, load_json, one_line, sha256

SIZE = 28
CLASSES = 10
ROWS = {"train.csv": 42_000, "test.csv": 28_000, "sample_submission.csv": 28_000}
FILES = tuple(ROWS)
# In the place of Kaggle's: the training images and the test images of MNIST, not mixed.
SPLIT_ROWS = {"train.csv": 60_000, "test.csv": 10_000}
PIXELS = [f"pixel{i}" for i in range(SIZE * SIZE)]
COLUMNS = {"train.csv": ["label", *PIXELS], "test.csv": PIXELS, "sample_submission.csv": ["ImageId", "Label"]}
ID, LABEL = COLUMNS["sample_submission.csv"]

# Far above any real file of the competition (train.csv has 77 MB), far below a full disk.
LARGEST_MEMBER = 1 << 29
LONGEST_LINE = 1 << 16  # bytes; a row of train.csv has at most 3 kB
# The first bytes of files of other kinds.
KINDS = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"(\xb5/\xfd": "a Zstandard archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"\xef\xbb\xbf": "text with a byte order mark",
}
# What pandas raises for a bad file; its warnings are made errors.
UNREADABLE = (ValueError, OverflowError, Warning)


def read_digits(path: str | Path, limit: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Read `train.csv` or `test.csv`.

    Args:
        path: the file; its name says which one it is.
        limit: keep only the first rows, and accept any number of rows.

    Returns:
        images `(n, 28, 28)` uint8, and labels `(n,)` uint8 or None.

    Raises:
        PipelineError: names the file, and the row and column where one is wrong.
    """
    path = Path(path)
    columns, labels = COLUMNS[path.name], None
    try:
        values = _read_csv(path, columns, np.uint8).to_numpy()
    except UNREADABLE as error:
        problem = _first_bad_cell(path, columns) or f"{path}: {one_line(str(error), 120)}"
        raise PipelineError(problem) from error
    _check_row_count(path, len(values), limit, path.name)
    values = values[:limit]
    if columns[0] == "label":
        labels, values = values[:, 0], values[:, 1:]
        _check_labels(path, "label", labels)
    return np.ascontiguousarray(values).reshape(-1, SIZE, SIZE), labels


def read_labels(path: str | Path, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read and check `sample_submission.csv` or a submission.

    Returns:
        ids `(n,)` and labels `(n,)`, integers.

    Raises:
        PipelineError: names the file and what is wrong with it.
    """
    path = Path(path)
    try:
        table = _read_csv(path, [ID, LABEL], np.int64)
    except UNREADABLE as error:
        reason = one_line(str(error), 120)
        raise PipelineError(f"{path}: {reason}; expected two whole numbers in every row") from error
    ids, labels = table[ID].to_numpy(), table[LABEL].to_numpy()
    _check_row_count(path, len(ids), limit, "sample_submission.csv")
    _check_labels(path, LABEL, labels)
    unique, first = np.unique(ids, return_index=True)
    expected = np.arange(1, len(ids) + 1)
    if not np.array_equal(unique, expected):
        again = np.setdiff1d(np.arange(len(ids)), first)
        if again.size:
            problem = f"row {again[0] + 1}: id {ids[again[0]]} is there twice"
        else:
            problem = f"id {np.setdiff1d(unique, expected)[0]} does not belong there"
        raise PipelineError(f"{path}: {problem}; allowed are the ids 1..{len(ids)}, once each")
    return ids, labels


def _read_csv(path, columns, dtype):
    try:
        with open(path, "rb") as file:
            _check_header(path, file.readline(LONGEST_LINE), columns)
            _check_lines(path, file)
    except FileNotFoundError:
        raise PipelineError(f"{path}: there is no such file") from None
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}") from error
    with warnings.catch_warnings():
        # pandas only warns where it drops cells beyond the header's columns.
        warnings.simplefilter("error")
        # The C engine with a fixed type takes under a second for train.csv; pyarrow is slower.
        return pd.read_csv(path, dtype=dtype, index_col=False)


def _check_lines(path, file):
    """Refuse what pandas would need memory out of proportion for."""
    number = 1
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise PipelineError(f"{path}: row {number} has more than {LONGEST_LINE} characters")
        if file.tell() > LARGEST_MEMBER:
            raise PipelineError(f"{path}: has more than {LARGEST_MEMBER} bytes")
        number += 1


def _check_header(path, start, columns):
    for magic, kind in KINDS.items():
        if start.startswith(magic):
            raise PipelineError(f"{path}: is {kind}, expected plain CSV")
    if start.lstrip().startswith(b"<"):
        page = "is an HTML page, expected a CSV (a login or error page saved in its place?)"
        raise PipelineError(f"{path}: {page}")
    text = start.decode("utf-8", "replace").rstrip("\r\n")
    found = text.split(",")
    if found != columns:
        for separator in ";\t| :":
            if len(text.split(separator)) == len(columns):
                raise PipelineError(f"{path}: fields are separated by {separator!r}, expected ','")
        header = ",".join(columns) if len(columns) <= 3 else f"{','.join(columns[:3])},...,{columns[-1]}"
        raise PipelineError(f"{path}: {_difference(found, columns)}; expected the header {header}")


def _difference(found, columns):
    """What is wrong with a header, in one clause."""
    repeated = [name for name, count in Counter(found).items() if count > 1]
    there, expected = set(found), set(columns)
    missing = [name for name in columns if name not in there]
    extra = [one_line(name, 40) for name in found if name not in expected]
    if repeated:
        return f"column {one_line(min(repeated), 40)!r} is there more than once"
    if missing:
        return f"column {missing[0]!r} is missing" + (f", found {extra[0]!r}" if extra else "")
    if extra:
        return f"column {extra[0]!r} does not belong there"
    place = next(i for i, name in enumerate(found) if name != columns[i])
    return f"columns are out of order: column {place + 1} is {found[place]!r}"


def _first_bad_cell(path, columns):
    """What is wrong with the first bad row, in one line; None if no row is bad."""
    with open(path, encoding="utf-8", errors="replace") as file:
        next(file)
        lines = (line.rstrip("\n") for line in file)
        for number, line in enumerate(filter(None, lines), start=1):
            row = line.split(",")
            if len(row) != len(columns):
                return f"{path}: row {number} has {len(row)} columns, expected {len(columns)}"
            for name, cell in zip(columns, row, strict=True):
                if not re.fullmatch("0*[0-9]{1,3}", cell) or int(cell[-3:]) > 255:
                    allowed = "a digit 0..9" if name == "label" else "a whole number 0..255"
                    return f"{path}: row {number}, column {name}: found {cell[:40]!r}, allowed is {allowed}"
    return None


def _check_row_count(path, rows, limit, name):
    if limit is None and rows not in (ROWS[name], SPLIT_ROWS.get(name)):
        raise PipelineError(f"{path}: {rows} rows, expected {ROWS[name]}")


def _check_labels(path, column, labels):
    wrong = np.flatnonzero((labels < 0) | (labels >= CLASSES))
    if wrong.size:
        found = f"row {wrong[0] + 1}, column {column}: found {labels[wrong[0]]}"
        raise PipelineError(f"{path}: {found}, allowed is a digit 0..{CLASSES - 1}")


def write_digits(path: str | Path, images: np.ndarray, labels: np.ndarray | None = None) -> None:
    """Write `train.csv` (with labels) or `test.csv` in the competition's format."""
    columns, rows = PIXELS, images.reshape(len(images), -1)
    if labels is not None:
        columns, rows = ["label", *PIXELS], np.column_stack([labels, rows])
    numbers = [str(number) for number in range(256)]
    with atomic_write(path) as tmp, open(tmp, "w") as file:
        file.write(",".join(columns) + "\n")
        for row in rows:  # pandas takes four times as long
            file.write(",".join([numbers[value] for value in row.tolist()]) + "\n")


def write_labels(path: str | Path, ids: np.ndarray, labels: np.ndarray, limit: int | None = None) -> None:
    """Write a file in the format of `sample_submission.csv`; it is checked before it appears.

    Line ends are CRLF, as in Kaggle's own file. Raises as `read_labels`.
    """
    with atomic_write(path) as tmp:
        pd.DataFrame({ID: ids, LABEL: labels}).to_csv(tmp, index=False, lineterminator="\r\n")
        read_labels(tmp, limit)


def unpack(archive: str | Path, folder: str | Path, names: tuple[str, ...] = FILES) -> None:
    """Take the competition's files, or those named, out of a zip archive into `folder`.

    Raises:
        PipelineError: the archive is not one, is damaged, lacks a file, or has a member that would
            leave the folder or is unreasonably large; nothing of it is to be used then.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                _check_member(archive, member)
            for name in names:
                with (
                    opened.open(name) as source,
                    atomic_write(Path(folder, name)) as tmp,
                    open(tmp, "wb") as target,
                ):
                    shutil.copyfileobj(source, target, 1 << 20)
    except KeyError:
        raise PipelineError(f"{archive}: has no member {name!r}; expected {', '.join(names)}") from None
    except FileNotFoundError:
        raise PipelineError(f"{archive}: there is no such file") from None
    except PipelineError:
        raise
    except Exception as error:  # of zipfile, or of any decompressor
        raise PipelineError(f"{archive}: is not a whole zip archive: {one_line(str(error), 120)}") from error


def _check_member(archive, member):
    name = member.filename
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or ":" in name:
        problem = "would be written outside of the folder; the archive is not trusted"
    elif member.file_size > LARGEST_MEMBER:
        problem = f"has {member.file_size} bytes, allowed are {LARGEST_MEMBER}"
    else:
        return
    raise PipelineError(f"{archive}: member {one_line(name, 80)!r} {problem}")


def copy_files(source: str | Path, folder: str | Path, archive: str) -> None:
    """Copy the competition's files as a browser saves them: unpacked, or in the archive of that name.

    Raises:
        PipelineError: `source` holds neither, or what is in it is damaged.
    """
    source = Path(source).expanduser()
    if (source / archive).is_file():
        return unpack(source / archive, folder)
    for name in FILES:
        if not (source / name).is_file():
            raise PipelineError(f"download.folder is {str(source)!r}: it holds neither {archive} nor {name}")
        shutil.copyfile(source / name, Path(folder, name))


def check_replaceable(folder: str | Path, new: dict[str, str]) -> None:
    """Refuse to replace files that somebody else has put into the folder of the stage `download`.

    Args:
        folder: with the files there are, and `source.json` if the stage has written them.
        new: the SHA-256 of each file that is to replace them.
    """
    try:
        own = load_json(Path(folder, "source.json"), "download")["sha256"]
    except (PipelineError, KeyError, TypeError):
        own = {}
    for name in FILES:
        path = Path(folder, name)
        if path.exists() and sha256(path) not in (own.get(name), new[name]):
            raise PipelineError(
                f"{path}: the stage 'download' has not written this and would replace it; delete it, or move "
                "it elsewhere and use it by download.source: folder and download.folder in params.yaml"
            )


def load_source(path: str | Path) -> dict:
    """Read `data/raw/source.json`; raises PipelineError if it does not say where the digits come from."""
    source = load_json(path, "download")
    keys = {"kaggle": "competition", "folder": "competition", "mnist": "seed", "mnist-60k": "source"}
    if not isinstance(source, dict) or keys.get(str(source.get("source"))) not in source:
        raise PipelineError(f"{path}: does not name its source; run the stage 'download' again")
    return source


def check_files(folder: str | Path) -> None:
    """Check all three files in `folder` in full; raises PipelineError for the first bad one."""
    for name in ("train.csv", "test.csv"):
        read_digits(Path(folder, name))
    read_labels(Path(folder, "sample_submission.csv"))
