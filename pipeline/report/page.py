"""The report as a page and in short: what `templates/` needs, put together from a finished run."""

import base64
import importlib.metadata
import io
import platform
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from pipeline.report import analysis, charts
from pipeline.report.run import Predictions, Run
from pipeline.report.summary import origin_in_words

TEMPLATES = Path(__file__).with_name("templates")
LIBRARIES = ("tensorflow", "keras", "numba", "numpy", "scikit-learn", "pandas", "dvc")
TEST = "MNIST test split"
# The digits of a gallery, at most.
MOST_DIGITS = 200
MOST_DISAGREED, MOST_DOUBTFUL = 24, 40
# Accuracies on the MNIST test split: system, images trained on, accuracy, what was chosen on the test split,
# whether the figure is comparable, address.
PUBLISHED = (
    ("ReNet: recurrent networks that sweep the image", "60,000", 0.9955, "not said", True,
     "https://arxiv.org/abs/1505.00393"),
    ("S5: one recurrent network, pixel by pixel", "60,000", 0.9965, "not said", True,
     "https://arxiv.org/abs/2208.04933"),
    ("15 convolutional networks, mean of 100 ensembles (sd 0.0002)", "60,000", 0.99745,
     "nothing: the mean of all", True, "https://github.com/cdeotte/MNIST-CNN-99.75"),
    ("branching network with vector capsules, ensemble", "60,000", 0.9987, "checkpoints, combinations", False,
     "https://arxiv.org/abs/2001.09136"),
    ("vote of networks of three kernel sizes", "60,000", 0.9991, "epochs, combinations", False,
     "https://arxiv.org/abs/2008.10400"),
)  # fmt: skip
SHORT_NAMES = ("ReNet", "S5", "15 CNNs, mean")


def environment() -> jinja2.Environment:
    """Jinja2 with the report's templates and filters; HTML is escaped, a missing value is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["four"] = lambda value: f"{value:.4f}"
    made.filters["whole"] = lambda value: f"{value:,.0f}"
    return made


def render(run: Run, params: dict, provenance: dict) -> tuple[str, str, dict[str, bytes]]:
    """Make the page, the short form, and the pictures beside it.

    Args:
        run: the finished run.
        params: the content of `params.yaml`, by section.
        provenance: see `read_provenance`.

    Returns:
        The page as HTML, the short form as Markdown, and the pictures as PNG files by name.
    """
    temperature = analysis.best_temperature(run.oof.probabilities, run.oof.labels)
    parts = {"out of fold": run.oof, TEST: run.test}
    confusions = {name: analysis.confusion(part) for name, part in parts.items()}
    digits = {name: analysis.accuracy_by_digit(part) for name, part in parts.items()}
    context = {
        "oof": run.metrics["oof"],
        "check": run.metrics["check"],
        "score": run.metrics["ensemble"],
        "origin": origin_in_words(run.source),
        "accuracy_on_all": run.accuracy_on_all,
        "provenance": provenance,
        "published": PUBLISHED,
        "trained_on": _trained_on(run),
        "folds": _folds(run),
        "confusions": confusions,
        "digits": digits,
        "calibration": _calibration(run, temperature),
        "temperature": temperature,
        "galleries": _galleries(run, temperature),
        "averaging": analysis.averaging(run.each, run.test.labels),
        "together": analysis.failing_together(run.each, run.test.labels),
        "leak": _leak(run),
        "article": run.metrics["article"],
        "article_printed": run.article.dropna(subset="article_accuracy_batch"),
        "params": params,
        "versions": _versions(),
        "tips": _tips(run.history),
    }
    context["charts"] = _charts(run, digits, context)
    templates = environment()
    pictures = _pictures(run, confusions, context["galleries"]["test"])
    page = templates.get_template("report.html").render(context)
    return page, templates.get_template("report.md").render(context), pictures


def _charts(run, digits, context):
    """All charts of the page as SVG, by name."""
    history = run.history.assign(error=lambda table: np.maximum(1 - table["val_accuracy"], 1e-4))
    comparable = [accuracy for _, _, accuracy, _, comparable, _ in PUBLISHED if comparable]
    reliability = {row["state"]: row["table"] for row in context["calibration"] if row["of"] == TEST}
    small = {
        "loss": (charts.curves, history, "loss", "Training loss"),
        "val_loss": (charts.curves, history, "val_loss", "Validation log loss"),
        "error": (charts.curves, history, "error", "Validation error"),
        "accuracy": (
            charts.averaged, context["averaging"], "accuracy", "Accuracy, with the range of subsets"
        ),
        "log_loss": (charts.averaged, context["averaging"], "log_loss", "Log loss"),
    }  # fmt: skip
    large = {
        "comparison": (charts.comparison, [*SHORT_NAMES, "ours"], comparable, context["check"]),
        "digits": (charts.by_digit, digits),
        "reliability": (charts.reliability_diagram, reliability),
        "article": (charts.article_curve, run.article),
    }
    made = {name: charts.svg(name, *chart, size=(3.9, 2.8)) for name, chart in small.items()}
    made |= {name: charts.svg(name, *chart) for name, chart in large.items()}
    by_image = run.reading.swapaxes(0, 1) if run.reading.size else ()
    made["reading"] = [
        (label, predicted, charts.svg(f"reading{number}", charts.reading_of, image, parts, size=(4.8, 2.1)))
        for number, (image, label, predicted, parts) in enumerate(zip(*run.read, by_image, strict=False))
    ]
    return made


def _pictures(run, confusions, misread):
    """The PNG files beside the short form, by name."""

    def both(figure):
        left, right = figure.subfigures(1, 2)
        charts.curves(left, run.history, "loss", "Training loss")
        charts.curves(right, run.history, "val_loss", "Validation log loss")
        for axes in figure.axes:
            axes.legend()

    positions = [digit["position"] for digit in misread["digits"]]
    rows = max(1, -(-min(len(positions), charts.MOST_MISTAKES) // charts.MISTAKE_COLUMNS))
    mistakes = charts.mistakes, misread["digits"], run.test.images[positions], misread["total"]
    return {
        "curves": charts.png(both, size=(9, 3.6)),
        "confusion": charts.png(charts.confusion_matrices, confusions, size=(9.4, 4.8)),
        "mistakes": charts.png(*mistakes, size=(9, 0.9 * rows + 0.4)),
        "article": charts.png(charts.article_curve, run.article, size=(8, 4.5)),
    }


def _folds(run):
    """A row a fold: its figures, architectures and speed."""
    rows = []
    for fold, epochs in run.history.groupby("fold"):
        architectures = ", ".join(epochs["architecture"].unique())
        speed = epochs["images"].sum() / max(epochs["seconds"].sum(), 1e-9)
        figures = run.metrics[f"folds/fold_{fold}"]
        rows.append({"fold": fold, "architecture": architectures, "images_per_second": speed, **figures})
    return rows


def _trained_on(run):
    """How many images each fold's network was trained on, the fewest."""
    used = run.folds[run.folds >= 0]
    return len(used) - np.bincount(used).max()


