"""The competition's files: their format, reading, writing and checking.

`train.csv` has the header `label,pixel0,...,pixel783` and 42,000 rows; `test.csv` the same without
the label and 28,000 rows; pixels are whole numbers 0..255, row by row of a 28x28 image.
"""

import csv
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.files import DAMAGED, PipelineError, atomic_write

SIZE = 28
CLASSES = 10
ROWS = {"train.csv": 42_000, "test.csv": 28_000, "sample_submission.csv": 28_000}
FILES = tuple(ROWS)
PIXELS = [f"pixel{i}" for i in range(SIZE * SIZE)]
COLUMNS = {
    "train.csv": ["label", *PIXELS],
    "test.csv": PIXELS,
    "sample_submission.csv": ["ImageId", "Label"],
}
ID, LABEL = COLUMNS["sample_submission.csv"]

# Far above any real file of the competition (train.csv has 77 MB), far below a full disk.
LARGEST_MEMBER = 1 << 29


def read_digits(path, limit=None):
    """Read `train.csv` or `test.csv`.

    Args:
        limit: keep only the first rows, and accept any number of rows.

    Returns:
        images `(n, 28, 28)` uint8, and labels `(n,)` uint8 or None.

    Raises:
        PipelineError: names the file, and the row and column where one is wrong.
    """
    path = Path(path)
    columns = COLUMNS[path.name]
    _check_header(path, columns)
    try:
        with warnings.catch_warnings():
            # pandas only warns where it drops cells beyond the header's columns.
            warnings.simplefilter("error")
            # The C engine with a fixed type takes under a second for train.csv; pyarrow is slower.
            values = pd.read_csv(path, dtype=np.uint8, index_col=False).to_numpy()
    except (ValueError, OverflowError, Warning) as error:
        raise PipelineError(_first_bad_cell(path, columns) or f"{path}: {error}")
    if limit is None:
        _check_row_count(path, len(values))
    values = values[:limit]
    labels = None
    if columns[0] == "label":
        labels, values = values[:, 0], values[:, 1:]
        if labels.size and labels.max() >= CLASSES:
            row = int(np.argmax(labels >= CLASSES))
            raise PipelineError(f"{path}: row {row + 1}, column label: found {labels[row]}, "
                                f"allowed is a digit 0..{CLASSES - 1}")
    return np.ascontiguousarray(values).reshape(-1, SIZE, SIZE), labels


def _check_header(path, columns):
    try:
        with open(path, "rb") as file:
            start = file.readline(1 << 16)
    except FileNotFoundError:
        raise PipelineError(f"{path}: there is no such file")
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}")
    if start.startswith(b"PK\x03\x04"):
        raise PipelineError(f"{path}: is a zip archive, expected the CSV that is in it")
    if start.lstrip().startswith(b"<"):
        raise PipelineError(f"{path}: is an HTML page, expected a CSV "
                            "(a login or error page saved in its place?)")
    found = start.decode("utf-8", "replace").rstrip("\r\n").split(",")
    if found == columns:
        return
    repeated = {name for name in found if found.count(name) > 1}
    missing = [name for name in columns if name not in found]
    extra = [name for name in found if name not in columns]
    if repeated:
        problem = f"column {min(repeated)!r} is there more than once"
    elif missing:
        problem = f"column {missing[0]!r} is missing" + (f", found {extra[0]!r}" if extra else "")
    elif extra:
        problem = f"column {extra[0]!r} does not belong there"
    else:
        place = next(i for i, pair in enumerate(zip(found, columns)) if pair[0] != pair[1])
        problem = f"columns are out of order: column {place + 1} is {found[place]!r}"
    raise PipelineError(f"{path}: {problem}; expected the header {','.join(columns[:3])}"
                        + (f",...,{columns[-1]}" if len(columns) > 3 else ""))


def _first_bad_cell(path, columns):
    """What is wrong with the first bad row, in one line; None if no row is."""
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        rows = csv.reader(file, quoting=csv.QUOTE_NONE)
        next(rows)
        for number, row in enumerate((row for row in rows if row), start=1):
            if len(row) != len(columns):
                return f"{path}: row {number} has {len(row)} columns, expected {len(columns)}"
            for name, cell in zip(columns, row):
                if not (cell.isascii() and cell.isdigit() and int(cell) <= 255):
                    allowed = "a digit 0..9" if name == "label" else "a whole number 0..255"
                    return (f"{path}: row {number}, column {name}: found {cell[:40]!r}, "
                            f"allowed is {allowed}")
    return None


