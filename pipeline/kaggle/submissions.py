"""The history of submissions: which bytes were sent, and what came of them.

A submission is identified by its file's SHA-256. The message it is sent with begins with the first digits,
so Kaggle's own list tells whether a file was sent before.
"""

import csv
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.files import PipelineError, atomic_write, one_line

PENDING = "PENDING"
COLUMNS = ("submitted", "reference", "sha256", "message", "status", "public_score")
LARGEST = 1 << 24  # bytes, of the history
HASH_DIGITS = 16  # of the SHA-256, in a message; find() accepts 12 or more


@dataclass(frozen=True)
class Submission:
    """One submission as Kaggle lists it.

    Attributes:
        reference: Kaggle's number for it.
        submitted: UTC, ISO 8601.
        message: the description it was sent with.
        status: PENDING until there is a score, then COMPLETE; or ERROR.
        public_score: accuracy on the public part of `test.csv`.
        error: Kaggle's reason for ERROR.
    """

    reference: int
    submitted: str
    message: str
    status: str = PENDING
    public_score: float | None = None
    error: str = ""


def with_hash(message: str, digest: str) -> str:
    """Put a file's SHA-256 in front of its message, where Kaggle does not cut it off."""
    return f"sha256:{digest[:HASH_DIGITS]} {one_line(message, 500)}"


def find(listed: Iterable[Submission], digest: str, history: dict[int, dict]) -> Submission | None:
    """Find the newest submission of a file.

    Args:
        listed: Kaggle's list.
        digest: the file's SHA-256, in hexadecimal.
        history: from `read_history`; it identifies a submission whose message was edited.
    """
    known = references(history, digest)
    matching = (one for one in listed if one.reference in known or _names(one.message, digest))
    return max(matching, key=lambda one: one.reference, default=None)


def references(history: dict[int, dict], digest: str) -> set[int]:
    """The reference numbers that the history has for the file with this SHA-256."""
    return {reference for reference, row in history.items() if row["sha256"] == digest}


def _names(message: str, digest: str) -> bool:
    return any(map(digest.startswith, re.findall(r"\b[0-9a-f]{12,64}\b", message.lower())))


def read_history(path: Path) -> dict[int, dict]:
    """Read `submissions/history.csv`.

    Returns:
        Its rows by reference number; none if there is no such file.

    Raises:
        PipelineError: names the row that was damaged.
    """
    history = {}
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file, strict=True)
            found = reader.fieldnames or ()
            if not set(COLUMNS) <= set(found):
                columns = one_line(",".join(found), 40)
                raise PipelineError(f"{path}: must have the columns {','.join(COLUMNS)}, found {columns!r}")
            for row in reader:
                history[_checked_reference(row)] = {name: row[name] for name in COLUMNS}
    except FileNotFoundError:
        return {}
    except (ValueError, csv.Error) as error:
        raise PipelineError(
            f"{path}: row {len(history) + 1} is damaged ({one_line(str(error), 80)}); restore or delete it"
        ) from error
    return history


def _checked_reference(row: dict) -> int:
    if None in row or None in row.values():
        raise ValueError("it has too many cells" if None in row else "it has too few cells")
    if not row["reference"].isdecimal():
        raise ValueError(f"reference is {row['reference'][:40]!r}, not a number")
    if not re.fullmatch("[0-9a-f]{64}", row["sha256"]):
        raise ValueError("sha256 is not 64 hexadecimal digits")
    return int(row["reference"])


def record(path: Path, submission: Submission, digest: str) -> None:
    """Write a submission into the history, in place of what was known of it before.

    Args:
        path: `submissions/history.csv`.
        submission: as Kaggle lists it.
        digest: the SHA-256 of its file, in hexadecimal.
    """
    history = read_history(path)
    history[submission.reference] = {"sha256": digest, **asdict(submission)}
    with (
        atomic_write(path) as tmp,
        open(tmp, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(history.values())
