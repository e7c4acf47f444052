"""Sum up the run: metrics/report.html, and a few lines at the end of `dvc repro`."""

import sys

import matplotlib
import pandas as pd

from pipeline.files import load_json, replacing
from pipeline.report import article_in_words, render_page, summary
from pipeline.stages import METRICS, SOURCE, SUBMISSION, run_stage


def main():
    matplotlib.use("Agg")
    source, folds, ensemble, check, article = (
        load_json(path, stage)
        for path, stage in ((SOURCE, "download"), (METRICS / "folds.json", "train"),
                            (METRICS / "ensemble.json", "ensemble"), (METRICS / "check.json", "check"),
                            (METRICS / "article.json", "article")))
    text = summary(source, folds, ensemble, check, SUBMISSION)
    page = render_page(text, folds, pd.read_csv(METRICS / "history.csv"),
                       (METRICS / "confusion.png").read_bytes(),
                       (METRICS / "mistakes.png").read_bytes(),
                       article_in_words(article, check), (METRICS / "article.png").read_bytes())
    with replacing(METRICS / "report.html") as beside:
        beside.write_text(page, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    run_stage(sys.modules[__name__], main)
