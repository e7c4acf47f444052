"""Print the history of submissions beside what Kaggle lists (`make submissions`)."""

from dataclasses import astuple

from pipeline.competition import find_competition
from pipeline.kaggle import api
from pipeline.kaggle.history import read_history
from pipeline.params import load_params
from pipeline.paths import HISTORY
from pipeline.stages import run_stage


def main():
    history = read_history(HISTORY)
    print("history:", *history.drop(columns="sha256").itertuples(index=False, name=None), sep="\n")
    submissions = api.submissions(find_competition(load_params().download.competition).slug)
    print("Kaggle:", *map(astuple, submissions), sep="\n")


if __name__ == "__main__":
    run_stage(main, keep_stderr=True)
