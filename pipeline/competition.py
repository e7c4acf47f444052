"""The competitions, and the CSV files that they consist of: read, check, unpack, write.

Everything that differs from one competition to another is a field of `Competition`.
"""

import csv
import re
import shutil
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.files import PipelineError, atomic_write, load_json, one_line, sha256

ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?kaggle\.com/(?:competitions|c)/([^/?#]+)", re.I)
LARGEST_ARCHIVE = 1 << 30  # bytes of all its members
# Errors of pandas for a malformed file; its warnings are turned into errors.
UNREADABLE = (ValueError, OverflowError, Warning)


@dataclass(frozen=True)
class Competition:
    """An image classification competition whose files are CSV, one row per image.

    Attributes:
        slug: its name in the addresses of Kaggle's pages.
        classes: labels are the integers 0 to `classes - 1`.
        size: width and height of an image in pixels; pixels are integers 0 to 255, row by row.
        label: column of train.csv with the label, before the pixels.
        first_pixel: pixels are the columns `pixel{first_pixel}` and so on.
        id: column of test.csv that identifies a row, before the pixels; None: rows are counted from 1.
        submission: columns of sample_submission.csv, id and label.
        rows: allowed numbers of rows of train.csv and test.csv; None: any.
        public_share: share of test.csv that the public leaderboard scores.
        test: clean test set, on which the ensemble is evaluated and no network is trained: the name of a
            CSV file in the format of train.csv, `"mnist"` for the MNIST test split, or None.
    """

    slug: str
    classes: int = 10
    size: int = 28
    label: str = "label"
    first_pixel: int = 0
    id: str | None = None
    submission: tuple[str, str] = ("ImageId", "Label")
    rows: tuple[tuple[int, int], ...] | None = None
    public_share: float = 0.25
    test: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the CSV files that the pipeline reads."""
        clean_test = () if self.test in (None, "mnist") else (self.test,)
        return ("train.csv", "test.csv", "sample_submission.csv", *clean_test)

    @property
    def test_name(self) -> str | None:
        """The clean test set as the reader knows it."""
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
    """Look up a competition by its slug, or by the address of one of its pages on Kaggle.

    Raises:
        PipelineError: it is not in `COMPETITIONS`.
    """
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
    """Read `train.csv`, `test.csv`, or the CSV file of the clean test set.

    Args:
        path: the file; its name says which one it is.
        competition: describes the columns.
        limit: read only the first rows.

    Returns:
        images `(n, size, size)` uint8; labels `(n,)` uint8, None for test.csv; ids `(n,)`, which count from 1
        unless test.csv has an id column.

    Raises:
        PipelineError: names the file, and the row and column of the first bad cell.
    """
    path = Path(path)
    columns = competition.columns(path.name)
    special = [name for name in columns[:1] if name in (competition.label, competition.id)]
    highest = dict.fromkeys(columns, 255)
    highest |= dict.fromkeys(special, None if special == [competition.id] else competition.classes - 1)
    table = _read_csv(path, highest, nrows=limit)
    if not len(table):
        raise PipelineError(f"{path}: has no rows")
    labels, ids = None, np.arange(1, len(table) + 1)
    if special == [competition.id]:
        ids = table[competition.id].to_numpy()
        _check_unique(path, competition.id, ids)
    elif special:
        labels = table[competition.label].to_numpy()
        _check_labels(path, competition.label, labels, competition.classes)
    pixels = table.to_numpy()[:, len(special) :].astype(np.uint8, copy=False)
    return np.ascontiguousarray(pixels).reshape(-1, competition.size, competition.size), labels, ids


def read_submission(path: str | Path, competition: Competition) -> pd.DataFrame:
    """Read and check `sample_submission.csv` or a submission.

    Returns:
        The columns `competition.submission`: ids without duplicates, and labels.

    Raises:
        PipelineError: names the file and what is wrong with it.
    """
    id_column, label = competition.submission
    table = _read_csv(Path(path), {id_column: None, label: competition.classes - 1})
    _check_unique(path, id_column, table[id_column])
    _check_labels(path, label, table[label].to_numpy(), competition.classes)
    return table


def check_files(folder: str | Path, competition: Competition) -> None:
    """Check all files of a competition in `folder`.

    Raises:
        PipelineError: a file is malformed, has a wrong number of rows, or has other ids than test.csv.
    """
    folder, clean_test = Path(folder), competition.files[3:]
    rows = []
    for name in ("train.csv", "test.csv", *clean_test):
        images, _, ids = read_digits(folder / name, competition)
        rows.append(len(images))
        if name == "test.csv":
            test_ids = ids
    if competition.rows and tuple(rows[:2]) not in competition.rows:
        allowed = " or ".join(f"{train:,} and {test:,}" for train, test in competition.rows)
        raise PipelineError(
            f"{folder / 'train.csv'} and test.csv: have {rows[0]:,} and {rows[1]:,} rows, expected {allowed}"
        )
    sample = folder / "sample_submission.csv"
    check_ids(sample, read_submission(sample, competition)[competition.submission[0]], test_ids)


def check_ids(path: str | Path, ids: pd.Series, test_ids: np.ndarray) -> None:
    """Check that a submission has one row for each row of test.csv; raises PipelineError."""
    for problem, different in (
        ("lacks the id", np.setdiff1d(test_ids, ids)),
        ("has an id that test.csv lacks:", np.setdiff1d(ids, test_ids)),
    ):
        if different.size:
            raise PipelineError(
                f"{path}: {problem} {different[0]} ({len(ids):,} rows, expected {len(test_ids):,})"
            )


def _read_csv(path, highest, nrows=None):
    """Read a CSV file; `highest` is the highest value in each column, None for ids."""
    columns = list(highest)
    dtypes = {name: "int64" if value is None else "uint8" for name, value in highest.items()}
    try:
        with open(path, "rb") as file:
            _check_header(path, file.read(1 << 16), columns)
        with warnings.catch_warnings():
            # pandas only warns when it drops cells beyond the header's columns.
            warnings.simplefilter("error")
            return pd.read_csv(
                path,
                names=columns,
                header=0,
                dtype=dtypes,
                index_col=False,
                skipinitialspace=True,
                nrows=nrows,
            )
    except FileNotFoundError:
        raise PipelineError(f"{path}: there is no such file") from None
    except UNREADABLE as error:
        problem = _first_bad_cell(path, highest) or one_line(str(error), 120)
        raise PipelineError(f"{path}: {problem}") from error


def _check_header(path, start, columns):
    """Check the first line of a file, given its first bytes."""
    if is_html(start):
        raise PipelineError(f"{path}: is an HTML page, expected CSV (was a login or error page saved?)")
    line = start.split(b"\n")[0].rstrip(b"\r")
    if b"\r" in line:
        raise PipelineError(f"{path}: line ends are CR, expected LF or CR LF")
    text = line.decode("utf-8-sig", "replace")
    found = next(csv.reader([text], skipinitialspace=True), [])
    if found == columns:
        return
    expected = ",".join(columns) if len(columns) <= 3 else f"{','.join(columns[:3])},...,{columns[-1]}"
    separator = next((mark for mark in ";\t| :" if len(text.split(mark)) == len(columns)), None)
    if found and all(cell.strip().isdecimal() for cell in found):
        problem = "there is no header, the first line is numbers"
    elif separator:
        problem = f"fields are separated by {separator!r}, expected ','"
    else:
        problem = _difference(found, columns)
    raise PipelineError(f"{path}: {problem}; expected the header {expected}")


def is_html(start: bytes) -> bool:
    """Whether a file or an answer that begins with these bytes is an HTML page."""
    return start.lstrip().startswith(b"<")


def _difference(found, columns):
    """Describe in one clause the first difference between two headers."""
    repeated = [name for name, count in Counter(found).items() if count > 1]
    missing = [name for name in columns if name not in set(found)]
    extra = [one_line(name, 40) for name in found if name not in set(columns)]
    if missing:
        return f"column {missing[0]!r} is missing" + (f", found {extra[0]!r}" if extra else "")
    if extra:
        return f"unknown column {extra[0]!r}"
    if repeated:
        return f"column {repeated[0]!r} occurs more than once"
    place = next(i for i, name in enumerate(found) if name != columns[i])
    return f"columns are out of order: column {place + 1} is {found[place]!r}"


def _first_bad_cell(path, highest):
    """Describe the first bad cell in one clause; None if no cell is bad."""
    number = 0
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.reader(file, skipinitialspace=True)
        next(rows)
        try:
            for number, row in enumerate(filter(None, rows), start=1):
                if len(row) != len(highest):
                    return f"row {number} has {len(row)} columns, expected {len(highest)}"
                for (name, value), cell in zip(highest.items(), row, strict=True):
                    if not re.fullmatch("[0-9]{1,18}", cell) or (value is not None and int(cell) > value):
                        allowed = "an integer" if value is None else f"an integer 0..{value}"
                        found = one_line(cell, 40)
                        return f"row {number}, column {name}: found {found!r}, allowed is {allowed}"
        except csv.Error:  # a field of more than 131,072 letters
            return f"row {number + 1} has a quote that is never closed"
    return None


def _check_labels(path, column, labels, classes):
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if bad.size:
        row, found = bad[0] + 1, labels[bad[0]]
        raise PipelineError(
            f"{path}: row {row}, column {column}: found {found}, allowed is an integer 0..{classes - 1}"
        )


def _check_unique(path, column, ids):
    again = np.flatnonzero(pd.Series(ids).duplicated())
    if again.size:
        raise PipelineError(f"{path}: row {again[0] + 1}, column {column}: id {ids[again[0]]} occurs twice")


def write_digits(path: str | Path, competition: Competition, images: np.ndarray, labels=None) -> None:
    """Write a file that `read_digits` reads.

    Args:
        path: `train.csv` or `test.csv`.
        competition: one whose test.csv has no id column.
        images: `(n, size, size)`.
        labels: `(n,)`; None for test.csv.
    """
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
    """Unpack the competition's files into `folder`.

    Raises:
        PipelineError: it is no zip archive, is damaged, too large, or lacks a file.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            size = sum(member.file_size for member in opened.infolist())
            if size > LARGEST_ARCHIVE:
                raise PipelineError(f"{archive}: unpacks to {size:,} bytes, allowed are {LARGEST_ARCHIVE:,}")
            for name in competition.files:
                with opened.open(name) as source, open(Path(folder, name), "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    except KeyError:
        raise PipelineError(f"{archive}: lacks {name}; expected {', '.join(competition.files)}") from None
    except (PipelineError, FileNotFoundError):
        raise
    except Exception as error:  # of zipfile or a decompressor
        with open(archive, "rb") as file:
            html = is_html(file.read(64))
        reason = "an HTML page (a login or a network's portal?)" if html else one_line(str(error), 120)
        raise PipelineError(f"{archive}: is not a complete zip archive: {reason}") from error


def copy_files(source: str | Path, folder: str | Path, competition: Competition) -> None:
    """Copy the competition's files as a browser saves them, unpacked or in `<slug>.zip`.

    Raises:
        PipelineError: `source` contains neither, or the archive is damaged.
    """
    source = Path(source).expanduser()
    archive = source / f"{competition.slug}.zip"
    if archive.is_file():
        return unpack(archive, folder, competition)
    for name in competition.files:
        if not (source / name).is_file():
            raise PipelineError(
                f"download.folder is {str(source)!r}: it contains neither {archive.name} nor {name}"
            )
        shutil.copyfile(source / name, Path(folder, name))


def check_replaceable(folder: str | Path, new: dict[str, str]) -> None:
    """Refuse to replace files that the user has put into the folder of the stage `download`.

    Args:
        folder: contains the present files, and `source.json` if the stage has written them.
        new: SHA-256 of each file that is to replace one of these.
    """
    try:
        own = load_json(Path(folder, "source.json"), "download")["sha256"]
    except (PipelineError, KeyError, TypeError):
        own = {}
    for name, digest in new.items():
        path = Path(folder, name)
        if path.exists() and sha256(path) not in (own.get(name), digest):
            raise PipelineError(
                f"{path}: not written by the stage 'download', which would replace it; delete it, or move it "
                "to another folder and set download.source: folder and download.folder in params.yaml"
            )