def _leak(run):
    in_train = run.mnist_index >= 0
    return {
        "rows": len(in_train),
        "in_train": int(in_train.sum()),
        "trained_on": int((in_train & (run.folds >= 0)).sum()),
        "clean": len(run.test.labels),
    }


def _calibration(run, temperature):
    """Log loss and calibration error before and after the temperature, which is chosen out of fold."""
    rows = []
    for name, part in (("out of fold", run.oof), (TEST, run.test)):
        for state, by in (("as predicted", 1), (f"at temperature {temperature:.2f}", temperature)):
            probabilities = analysis.at_temperature(part.probabilities, by)
            table, error = analysis.reliability(probabilities, part.labels)
            loss = analysis.accuracy_and_loss(probabilities, part.labels)[1]
            rows.append({"of": name, "state": state, "table": table, "error": error, "log_loss": loss})
    return rows


def _galleries(run, temperature):
    """The digits worth looking at, each gallery with the number of all that belong to it."""
    disagreed = np.argsort(-analysis.disagreement(run.each), kind="stable")[:MOST_DISAGREED]
    found = {
        "test": (run.test, run.test.mistakes, MOST_DIGITS),
        "oof": (run.oof, run.oof.mistakes, MOST_DIGITS),
        "disagreed": (run.test, disagreed, MOST_DISAGREED),
        "doubtful_test": (run.test, analysis.doubtful_labels(run.test, temperature), MOST_DOUBTFUL),
        "doubtful_oof": (run.oof, analysis.doubtful_labels(run.oof, temperature), MOST_DOUBTFUL),
    }
    galleries = {
        name: {"total": len(positions), "digits": [_digit(part, position) for position in positions[:most]]}
        for name, (part, positions, most) in found.items()
    }
    for digit in galleries["disagreed"]["digits"] + galleries["test"]["digits"]:
        votes = run.each[:, digit["position"]].argmax(axis=1)
        digit["votes"] = ", ".join(map(str, votes))
        digit["by_all"] = bool((votes != digit["label"]).all())
    return galleries


def _digit(part: Predictions, position):
    probabilities, label = part.probabilities[position], int(part.labels[position])
    target = io.BytesIO()
    Image.fromarray(255 - part.images[position]).save(target, "PNG", optimize=True)
    return {
        "position": position,
        "row": int(part.rows[position]),
        "label": label,
        "predicted": int(probabilities.argmax()),
        "probability": float(probabilities.max()),
        "png": base64.b64encode(target.getvalue()).decode(),
    }


def _versions():
    versions = {"python": platform.python_version()}
    return versions | {library: importlib.metadata.version(library) for library in LIBRARIES}


def _tips(history):
    """What the page's script shows at each point of a learning curve: by chart, by member, by epoch."""
    history = history.assign(error=1 - history["val_accuracy"])
    members = history.groupby("member", sort=False)
    return {
        column: [
            {"member": member, "values": [f"{value:.4f}" for value in epochs[column]]}
            for member, epochs in members
        ]
        for column in ("loss", "val_loss", "error")
    }
