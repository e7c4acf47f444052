"""Send a file to Kaggle once, confirm that it arrived, wait for its score: for the stage `submit`."""

import contextlib
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.progress import TimeElapsedColumn

from pipeline.competition import load_source
from pipeline.files import PipelineError, one_line, sha256
from pipeline.git import commit
from pipeline.kaggle import client
from pipeline.kaggle.credentials import find_credentials
from pipeline.kaggle.progress import progress_bar
from pipeline.kaggle.submissions import PENDING, Submission, find, read_history, record, references, with_hash
from pipeline.kaggle.transport import timeout

CONFIRM_TRIES = 3  # how often Kaggle is asked whether it has the file, after an answer was lost


def submit(
    competition: str, file: Path, message: str, history_path: Path, resubmit: bool = False
) -> Submission:
    """Send a file unless Kaggle has it, and wait for its score.

    Args:
        competition: its slug.
        file: the submission.
        message: Kaggle shows it beside the score, after the file's SHA-256.
        history_path: the submission is recorded there as soon as Kaggle has it, and again with its score.
        resubmit: send the same bytes again.

    Returns:
        The submission with its score.

    Raises:
        PipelineError: the file was not sent, or has no score (yet); the text says which.
    """
    digest = sha256(file)
    history = read_history(history_path)
    listed = list(client.submissions(competition))
    submission = None if resubmit else find(listed, digest, history)
    if submission:
        told = (
            f"these bytes are with Kaggle as submission {submission.reference} of "
            f"{submission.submitted}: not sent again (RESUBMIT=1 would)"
        )
    elif not resubmit and (known := references(history, digest)):
        raise PipelineError(
            f"{history_path}: these bytes were sent as submission {max(known)}, which Kaggle does not list "
            f"for the account of {find_credentials().where}; RESUBMIT=1 sends them all the same"
        )
    else:
        submission, told = _send(competition, file, with_hash(message, digest), digest, listed)
    record(history_path, submission, digest)
    print(f"submit: {told}")
    submission = _wait_for_score(competition, submission)
    record(history_path, submission, digest)
    if submission.status != "COMPLETE":
        raise PipelineError(
            f"Kaggle could not score submission {submission.reference}: "
            f"{submission.error or submission.status}; the same bytes are sent again only with RESUBMIT=1"
        )
    return submission


def _send(competition, file, message, digest, listed):
    """Send the file; returns the submission without its score, and what to tell the user afterwards."""
    left = client.submissions_left(competition)
    counted = "Kaggle counts no submission yet" if left is None else f"{left} submissions left today"
    print(f"submit: {counted}")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    try:
        reference = client.submit(competition, file, message)
    except client.OutcomeUnknown as error:
        if submission := _confirm(competition, digest, listed):
            return submission, f"Kaggle has it as submission {submission.reference}, though: {error}"
        raise PipelineError(
            f"{one_line(str(error), 160)}; whether Kaggle has the file is not settled: "
            "`make submissions` shows it, the next `make submit` asks before it sends"
        ) from error
    return Submission(reference, now, message), f"sent as submission {reference}: {message}"


def _confirm(competition, digest, listed):
    """Look for a submission of these bytes that Kaggle had not `listed` before; None if there is none."""
    before = {one.reference for one in listed}
    for _ in range(CONFIRM_TRIES):
        time.sleep(timeout("SCORE_POLL"))
        with contextlib.suppress(PipelineError):
            new = [one for one in client.submissions(competition) if one.reference not in before]
            if submission := find(new, digest, {}):
                return submission
    return None


def _wait_for_score(competition, submission):
    """Ask for a submission until it has its score, or Kaggle's reason why it has none."""
    limit, poll = timeout("SCORE_DEADLINE"), timeout("SCORE_POLL")
    started, elapsed = time.monotonic(), 0.0
    if submission.status == PENDING:
        print(f"submit: waiting up to {limit:g} s for the score", flush=True)
    with progress_bar(TimeElapsedColumn()) as progress:
        bar = progress.add_task(f"submission {submission.reference}", total=limit)
        while submission.status == PENDING:
            if elapsed >= limit:
                raise PipelineError(
                    f"submission {submission.reference} has no score after {limit:g} s: look with `make "
                    f"submissions` or at {client.SITE}/competitions/{competition}/submissions; the next "
                    "`make submit` picks it up without sending again"
                )
            time.sleep(min(poll, limit - elapsed))
            elapsed = time.monotonic() - started
            progress.update(bar, completed=elapsed)
            submission = _refreshed(competition, submission)
    return submission


def _refreshed(competition, submission):
    try:
        listed = client.submissions(competition)
        return next((one for one in listed if one.reference == submission.reference), submission)
    except PipelineError as error:
        raise PipelineError(
            f"Kaggle has the file as submission {submission.reference}, but its score could not be asked "
            f"for: {one_line(str(error), 150)}; `make submit` does not send it again"
        ) from error


def check_origin(path: Path, competition: str) -> None:
    """Check that the data are this competition's own.

    Args:
        path: `data/raw/source.json`.
        competition: its slug.

    Raises:
        PipelineError: they are MNIST's or another competition's, or the file does not say.
    """
    origin = load_source(path)
    if origin["source"] not in ("kaggle", "folder"):
        raise PipelineError(
            "this submission was made from the MNIST stand-in, whose test.csv is not Kaggle's: give Kaggle "
            "credentials and set download.source to kaggle in params.yaml, then `make submit` makes one of "
            "Kaggle's data and sends it"
        )
    if (data_of := origin["competition"]) != competition:
        raise PipelineError(
            f"this submission was made from the data of {str(data_of)[:40]!r}, but params.yaml names "
            f"{competition!r}: run `dvc repro`"
        )


def describe(accuracies: dict[str, float | None]) -> str:
    """Compose a message: which commit made the file, and how accurate it is.

    Args:
        accuracies: by name; None is left out.
    """
    known = (f"{name} {value:.5f}" for name, value in accuracies.items() if value is not None)
    return ", ".join([commit(), *known])
