"""What a run is worth: in a few lines for the terminal, and as one self-contained page."""

import base64
import html
from pathlib import Path
from string import Template

import pandas as pd

from pipeline.report.plots import history_png

TEMPLATE = Path(__file__).with_name("template.html")
FOLD_COLUMNS = ("architecture", "accuracy", "loss", "images", "epochs", "seconds", "images_per_second")


def in_words(check: dict) -> str:
    """What `metrics/check.json` says, in a sentence."""
    low, high = check["interval_95"]
    figure = (
        f"{check['accuracy']:.4f} on {check['images']:,} MNIST test images "
        f"(95 % interval {low:.4f} to {high:.4f})"
    )
    if not check["contaminated"]:
        return f"accuracy {figure}; clean: no network was trained on any of them"
    return (
        f"accuracy {figure} that no network was trained on. On all 10,000 it is "
        f"{check['contaminated_accuracy_on_all_images']:.4f}, but that is contaminated: the others were "
        "trained on (prepare.hold_out_mnist_test is false)"
    )


def article_in_words(article: dict, check: dict) -> str:
    """What the article says, what its system gives when run again, and the ensemble beside it.

    Args:
        article: content of `metrics/article.json`.
        check: content of `metrics/check.json`.
    """
    low, high = article["interval_95"]
    compared = [name for name in article if name.startswith("step_")]
    printed = ""
    if compared:  # else the run was too short to reach any of the article's figures
        printed = (
            f"The article prints {article[compared[-1]]['article_accuracy_batch']:.3f} at step "
            f"{compared[-1].removeprefix('step_')}, on one batch of 1,000 MNIST test images. "
        )
    return (
        f"{printed}Its system, run again for {article['step'] + 1:,} steps, is right on "
        f"{article['accuracy_batch']:.3f} of the first 1,000 test images and on {article['accuracy']:.4f} of "
        f"all {article['images']:,} (95 % interval {low:.4f} to {high:.4f}); our ensemble on "
        f"{check['accuracy']:.4f} of {check['images']:,}."
    )


def summary(source: dict, metrics: dict[str, dict], submission: Path) -> str:
    """The lines that close a run.

    Args:
        source: content of `data/raw/source.json`.
        metrics: content of `folds.json`, `ensemble.json` and `check.json`, by name.
        submission: path of the file to submit.
    """
    if source["source"] != "mnist":
        origin, submit = f"Kaggle's own files ({source['competition']})", "make submit"
    else:
        origin = f"MNIST in the competition's place (shuffled with seed {source['seed']})"
        submit = "not this one: give Kaggle credentials, set download.source: kaggle in params.yaml, then: "
        submit += "make submit"
    folds, score = metrics["folds"], metrics["ensemble"]["expected_public_score"]
    low, high = score["interval_95"]
    gain = "averaging should add to it"
    if score["gain_images"]:
        gain = f"each fold alone, and {score['gain_of_averaging']:+.4f} for averaging them"
    lines = {
        "data": origin,
        "folds": ", ".join(f"{fold['accuracy']:.4f}" for fold in _by_fold(folds)),
        "out of fold": f"{folds['oof_accuracy']:.4f} on {folds['oof_images']:,} images, each fold alone",
        "MNIST test": in_words(metrics["check"]),
        "public score": f"{score['score']:.4f} expected, {low:.4f} to {high:.4f}; {gain}",
        "submission": submission,
        "submit it": submit,
    }
    return "\n".join(f"{name:15} {text}" for name, text in lines.items())


def render_page(
    summary_text: str, metrics: dict[str, dict], history: pd.DataFrame, pictures: dict[str, bytes]
) -> str:
    """The report as one HTML page with its pictures in it.

    Args:
        summary_text: see `summary`.
        metrics: content of the files of `metrics/`, by name.
        history: the table of `metrics/history.csv`.
        pictures: PNG files: `confusion`, `mistakes` and `article`.
    """
    pictures = {"history": history_png(history), **pictures}
    inlined = {
        name: "data:image/png;base64," + base64.b64encode(png).decode() for name, png in pictures.items()
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        summary=html.escape(summary_text),
        folds=_fold_table(metrics["folds"]),
        article_words=html.escape(article_in_words(metrics["article"], metrics["check"])),
        **inlined,
    )


def _fold_table(folds):
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in ("fold", *FOLD_COLUMNS))
    rows = [
        f"<tr><td>{number}</td>" + "".join(f"<td>{_cell(fold[name])}</td>" for name in FOLD_COLUMNS) + "</tr>"
        for number, fold in enumerate(_by_fold(folds))
    ]
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _cell(value):
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if isinstance(value, float) and value < 1 else f"{value:,}"


def _by_fold(folds):
    return [content for name, content in folds.items() if name.startswith("fold_")]
