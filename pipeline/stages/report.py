"""Summarize the run: metrics/report.html, report.md, and the closing lines of `dvc repro`."""

from pipeline.competition import find_competition
from pipeline.files import load_csv, load_json, write_bytes, write_csv
from pipeline.params import load_params
from pipeline.paths import CHECK, CLEAN, DIGITS, EPOCHS_TABLE, METRICS, OOF, SOURCE, SUBMISSION, TIMES
from pipeline.report.analysis import confusion_table, digit_table
from pipeline.report.page import render
from pipeline.report.run import Run, load_predictions, load_times, summary
from pipeline.stages import run_stage


def main():
    params = load_params()
    stages = {f"folds/fold_{fold}": "evaluate" for fold in range(params.prepare.folds)}
    stages |= {"oof": "evaluate", "ensemble": "ensemble", "check": "check", "article": "article"}
    run = Run(
        competition=find_competition(params.download.competition),
        source=load_json(SOURCE, "download"),
        metrics={name: load_json(METRICS / f"{name}.json", stage) for name, stage in stages.items()},
        history=load_csv(EPOCHS_TABLE, "train"),
        article=load_csv(METRICS / "article.csv", "article"),
        **load_predictions(DIGITS, OOF, CLEAN, CHECK),
    )
    for name, content in render(run, params.model_dump(), load_times(TIMES, OOF)).items():
        write_bytes(METRICS / name, content)
    write_csv(METRICS / "digits.csv", digit_table(run.parts))
    write_csv(METRICS / "confusion.csv", confusion_table(run.parts))
    print(summary(run, SUBMISSION, limited=run.metrics["ensemble"]["images"] == params.prepare.limit))
    print(f"{'report':17} {(METRICS / 'report.html').resolve()}")


if __name__ == "__main__":
    run_stage(main)
