"""The history of submissions, `submissions/history.csv`: the files sent, and their scores."""

from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from pipeline.files import PipelineError, one_line, write_csv

PENDING = "PENDING"
HASH_DIGITS = 16  # of the SHA-256, in a message
COLUMNS = ["submitted", "reference", "sha256", "message", "status", "public_score"]


@dataclass(frozen=True)
class Submission:
    """One submission as Kaggle lists it; `message` is the description it was sent with."""

    reference: int
    submitted: str  # UTC, ISO 8601
    message: str
    status: str = PENDING  # until there is a score, then COMPLETE; or ERROR
    public_score: float | None = None
    error: str = ""


def read_history(path: Path) -> pd.DataFrame:
    """Read the history, with all cells as text; a damaged one is an error, or a file could be sent twice."""
    try:
        history = pd.read_csv(path, dtype=str, keep_default_na=False)[COLUMNS]
        whole = history["reference"].str.isdecimal() & history["sha256"].str.fullmatch("[0-9a-f]{64}")
        if not (whole & history.notna().all(axis=1)).all():
            raise ValueError(f"row {1 + whole.to_list().index(False)}")
    except FileNotFoundError:
        return pd.DataFrame(columns=COLUMNS)
    except (ValueError, KeyError) as error:
        raise PipelineError(f"{path}: is damaged: {one_line(str(error))[:120]}; restore it") from error
    return history


def record(path: Path, submission: Submission, digest: str) -> None:
    """Write a submission and the SHA-256 of its file to the history, replacing an earlier row."""
    history = read_history(path)
    row = pd.DataFrame([{"sha256": digest, **asdict(submission)}])[COLUMNS]
    other_rows = history[history["reference"] != str(submission.reference)]
    write_csv(path, pd.concat([other_rows, row.astype(object)]))


def find(listed: list[Submission], digest: str, history: pd.DataFrame) -> Submission | None:
    """Find a file's newest submission by the SHA-256 in its message; by the history if that was edited."""
    recorded = set(history.loc[history["sha256"] == digest, "reference"])
    mark = digest[:HASH_DIGITS]
    matching = [item for item in listed if mark in item.message or str(item.reference) in recorded]
    return max(matching, key=lambda item: item.reference, default=None)
