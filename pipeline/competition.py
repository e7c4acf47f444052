"""The competitions, and the CSV files that they consist of: read, check, unpack, write.

Everything that differs from one competition to another is a field of `Competition`.
"""

import csv
import os
import re
import shutil
import warnings
import zipfile
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.files import PipelineError, atomic_write, one_line

ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?kaggle\.com/(?:competitions|c)/([^/?#]+)", re.I)


@dataclass(frozen=True)
class Competition:
    """An image classification competition whose files are CSV, one row per image."""

    slug: str  # its name in the addresses of Kaggle's pages
    classes: int = 10  # labels are the integers 0 to `classes - 1`
    size: int = 28  # width and height of an image in pixels; pixels are integers 0 to 255, row by row
    label: str = "label"  # column of train.csv with the label, before the pixels
    first_pixel: int = 0  # pixels are the columns `pixel{first_pixel}` and so on
    id: str | None = None  # column of test.csv with the id, before the pixels; None: rows count from 1
    submission: tuple[str, str] = ("ImageId", "Label")  # columns of sample_submission.csv, id and label
    rows: tuple[tuple[int, int], ...] | None = None  # allowed numbers of rows of train.csv and test.csv
    public_share: float = 0.25  # share of test.csv that the public leaderboard scores
    # Clean test set, on which the ensemble is evaluated and no network is trained: the name of a CSV file in
    # the format of train.csv, `"mnist"` for the MNIST test split, or None.
    test: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the CSV files that the pipeline reads."""
        clean_test = () if self.test in (None, "mnist") else (self.test,)
        return ("train.csv", "test.csv", "sample_submission.csv", *clean_test)

    @property
    def test_name(self) -> str | None:
        """Display name of the clean test set."""
        return "MNIST test split" if self.test == "mnist" else self.test

    def columns(self, file: str) -> list[str]:
        """The header of one of `files`."""
        if file == "sample_submission.csv":
            return list(self.submission)
        pixels = [f"pixel{i + self.first_pixel}" for i in range(self.size**2)]
        first = self.id if file == "test.csv" else self.label
        return pixels if first is None else [first, *pixels]


COMPETITIONS = {
    competition.slug: competition
    for competition in (
        # Besides Kaggle's split, MNIST's own of 60,000 and 10,000 is accepted.
        Competition("digit-recognizer", rows=((42_000, 28_000), (60_000, 10_000)), test="mnist"),
        Competition(
            "Kannada-MNIST",
            id="id",
            submission=("id", "label"),
            rows=((60_000, 5_000),),
            test="Dig-MNIST.csv",
        ),
    )
}


def find_competition(name: str) -> Competition:
    """Look up a competition by its slug, or by the address of one of its pages on Kaggle."""
    address = ADDRESS.match(name.strip())
    slug = (address[1] if address else name.strip()).lower()
    for competition in COMPETITIONS.values():
        if competition.slug.lower() == slug:
            return competition
    raise PipelineError(
        f"download.competition is {name[:60]!r}, allowed: {', '.join(COMPETITIONS)}; "
        "add another one to COMPETITIONS in pipeline/competition.py"
    )


def read_digits(
    path: str | Path, competition: Competition, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Read `train.csv`, `test.csv`, or the CSV file of the clean test set, up to `limit` rows.

    An error names the file, and the row and column of the first bad cell.

    Returns:
        images `(n, size, size)` uint8; labels `(n,)` uint8, None for test.csv; ids `(n,)`, which count from 1
        unless test.csv has an id column.
    """
    special = {competition.label: competition.classes - 1, competition.id: None}
    highest = {name: special.get(name, 255) for name in competition.columns(Path(path).name)}
    table = _read_csv(path, highest, limit)
    labels = table[competition.label].to_numpy() if competition.label in highest else None
    ids = table[competition.id].to_numpy() if competition.id in highest else np.arange(1, len(table) + 1)
    pixels = np.ascontiguousarray(table.iloc[:, -(competition.size**2) :])
    return pixels.reshape(-1, competition.size, competition.size), labels, ids


def read_submission(path: str | Path, competition: Competition) -> pd.DataFrame:
    """Read the columns of `sample_submission.csv` or a submission: ids without duplicates, and labels."""
    ids, label = competition.submission
    return _read_csv(path, {ids: None, label: competition.classes - 1})


def check_files(folder: Path, competition: Competition) -> None:
    """Check all files of a competition in `folder`, their numbers of rows, and the ids."""
    names = [name for name in competition.files if name != "sample_submission.csv"]
    train, test, *_ = (read_digits(folder / name, competition) for name in names)
    rows = len(train[0]), len(test[0])
    if competition.rows and rows not in competition.rows:
        allowed = " or ".join(f"{train:,} and {test:,}" for train, test in competition.rows)
        raise PipelineError(
            f"{folder / 'train.csv'} and test.csv: have {rows[0]:,} and {rows[1]:,} rows, expected {allowed}"
        )
    sample = folder / "sample_submission.csv"
    check_ids(sample, read_submission(sample, competition)[competition.submission[0]], test[2])


def check_ids(path: str | Path, ids: pd.Series, test_ids: np.ndarray) -> None:
    """Check that a submission has one row for each row of test.csv; raises PipelineError."""
    different = np.setxor1d(ids, test_ids)
    if different.size:
        problem = "lacks the id" if different[0] in test_ids else "has an id that test.csv lacks:"
        raise PipelineError(
            f"{path}: {problem} {different[0]} ({len(ids):,} rows, expected {len(test_ids):,})"
        )


def _read_csv(path, highest, rows=None):
    """Read a CSV file; `highest` is the highest value in each column, None for unique ids."""
    ids = [name for name, value in highest.items() if value is None]
    types = {name: "int64" if name in ids else "uint8" for name in highest}
    options = {"header": 0, "index_col": False, "skipinitialspace": True, "nrows": rows}
    try:
        with open(path, "rb") as file:
            _check_header(path, file.read(1 << 20), list(highest))
        with warnings.catch_warnings():
            # pandas only warns when it drops cells beyond the header's columns.
            warnings.simplefilter("error")
            table = pd.read_csv(path, names=list(highest), dtype=types, **options)
        labels = {name: value for name, value in highest.items() if name not in ids and value < 255}
        if (table[list(labels)] > labels).any(axis=None):
            raise ValueError("a label is too high")
    except FileNotFoundError:
        raise PipelineError(f"{path}: there is no such file") from None
    except (ValueError, OverflowError, Warning) as error:
        problem = _first_bad_cell(path, highest) or one_line(str(error), 120)
        raise PipelineError(f"{path}: {problem}") from error
    if table.empty:
        raise PipelineError(f"{path}: has no rows")
    for name in ids:
        if (again := table[name].duplicated()).any():
            row = again.argmax()
            raise PipelineError(f"{path}: row {row + 1}, column {name}: id {table[name][row]} occurs twice")
    return table


def _check_header(path, start, columns):
    """Compare the first line of a file, given its first bytes, with the expected columns."""
    if is_html(start):
        raise PipelineError(f"{path}: is an HTML page, expected CSV (was a login or error page saved?)")
    line = re.split(b"[\r\n]", start, maxsplit=1)[0].decode("utf-8-sig", "replace")
    header = [cell.strip().strip('"') for cell in line.split(",")]
    for number, (name, column) in enumerate(zip_longest(header, columns, fillvalue=""), start=1):
        if name != column:
            expected = ",".join(columns[:3] + ["..."] * (len(columns) > 3) + columns[3:][-1:])
            problem = f"column {number} of the header is {one_line(name, 40)!r}, expected {column!r}"
            raise PipelineError(f"{path}: {problem}; the header must be {expected}")


def is_html(start: bytes) -> bool:
    """Whether a file or an answer that begins with these bytes is an HTML page."""
    return start.lstrip().startswith(b"<")


def _first_bad_cell(path, highest):
    """Describe the first bad cell in one clause; None if no cell is bad."""
    number = 0
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.reader(file, skipinitialspace=True)
        try:
            next(rows)
            for number, row in enumerate(filter(None, rows), start=1):
                if len(row) != len(highest):
                    return f"row {number} has {len(row)} columns, expected {len(highest)}"
                for (name, value), cell in zip(highest.items(), row, strict=True):
                    if not re.fullmatch("[0-9]{1,18}", cell) or (value is not None and int(cell) > value):
                        allowed = "an integer" if value is None else f"an integer 0..{value}"
                        found = one_line(cell, 40)
                        return f"row {number}, column {name}: found {found!r}, allowed is {allowed}"
        except csv.Error:  # a field of more than 131,072 letters
            return f"row {number + 1} has an unclosed quote"
    return None


def write_digits(path: str | Path, competition: Competition, images: np.ndarray, labels=None) -> None:
    """Write `train.csv`, or `test.csv` if there are no labels `(n,)`; images are `(n, size, size)`."""
    rows = images.reshape(len(images), -1)
    if labels is not None:
        rows = np.column_stack([labels, rows])
    numbers = [str(value) for value in range(256)]
    with atomic_write(path) as tmp, open(tmp, "w", newline="\n") as file:
        file.write(",".join(competition.columns(Path(path).name)) + "\n")
        for row in rows:  # pandas takes four times as long
            file.write(",".join([numbers[value] for value in row.tolist()]) + "\n")


def write_submission(path: str | Path, competition: Competition, ids: np.ndarray, labels) -> None:
    """Write a file in the format of `sample_submission.csv`, with the line ends CR LF of Kaggle's own."""
    table = pd.DataFrame(dict(zip(competition.submission, (ids, labels), strict=True)))
    with atomic_write(path) as tmp:
        table.to_csv(tmp, index=False, lineterminator="\r\n")


def unpack(archive: str | Path, folder: str | Path, competition: Competition) -> None:
    """Unpack the competition's files into `folder`; a corrupt archive is a PipelineError."""
    try:
        with zipfile.ZipFile(archive) as opened:
            for name in competition.files:
                with opened.open(name) as source, open(Path(folder, name), "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    except Exception as error:  # of zipfile or a decompressor
        with open(archive, "rb") as file:
            html = is_html(file.read(64))
        reason = "it is an HTML page (of a login or a captive portal?)" if html else one_line(str(error), 120)
        raise PipelineError(f"{archive}: cannot be unpacked: {reason}") from error


def copy_files(source: str | Path, folder: str | Path, competition: Competition) -> None:
    """Copy the competition's files as a browser saves them, unpacked or in `<slug>.zip`."""
    source = Path(os.path.expanduser(source))  # Path.expanduser() fails for an unknown user
    archive = source / f"{competition.slug}.zip"
    if archive.is_file():
        return unpack(archive, folder, competition)
    for name in competition.files:
        if not (source / name).is_file():
            raise PipelineError(
                f"download.folder is {str(source)!r}: it contains neither {archive.name} nor {name}"
            )
        shutil.copyfile(source / name, Path(folder, name))
