"""The report as an HTML page and as a short Markdown file with pictures."""

import base64
import importlib.metadata
import io
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from PIL import Image

from pipeline.metrics import METRICS
from pipeline.report import analysis, charts
from pipeline.report.run import STAGES, Predictions, Run, origin_in_words

FOLDER = Path(__file__).parent
LIBRARIES = ("tensorflow", "keras", "numba", "numpy", "scikit-learn", "pandas", "dvc")
LOSSES = {"loss": "Training loss", "val_loss": "Validation log loss"}
# Limits of the digits in a gallery, and in the picture of the short form.
MOST_DIGITS, MOST_PICTURED = 200, 60
# Images of the MNIST test split whose labels human raters dispute (github.com/cleanlab/label-errors), from 0.
DISPUTED = frozenset(
    (947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937, 6651, 6783, 8527, 9679, 9729)
)


def _png(image):
    """Encode a digit `(size, size)` as dark ink on white, for a data URL."""
    target = io.BytesIO()
    Image.fromarray(255 - image).save(target, "PNG", optimize=True)
    return base64.b64encode(target.getvalue()).decode()


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER / "templates"),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"four": "{:.4f}".format, "whole": "{:,.0f}".format, "png": _png}


def render(run: Run, params: dict, times: dict) -> dict[str, bytes]:
    """Make the contents of the page, the short form and its pictures, by file name."""
    temperature = analysis.best_temperature(run.oof.probabilities, run.oof.labels)
    minutes = sum(record["seconds"] for record in times.values()) / 60
    context = {
        "run": run,
        **run.metrics,
        "metrics": [name for name in METRICS if name != "accuracy"],
        "origin": origin_in_words(run.source),
        "times": times,
        "total_time": f"{minutes:.1f} minutes, {len(times)} of {len(STAGES)} stages",
        "published": _published(run) if run.on_mnist else [],
        "folds": _folds(run),
        "confusions": {name: analysis.confusion(part) for name, part in run.parts.items()},
        "digits": {name: analysis.accuracy_by_digit(part) for name, part in run.parts.items()},
        "temperature": temperature,
        "calibration": {name: _calibration(part, temperature) for name, part in run.parts.items()},
        "galleries": {name: gallery(run, part) for name, part in run.parts.items()},
        "disputed": len(DISPUTED.intersection(run.test.rows[run.test.mistakes])),
        "averaging": analysis.averaging(run.each, run.test.labels).to_dict("records"),
        "together": analysis.failing_together(run.each, run.test.labels),
        "params": params,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
    context["charts"] = _charts(run, context["calibration"])
    names = "report.html", "report.md"
    files = {name: TEMPLATES.get_template(name).render(context).encode() for name in names}
    return files | _pictures(run)


def _published(run):
    """Accuracies on the MNIST test split: the rows of `published.csv` and one for this run."""
    rows = pd.read_csv(FOLDER / "published.csv", dtype=str, keep_default_na=False).to_dict("records")
    check, folds = run.metrics["check"], np.bincount(run.folds[run.folds >= 0])
    networks = run.history["member"].nunique()
    system = f"this run: {networks} networks, {folds.sum() - folds.max():,} images each; "
    if run.accuracy_on_all is not None:
        system += f"on {check['images']:,} images only; "
    system += f"95 % interval {check['low']:.4f} to {check['high']:.4f}"
    ours = {"system": system, "accuracy": f"{check['accuracy']:.4f}", "chosen": "nothing", "address": ""}
    return sorted([*rows, ours], key=lambda row: row["accuracy"])


def _folds(run):
    """One row per fold: its metrics, architectures and speed."""
    rows = []
    for fold, epochs in run.history.groupby("fold"):
        architectures = ", ".join(epochs["architecture"].unique())
        speed = epochs["images"].sum() / max(epochs["seconds"].sum(), 1e-9)
        row = {"fold": fold, "architecture": architectures, "images_per_second": speed}
        rows.append(row | run.metrics[f"folds/fold_{fold}"])
    return rows


def _calibration(part, temperature):
    """One row before and one after the temperature: log loss, calibration error, bins of confidence."""
    rows = []
    for state, by in (("as predicted", 1), (f"at temperature {temperature:.2f}", temperature)):
        probabilities = analysis.at_temperature(part.probabilities, by)
        bins, error = analysis.reliability(probabilities, part.labels)
        loss = METRICS["log_loss"](probabilities, part.labels)
        rows.append({"state": state, "bins": bins, "error": error, "log_loss": loss})
    return rows


def gallery(run: Run, part: Predictions) -> list[dict]:
    """Describe the most confident mistakes; on the clean test set, with the votes of the folds' networks."""
    digits = []
    for position in part.mistakes[:MOST_DIGITS]:
        label, row = int(part.labels[position]), int(part.rows[position])
        votes = run.each[:, position].argmax(axis=1) if part is run.test else np.array([], int)
        digits.append(
            {
                "image": part.images[position],
                "row": row,
                "label": label,
                "predicted": int(part.predicted[position]),
                "probability": part.probabilities[position].max(),
                "votes": ", ".join(map(str, votes)),
                "by_all": votes.size and (votes != label).all(),
                "disputed": run.on_mnist and part is run.test and row in DISPUTED,
            }
        )
    return digits


def _charts(run, calibration):
    """Draw all charts of the page as SVG, by name."""
    history = run.history.assign(error=lambda table: np.maximum(1 - table["val_accuracy"], 1e-4))
    drawn = {
        column: charts.svg(column, charts.curves, history, {column: title}, size=(3.9, 2.8))
        for column, title in {**LOSSES, "error": "Validation error"}.items()
    }
    name, rows = list(calibration.items())[-1]
    drawn["reliability"] = charts.svg("reliability", charts.reliability_diagram, rows, name)
    if run.on_mnist:
        drawn["article"] = charts.svg("article", charts.article_curve, run.article)
    return drawn


def _pictures(run):
    """Draw the PNG files of the short form, by name."""
    name, part = list(run.parts.items())[-1]
    misread, total = gallery(run, part)[:MOST_PICTURED], len(part.mistakes)
    title = f"{name}: the {len(misread)} most confident of {total:,} misread digits"
    if part is run.test:
        title += "; framed: misread by every network" + "; *: disputed label" * run.on_mnist
    height = 0.9 * max(1, -(-len(misread) // charts.MISTAKE_COLUMNS)) + 0.4
    return {
        "curves.png": charts.png(charts.curves, run.history, LOSSES, True, size=(9, 3.6)),
        "article.png": charts.png(charts.article_curve, run.article, size=(8, 4.5)),
        "mistakes.png": charts.png(charts.mistakes, misread, title, size=(9, height)),
    }
