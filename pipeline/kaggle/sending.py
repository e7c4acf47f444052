"""Send a file to Kaggle once, and wait for its score: for the stage `submit`."""

import time
from datetime import UTC, datetime
from pathlib import Path

from pipeline.files import PipelineError, one_line, sha256
from pipeline.kaggle import api
from pipeline.kaggle.history import HASH_DIGITS, PENDING, Submission, find, read_history, record

SCORE_DEADLINE = 600  # seconds to wait for a score
POLL = 5  # seconds between two requests for Kaggle's list
LOST_DEADLINE = 15  # seconds to look for a submission in the list after a lost answer


def send_once(slug: str, file: Path, message: str, history_path: Path, resubmit: bool = False) -> Submission:
    """Send a file unless Kaggle has it, and wait for its score.

    The message is prefixed with the file's SHA-256. The history is written as soon as Kaggle has the file,
    and again with its score.
    """
    digest, history = sha256(file), read_history(history_path)
    listed = api.submissions(slug)
    submission = None if resubmit else find(listed, digest, history)
    if submission:
        print(f"submit: Kaggle has this file as submission {submission.reference}: not sent again")
    elif digest in set(history["sha256"]) and not resubmit:
        raise PipelineError(
            f"{history_path}: this file was sent, but Kaggle does not list it for this account; "
            "RESUBMIT=1 sends it again"
        )
    else:
        message = f"sha256:{digest[:HASH_DIGITS]} {one_line(message)[:500]}"
        submission = _send(slug, file, message, digest, history, listed)
        print(f"submit: sent as submission {submission.reference}: {submission.message}")
    record(history_path, submission, digest)
    if submission.status == PENDING:
        submission = _wait_for_score(slug, submission)
        record(history_path, submission, digest)
    if submission.status != "COMPLETE":
        raise PipelineError(
            f"Kaggle could not score submission {submission.reference}: "
            f"{submission.error or submission.status}; RESUBMIT=1 sends the same bytes again"
        )
    return submission


def _send(slug, file, message, digest, history, listed):
    """Send the file; if the answer is lost, look for a new submission in Kaggle's list."""
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    try:
        return Submission(api.send(slug, file, message), now, message)
    except api.AnswerLost as error:
        known = {item.reference for item in listed}
        for items in _poll(slug, LOST_DEADLINE):
            new = [item for item in items if item.reference not in known]
            if submission := find(new, digest, history):
                return submission
        raise PipelineError(
            f"{error}; Kaggle does not list the submission so far: `make submit` looks again before it sends"
        ) from error


def _wait_for_score(slug, submission):
    print(f"submit: waiting up to {SCORE_DEADLINE} s for the score", flush=True)
    for items in _poll(slug, SCORE_DEADLINE):
        for item in items:
            if item.reference == submission.reference and item.status != PENDING:
                return item
    raise PipelineError(
        f"submission {submission.reference} has no score after {SCORE_DEADLINE} s; `make submit` waits again "
        "and does not send it again"
    )


def _poll(slug, seconds):
    """Yield Kaggle's list every POLL seconds, for `seconds`; print why a request failed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(POLL)
        try:
            yield api.submissions(slug)
        except PipelineError as error:
            print(f"submit: {error}", flush=True)


def check_origin(origin: dict, slug: str) -> None:
    """Refuse a submission whose `data/raw/source.json` names other data than the competition's own."""
    if origin["source"] not in ("kaggle", "folder") or origin["competition"] != slug:
        raise PipelineError(
            f"this submission was not made from Kaggle's {slug} data, but from {origin['source']} "
            f"({origin['competition']}): set download.source to kaggle in params.yaml; then `make submit` "
            "makes another one and sends it"
        )
