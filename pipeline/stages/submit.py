"""Send submissions/submission.csv to Kaggle, once, and wait for its score: submissions/score.json.

MESSAGE="..." in the environment replaces the message, RESUBMIT=1 sends the same bytes again.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from datetime import datetime, timezone

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline import kaggle_api
from pipeline.competition import read_labels
from pipeline.files import PipelineError, sha256, write_json
from pipeline.params import load_params
from pipeline.paths import HISTORY, METRICS, SCORE, SOURCE, SUBMISSION
from pipeline.stages import run_stage
from pipeline.submissions import PENDING, Submission, find, read_history, record, references, with_hash

# After an answer was lost, Kaggle is asked this often whether it took the file.
LOOKS = 3


def main():
    competition = kaggle_api.slug(load_params().download.competition)
    read_labels(SUBMISSION)
    check_source(competition)
    digest = sha256(SUBMISSION)
    listed = list(kaggle_api.submissions(competition))
    history = read_history(HISTORY)
    submission = find(listed, digest, history)
    if os.environ.get("RESUBMIT") == "1":
        submission = None
    elif submission:
        print(f"submit: these bytes are with Kaggle as submission {submission.reference} of "
              f"{submission.submitted}: not sent again (RESUBMIT=1 would)")
    elif gone := references(history, digest):
        raise PipelineError(f"{HISTORY}: these bytes were sent as submission {max(gone)}, which Kaggle "
                            f"does not list for the account of {kaggle_api.find_credentials()}; "
                            "RESUBMIT=1 sends them all the same")
    if submission is None:
        submission = send(competition, digest, listed)
    record(HISTORY, submission, digest)
    submission = wait_for_score(competition, submission)
    record(HISTORY, submission, digest)
    if submission.status != "COMPLETE":
        raise PipelineError(f"Kaggle could not score submission {submission.reference}: "
                            f"{submission.error or submission.status}; the same bytes are sent again "
                            "only with RESUBMIT=1")
    expected = metric("ensemble", "expected_public_score") or {}
    write_json(SCORE, {
        "reference": submission.reference,
        "submitted": submission.submitted,
        "status": submission.status,
        "public_score": submission.public_score,
        "expected_score": expected.get("score"),
        "expected_interval_95": expected.get("interval_95"),
        "sha256": digest,
    })
    print(f"submit: public score {submission.public_score:.5f}"
          + (f", expected was {expected['score']:.5f}" if "score" in expected else ""))


def check_source(competition):
    """Refuse what was not made from this competition's own data."""
    try:
        origin = json.loads(SOURCE.read_text())
        source, data_of = origin["source"], origin["competition"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{SOURCE}: does not tell where the data come from "
                            f"({type(error).__name__}: {error}); run the stage 'download' again")
    if source != "kaggle":
        raise PipelineError("this submission was made from the MNIST stand-in, whose test.csv is not "
                            "Kaggle's: give Kaggle credentials and set download.source to kaggle in "
                            "params.yaml, then `make submit` makes one of Kaggle's data and sends it")
    if data_of != competition:
        raise PipelineError(f"this submission was made from the data of {data_of!r}, but params.yaml "
                            f"names {competition!r}: run `dvc repro`")


def send(competition, digest, listed):
    """Submit the file, if Kaggle allows one more.

    Args:
        listed: the submissions there were before.

    Returns:
        the new submission, not yet scored.
    """
    left = kaggle_api.submissions_left(competition)
    print("submit: Kaggle counts no submission yet" if left is None
          else f"submit: {left} submissions left today")
    message = with_hash(os.environ.get("MESSAGE") or describe(), digest)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
    try:
        reference = kaggle_api.submit(competition, SUBMISSION, message)
    except kaggle_api.Unclear as error:
        before = {one.reference for one in listed}
        for _ in range(LOOKS):
            time.sleep(kaggle_api.seconds("SCORE_POLL"))
            with contextlib.suppress(PipelineError):
                new = [one for one in kaggle_api.submissions(competition) if one.reference not in before]
                if submission := find(new, digest, {}):
                    print(f"submit: Kaggle has it as submission {submission.reference}, though: {error}")
                    return submission
        raise PipelineError(f"{error}; whether Kaggle has the file is not settled: `make submissions` "
                            "shows it, the next `make submit` asks before it sends")
    print(f"submit: sent as submission {reference}: {message}")
    return Submission(reference, now, message, PENDING, None, "")


def describe():
    """The message: which code it was, and how good, out of fold and on the clean MNIST images."""
    commit = git("rev-parse", "--short", "HEAD") or "no commit"
    if git("status", "--porcelain", "--", "pipeline", "params.yaml", "dvc.yaml"):
        commit += "-dirty"
    figures = {"oof": metric("folds", "oof_accuracy"), "clean MNIST": metric("check", "accuracy")}
    return ", ".join([commit, *(f"{name} {value:.5f}" for name, value in figures.items()
                               if value is not None)])


def git(*args):
    try:
        return subprocess.run(["git", *args], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def metric(name, key):
    """A value of `metrics/<name>.json`; None, announced, where there is none."""
    path = METRICS / f"{name}.json"
    try:
        return json.loads(path.read_text())[key]
    except (OSError, ValueError, KeyError, TypeError):
        print(f"submit: {path} has no {key!r}, going on without it")
        return None


def wait_for_score(competition, submission):
    """The submission with its score, or with Kaggle's reason why it has none."""
    deadline, poll = kaggle_api.seconds("SCORE_DEADLINE"), kaggle_api.seconds("SCORE_POLL")
    reference, started, elapsed = submission.reference, time.monotonic(), 0
    if submission.status == PENDING:
        print(f"submit: waiting up to {deadline:g} s for the score", flush=True)
    console = Console(stderr=True)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), transient=True,
                  console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"submission {reference}", total=deadline)
        while submission.status == PENDING:
            if elapsed >= deadline:
                raise PipelineError(
                    f"submission {reference} has no score after {deadline:g} s: look with `make "
                    f"submissions` or at {kaggle_api.SITE}/competitions/{competition}/submissions; the "
                    "next `make submit` picks it up without sending again")
            time.sleep(min(poll, deadline - elapsed))
            elapsed = time.monotonic() - started
            progress.update(bar, completed=elapsed)
            try:
                submission = next((one for one in kaggle_api.submissions(competition)
                                   if one.reference == reference), submission)
            except PipelineError as error:
                raise PipelineError(f"Kaggle has the file as submission {reference}, but its score could "
                                    f"not be asked for: {error}; `make submit` does not send it again")
    return submission


if __name__ == "__main__":
    run_stage(sys.modules[__name__], main, draws_on_stderr=True)
