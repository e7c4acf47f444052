"""Sum up the run: metrics/report.html, and a few lines at the end of `dvc repro`."""

import sys

import pandas as pd

from pipeline.files import atomic_write, load_json
from pipeline.paths import METRICS, SOURCE, SUBMISSION
from pipeline.report.page import render_page, summary
from pipeline.stages import run_stage


def main():
    source = load_json(SOURCE, "download")
    stages = {"folds": "train", "ensemble": "ensemble", "check": "check", "article": "article"}
    metrics = {name: load_json(METRICS / f"{name}.json", stage) for name, stage in stages.items()}
    pictures = {name: (METRICS / f"{name}.png").read_bytes() for name in ("confusion", "mistakes", "article")}
    text = summary(source, metrics, SUBMISSION)
    page = render_page(text, metrics, pd.read_csv(METRICS / "history.csv"), pictures)
    with atomic_write(METRICS / "report.html") as tmp:
        tmp.write_text(page, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    run_stage(sys.modules[__name__], main)
