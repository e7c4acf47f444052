"""Write the ensemble's predictions in Kaggle's format: submissions/submission.csv."""

import numpy as np
import pandas as pd

from pipeline.competition import check_ids, find_competition, read_submission, write_submission
from pipeline.files import PipelineError, load_arrays
from pipeline.params import load_params
from pipeline.paths import DIGITS, PREDICTIONS, SAMPLE_SUBMISSION, SUBMISSION
from pipeline.stages import run_stage


def main():
    params = load_params()
    competition, limit = find_competition(params.download.competition), params.prepare.limit
    (probabilities,) = load_arrays(PREDICTIONS, "ensemble", "probabilities")
    (test_ids,) = load_arrays(DIGITS, "prepare", "test_ids")
    if not np.isfinite(probabilities).all() or len(probabilities) != len(test_ids):
        raise PipelineError(
            f"{PREDICTIONS}: does not have {len(test_ids)} rows of finite probabilities; run the stage "
            "'ensemble' again"
        )
    ids = read_submission(SAMPLE_SUBMISSION, competition)[competition.submission[0]]
    all_rows = len(ids)
    if limit is not None:
        ids = ids[ids.isin(test_ids)]
    check_ids(SAMPLE_SUBMISSION, ids, test_ids)
    labels = pd.Series(probabilities.argmax(axis=1), index=test_ids)
    write_submission(SUBMISSION, competition, ids.to_numpy(), labels.reindex(ids).to_numpy())
    note = ", too few to submit (prepare.limit is set)" if len(ids) < all_rows else ""
    print(f"submission: {len(ids):,} predictions in {SUBMISSION}{note}")


if __name__ == "__main__":
    run_stage(main)
