"""Sum up the run: metrics/report.html, report.md with its pictures, and the lines that close `dvc repro`."""

from pipeline.competition import load_source
from pipeline.files import write_bytes, write_csv
from pipeline.metrics import FIGURES
from pipeline.mnist import load_mnist
from pipeline.params import load_params
from pipeline.paths import CHECK, DIGITS, METRICS, MNIST, OOF, SOURCE, SUBMISSION, TIMES
from pipeline.report.analysis import confusion_table, digit_table
from pipeline.report.page import render
from pipeline.report.provenance import read_provenance
from pipeline.report.run import Run, load_figures, load_predictions, load_table
from pipeline.report.summary import summary
from pipeline.stages import run_stage


def main():
    params = load_params()
    files = {f"folds/fold_{fold}": ("train", FIGURES) for fold in range(params.prepare.folds)}
    files |= {
        "oof": ("train", FIGURES),
        "ensemble": ("ensemble", ("accuracy", "low", "high", "images")),
        "check": ("check", FIGURES[:5]),
        "article": ("article", FIGURES[:5]),
    }
    run = Run(
        source=load_source(SOURCE),
        metrics={
            name: load_figures(METRICS / f"{name}.json", stage, names)
            for name, (stage, names) in files.items()
        },
        history=load_table(METRICS / "history.csv", "train"),
        article=load_table(METRICS / "article.csv", "article"),
        **load_predictions(DIGITS, OOF, load_mnist(MNIST), CHECK),
    )
    page, short, pictures = render(run, params.model_dump(), read_provenance(TIMES))
    contents = {"report.html": page.encode(), "report.md": short.encode()}
    contents |= {f"{name}.png": content for name, content in pictures.items()}
    for name, content in contents.items():
        write_bytes(METRICS / name, content)
    write_csv(METRICS / "digits.csv", digit_table(run))
    write_csv(METRICS / "confusion.csv", confusion_table(run))
    print(summary(run.source, run.metrics, run.accuracy_on_all, SUBMISSION))
    print(f"{'report':15} {(METRICS / 'report.html').resolve()}")


if __name__ == "__main__":
    run_stage(main)
