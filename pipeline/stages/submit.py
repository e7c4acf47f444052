"""Send submissions/submission.csv to Kaggle, once, and wait for its score: submissions/score.json.

MESSAGE="..." in the environment replaces the message, RESUBMIT=1 sends the same bytes again.
"""

import json
import os

from pipeline.competition import read_labels
from pipeline.files import sha256, write_json
from pipeline.kaggle.client import slug
from pipeline.kaggle.submit import check_origin, describe, submit
from pipeline.params import load_params
from pipeline.paths import HISTORY, METRICS, SCORE, SOURCE, SUBMISSION
from pipeline.stages import run_stage


def main():
    competition = slug(load_params().download.competition)
    read_labels(SUBMISSION)
    check_origin(SOURCE, competition)
    expected, *interval = (metric("ensemble", name) for name in ("accuracy", "low", "high"))
    message = os.environ.get("MESSAGE") or describe(
        {"oof": metric("oof", "accuracy"), "clean MNIST": metric("check", "accuracy")}
    )
    submission = submit(competition, SUBMISSION, message, HISTORY, resubmit=os.environ.get("RESUBMIT") == "1")
    score = {
        "reference": submission.reference,
        "submitted": submission.submitted,
        "status": submission.status,
        "public_score": submission.public_score,
        "expected_score": expected,
        "expected_interval_95": None if None in interval else interval,
        "sha256": sha256(SUBMISSION),
    }
    write_json(SCORE, score)
    comparison = "" if expected is None else f", expected was {expected:.5f}"
    print(f"submit: public score {submission.public_score:.5f}{comparison}")


def metric(name, key):
    """A value of `metrics/<name>.json`; None, announced, where there is none."""
    path = METRICS / f"{name}.json"
    try:
        return json.loads(path.read_text())[key]
    except (OSError, ValueError, KeyError, TypeError):
        print(f"submit: {path} has no {key!r}, going on without it")
        return None


if __name__ == "__main__":
    run_stage(main, keep_stderr=True)
