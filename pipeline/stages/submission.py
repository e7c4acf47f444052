"""Turn the ensemble's predictions into the file that Kaggle scores: submissions/submission.csv."""

import numpy as np

from pipeline.competition import ROWS, SPLIT_ROWS, read_labels, write_labels
from pipeline.files import PipelineError, load_arrays
from pipeline.params import load_params
from pipeline.paths import PREDICTIONS, SAMPLE_SUBMISSION, SUBMISSION
from pipeline.stages import run_stage


def main():
    limit = load_params().prepare.limit
    (probabilities,) = load_arrays(PREDICTIONS, "ensemble", "probabilities")
    ids, _ = read_labels(SAMPLE_SUBMISSION, len(probabilities))
    if limit is not None:
        ids = ids[ids <= limit]
    if not np.isfinite(probabilities).all():
        raise PipelineError(f"{PREDICTIONS}: a probability is no number; run the stage 'ensemble' again")
    if (rows := len(probabilities)) != len(ids):
        # A prediction for each row of a test.csv that 'prepare' allows: then the sample is cut off.
        if rows in (limit, ROWS["test.csv"], SPLIT_ROWS["test.csv"]):
            wrong = f"{SAMPLE_SUBMISSION}: has {len(ids)} rows, expected {rows} as in {PREDICTIONS}"
            raise PipelineError(f"{wrong}; run the stage 'download' again")
        wrong = f"{PREDICTIONS}: has {rows} rows, expected {len(ids)} as in {SAMPLE_SUBMISSION}"
        raise PipelineError(f"{wrong}; run the stage 'ensemble' again")
    # Row i of test.csv has the id i + 1; the sample decides the order of the submission.
    labels = np.argmax(probabilities, axis=1)[ids - 1]
    write_labels(SUBMISSION, ids, labels, len(ids))
    print(
        f"submission: {len(ids):,} predictions in {SUBMISSION}"
        + ("" if limit is None else ", too few to submit (prepare.limit is set)")
    )


if __name__ == "__main__":
    run_stage(main)
