"""Send submissions/submission.csv to Kaggle, once, and wait for its score: submissions/score.json.

MESSAGE="..." in the environment replaces the message, RESUBMIT=1 sends the same bytes again.
"""

import os

from pipeline.competition import check_ids, find_competition, read_submission
from pipeline.files import load_json, sha256, write_json
from pipeline.git import commit
from pipeline.kaggle import api
from pipeline.kaggle.sending import check_origin, send_once
from pipeline.params import load_params
from pipeline.paths import HISTORY, METRICS, SAMPLE_SUBMISSION, SCORE, SOURCE, SUBMISSION
from pipeline.stages import run_stage


def main():
    competition = find_competition(load_params().download.competition)
    column = competition.submission[0]
    ids, test_ids = (read_submission(path, competition)[column] for path in (SUBMISSION, SAMPLE_SUBMISSION))
    check_ids(SUBMISSION, ids, test_ids.to_numpy())
    check_origin(load_json(SOURCE, "download"), competition.slug)
    expected, check = (load_json(METRICS / f"{name}.json", name) for name in ("ensemble", "check"))
    clean = f", clean test {check['accuracy']:.5f}" if "accuracy" in check else ""
    message = os.environ.get("MESSAGE") or f"{commit()}, expected {expected['accuracy']:.5f}{clean}"
    submission = send_once(competition.slug, SUBMISSION, message, HISTORY, os.environ.get("RESUBMIT") == "1")
    score = {
        "reference": submission.reference,
        "submitted": submission.submitted,
        "status": submission.status,
        "public_score": submission.public_score,
        "rank": api.rank(competition.slug),
        "expected_score": expected["accuracy"],
        "expected_interval_95": [expected["low"], expected["high"]],
        "sha256": sha256(SUBMISSION),
    }
    write_json(SCORE, score)
    print(f"submit: public score {submission.public_score:.5f}, expected was {expected['accuracy']:.5f}")


if __name__ == "__main__":
    run_stage(main, keep_stderr=True)