def _check_row_count(path, rows):
    if rows != ROWS[path.name]:
        raise PipelineError(f"{path}: {rows} rows, expected {ROWS[path.name]}")


def write_digits(path, images, labels=None):
    """Write `train.csv` (with labels) or `test.csv` in the competition's format."""
    table = pd.DataFrame(images.reshape(len(images), -1), columns=PIXELS)
    if labels is not None:
        table.insert(0, "label", labels)
    with atomic_write(path) as tmp:
        table.to_csv(tmp, index=False, lineterminator="\n")


def write_labels(path, ids, labels, limit=None):
    """Write a file in the format of `sample_submission.csv`; it is checked before it appears.

    Line ends are CRLF, as in Kaggle's own file. Raises as `read_labels`.
    """
    with atomic_write(path) as tmp:
        pd.DataFrame({ID: ids, LABEL: labels}).to_csv(tmp, index=False, lineterminator="\r\n")
        read_labels(tmp, limit)


def read_labels(path, limit=None):
    """Read and check `sample_submission.csv` or a submission.

    Returns:
        ids `(n,)` and labels `(n,)`, integers.

    Raises:
        PipelineError: names the file and what is wrong with it.
    """
    path = Path(path)
    _check_header(path, [ID, LABEL])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            table = pd.read_csv(path, dtype=np.int64, index_col=False)
    except (ValueError, OverflowError, Warning) as error:
        raise PipelineError(f"{path}: {' '.join(str(error).split())}; "
                            "expected two whole numbers in every row")
    ids, labels = table[ID].to_numpy(), table[LABEL].to_numpy()
    if limit is None and len(ids) != ROWS["sample_submission.csv"]:
        raise PipelineError(f"{path}: {len(ids)} rows, expected {ROWS['sample_submission.csv']}")
    wrong = np.flatnonzero((labels < 0) | (labels >= CLASSES))
    if wrong.size:
        raise PipelineError(f"{path}: row {wrong[0] + 1}, column {LABEL}: found "
                            f"{labels[wrong[0]]}, allowed is a digit 0..{CLASSES - 1}")
    unique, first = np.unique(ids, return_index=True)
    expected = np.arange(1, len(ids) + 1)
    if not np.array_equal(unique, expected):
        again = np.setdiff1d(np.arange(len(ids)), first)
        problem = (f"row {again[0] + 1}: id {ids[again[0]]} is there twice" if again.size
                   else f"id {np.setdiff1d(unique, expected)[0]} does not belong there")
        raise PipelineError(f"{path}: {problem}; allowed are the ids 1..{len(ids)}, once each")
    return ids, labels


def unpack(archive, folder, names=FILES):
    """Take the competition's files, or those named, out of a zip archive into `folder`.

    Raises:
        PipelineError: the archive is not one, is damaged, lacks a file, or has a member that would
            leave the folder or is unreasonably large; nothing of it is to be used then.
    """
    folder = Path(folder)
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                parts = Path(member.filename.replace("\\", "/")).parts
                if (".." in parts or member.filename.startswith(("/", "\\"))
                        or any(":" in part for part in parts)):
                    raise PipelineError(f"{archive}: member {member.filename!r} would be written "
                                        "outside of the folder; the archive is not trusted")
                if member.file_size > LARGEST_MEMBER:
                    raise PipelineError(f"{archive}: member {member.filename!r} has "
                                        f"{member.file_size} bytes, allowed are {LARGEST_MEMBER}")
            for name in names:
                with opened.open(name) as source, atomic_write(folder / name) as tmp:
                    with open(tmp, "wb") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
    except KeyError:
        raise PipelineError(f"{archive}: has no member {name!r}; expected {', '.join(names)}")
    except FileNotFoundError:
        raise PipelineError(f"{archive}: there is no such file")
    except DAMAGED as error:
        raise PipelineError(f"{archive}: is not a whole zip archive: {error}")


def check_files(folder):
    """Check all three files in `folder` in full; raises PipelineError for the first bad one."""
    folder = Path(folder)
    for name in ("train.csv", "test.csv"):
        read_digits(folder / name)
    read_labels(folder / "sample_submission.csv")
