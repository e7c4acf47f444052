"""Which bytes were submitted, and what came of it: for the stages `submit` and `submissions`.

A submission is known by its file's SHA-256, of which the message it was sent with names the start.
"""

import csv
import re
from dataclasses import asdict, dataclass

from pipeline.files import PipelineError, atomic_write

PENDING = "PENDING"
COLUMNS = ("submitted", "reference", "sha256", "message", "status", "public_score")
# Of the SHA-256 in a message; one written by hand counts from 12 on.
DIGITS = 16


@dataclass(frozen=True)
class Submission:
    """One submission as Kaggle lists it."""

    reference: int
    submitted: str  # UTC, ISO 8601
    message: str
    status: str  # PENDING until the score is there, then COMPLETE; or ERROR
    public_score: float | None
    error: str  # Kaggle's reason for ERROR


def with_hash(message, digest):
    # In front: a message that Kaggle cuts short keeps it.
    return f"sha256:{digest[:DIGITS]} {' '.join(message.split())}"


def find(listed, digest, history):
    """The newest of the submissions `listed` that sent the file with this SHA-256, or None.

    Args:
        history: what `read_history` returns; it knows a submission whose message was edited since.
    """
    known = references(history, digest)
    return max((one for one in listed if one.reference in known or _names(one.message, digest)),
               key=lambda one: one.reference, default=None)


def references(history, digest):
    """The reference numbers under which the history knows the file with this SHA-256."""
    return {reference for reference, row in history.items() if row["sha256"] == digest}


def _names(message, digest):
    return any(map(digest.startswith, re.findall(r"\b[0-9a-f]{12,64}\b", message.lower())))


def read_history(path):
    """The rows of `submissions/history.csv`, by reference number; none if there is no such file."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {int(row["reference"]): {name: row[name] for name in COLUMNS}
                    for row in csv.DictReader(file)}
    except FileNotFoundError:
        return {}
    except (KeyError, ValueError, csv.Error) as error:
        raise PipelineError(f"{path}: must have the columns {','.join(COLUMNS)}: {error}")


def record(path, submission, digest):
    """Write what is known of a submission into the history: a new row, or its row anew."""
    history = read_history(path)
    history[submission.reference] = {"sha256": digest, **asdict(submission)}
    with atomic_write(path) as tmp, open(tmp, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(history.values())
