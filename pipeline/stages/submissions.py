"""Print the history of submissions beside what Kaggle lists (`make submissions`); changes nothing."""

from pipeline.files import PipelineError
from pipeline.kaggle import client
from pipeline.kaggle.submissions import read_history
from pipeline.params import load_params
from pipeline.paths import HISTORY
from pipeline.stages import run_stage

LINE = "{:>10}  {:20}  {:16}  {:16}  {}"


def main():
    competition = client.slug(load_params().download.competition)
    history, listed, problem = read_history(HISTORY), {}, None
    try:
        listed = {one.reference: one for one in client.submissions(competition)}
    except PipelineError as error:
        problem = error  # raised after the history is printed
    print(LINE.format("reference", "submitted (UTC)", "history", "Kaggle", "message"))
    for reference in sorted({*history, *listed}):
        print(line(reference, history.get(reference), listed.get(reference)))
    if problem:
        raise problem


def line(reference, row, one):
    """One line of the table, of a row of the history, a submission that Kaggle lists, or both."""
    recorded = f"{row['status']} {row['public_score']}" if row else "-"
    if one is None:
        return LINE.format(reference, row["submitted"], recorded, "-", row["message"]).rstrip()
    score = "" if one.public_score is None else one.public_score
    message = f"{one.message} {one.error}"
    return LINE.format(reference, one.submitted, recorded, f"{one.status} {score}", message).rstrip()


if __name__ == "__main__":
    run_stage(main, keep_stderr=True)
