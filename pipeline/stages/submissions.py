"""Print the history of submissions and what Kaggle lists (`make submissions`)."""

from dataclasses import asdict

import pandas as pd

from pipeline.competition import find_competition
from pipeline.kaggle import api
from pipeline.kaggle.history import read_history
from pipeline.params import load_params
from pipeline.paths import HISTORY
from pipeline.stages import run_stage


def main():
    history = read_history(HISTORY).drop(columns="sha256")
    print(f"{HISTORY}:", history.to_string(index=False), sep="\n")
    submissions = api.submissions(find_competition(load_params().download.competition).slug)
    print("Kaggle:", pd.DataFrame(map(asdict, submissions)).to_string(index=False), sep="\n")


if __name__ == "__main__":
    run_stage(main, keep_stderr=True)
