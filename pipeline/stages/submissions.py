"""Print the history of submissions beside what Kaggle lists (`make submissions`); changes nothing."""

import sys

from pipeline import kaggle_api
from pipeline.files import PipelineError
from pipeline.params import load_params
from pipeline.paths import HISTORY
from pipeline.stages import run_stage
from pipeline.submissions import read_history

LINE = "{:>10}  {:20}  {:16}  {:16}  {}"


def main():
    competition = kaggle_api.slug(load_params().download.competition)
    history, listed, problem = read_history(HISTORY), {}, None
    try:
        listed = {one.reference: one for one in kaggle_api.submissions(competition)}
    except PipelineError as error:
        problem = error  # after what is known here
    print(LINE.format("reference", "submitted (UTC)", "history", "Kaggle", "message"))
    for reference in sorted({*history, *listed}):
        row, one = history.get(reference), listed.get(reference)
        print(LINE.format(
            reference,
            one.submitted if one else row["submitted"],
            f"{row['status']} {row['public_score']}" if row else "-",
            f"{one.status} {'' if one.public_score is None else one.public_score}" if one else "-",
            f"{one.message} {one.error}" if one else row["message"]).rstrip())
    if problem:
        raise problem


if __name__ == "__main__":
    run_stage(sys.modules[__name__], main, draws_on_stderr=True)
