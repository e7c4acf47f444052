"""The charts of the report, drawn by Matplotlib: as SVG in the colours of the page, or as PNG."""

import io
import re
from collections.abc import Callable

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, MultipleLocator

from pipeline.competition import CLASSES

# The light colours, and the names under which `style.css` has them and their dark counterparts.
INK, MUTED, LINE = "#1d2530", "#5a6675", "#d5dbe3"
SERIES = ("#1666b8", "#b8500f", "#2b7a3d", "#8a3fb0", "#a8324a", "#0f7480", "#7a6412", "#4a4fc4")
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line"} | {
    color: f"series-{number}" for number, color in enumerate(SERIES)
}
STYLE = {
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.prop_cycle": matplotlib.cycler(color=SERIES),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}
ARTICLE_TICKS = (0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
# A bin with fewer images is not drawn.
FEWEST = 10
# From transparent to a colour that is seen on light and on dark paper.
PROBABILITY = LinearSegmentedColormap.from_list("probability", ["#2f7fd600", "#2f7fd6ff"])
MOST_MISTAKES, MISTAKE_COLUMNS = 60, 10


def svg(name: str, chart: Callable[..., None], *arguments, size: tuple[float, float] = (4.8, 3.2)) -> str:
    """Draw a chart as an SVG element for the page.

    Args:
        name: unique on the page; it goes before all identifiers.
        chart: draws on an empty figure, its first argument.
        *arguments: the others.
        size: width and height in inches.
    """
    metadata = {"Date": None, "Creator": None}
    text = _draw(chart, arguments, size, format="svg", transparent=True, metadata=metadata).decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    return text


def png(chart: Callable[..., None], *arguments, size: tuple[float, float]) -> bytes:
    """Draw a chart as a PNG file; arguments as of `svg`."""
    return _draw(chart, arguments, size, format="png", dpi=100, metadata={"Software": None})


def _draw(chart, arguments, size, **options):
    target = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size)
        chart(figure, *arguments)
        figure.savefig(target, **options)
    return target.getvalue()


def comparison(figure: Figure, names: list[str], values: list[float], ours: dict) -> None:
    """Published accuracies as points, ours, the last row, with its interval."""
    axes = figure.subplots()
    places = np.arange(len(names))[::-1]
    axes.plot(values, places[:-1], "o", color=MUTED)
    around = [[ours["accuracy"] - ours["low"]], [ours["high"] - ours["accuracy"]]]
    axes.errorbar([ours["accuracy"]], [0], xerr=around, fmt="o", color=SERIES[0], capsize=3)
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.xaxis.set_major_locator(MultipleLocator(0.0005) if ours["low"] > 0.99 else MaxNLocator(4))
    axes.xaxis.set_major_formatter("{x:.4f}")
    axes.set(xlabel="accuracy on the MNIST test split", ylim=(-0.6, len(names) - 0.4))


def curves(figure: Figure, history: pd.DataFrame, column: str, title: str) -> None:
    """A line for each member by epoch on a logarithmic scale, with points that the page's script finds."""
    axes = figure.subplots()
    for number, (member, epochs) in enumerate(history.groupby("member", sort=False)):
        color, dashes = SERIES[number % len(SERIES)], ("-", "--", ":")[number // len(SERIES) % 3]
        axes.plot(epochs["epoch"], epochs[column], dashes, color=color, linewidth=1.3, label=member)
        axes.plot(epochs["epoch"], epochs[column], "o", color=color, markersize=2, gid=f"points-{number}")
    axes.set(title=title, xlabel="epoch", xlim=(0.5, history["epoch"].max() + 0.5), yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def by_digit(figure: Figure, tables: dict[str, pd.DataFrame]) -> None:
    """Accuracy by digit with intervals, a series a table of `accuracy_by_digit`."""
    axes = figure.subplots()
    for number, (name, table) in enumerate(tables.items()):
        around = [table["accuracy"] - table["low"], table["high"] - table["accuracy"]]
        place = table["digit"] + 0.26 * number - 0.13
        axes.errorbar(place, table["accuracy"], yerr=np.maximum(around, 0), fmt="o", ms=4, label=name)
    axes.set(xticks=range(CLASSES), xlabel="digit", title="Accuracy by digit, 95 % intervals")
    axes.yaxis.set_major_formatter("{x:.3f}")
    axes.grid(axis="x", visible=False)
    axes.legend(loc="lower left")


def reliability_diagram(figure: Figure, tables: dict[str, pd.DataFrame]) -> None:
    """Accuracy by confidence in bins of at least `FEWEST` images, a series a table of `reliability`."""
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, label="perfect calibration")
    for name, table in tables.items():
        table = table[table["images"] >= FEWEST]
        axes.plot(table["confidence"], table["accuracy"], "o-", markersize=4, linewidth=1.2, label=name)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title("Reliability, MNIST test split")
    axes.legend(loc="upper left")


def averaged(figure: Figure, table: pd.DataFrame, column: str, title: str) -> None:
    """Accuracy or log loss by the number of networks, a table of `averaging`."""
    axes = figure.subplots()
    if column == "accuracy":
        axes.fill_between(
            table["networks"], table["lowest"], table["highest"], color=SERIES[0], alpha=0.15, linewidth=0
        )
    axes.plot(table["networks"], table[column], "o-", markersize=4)
    axes.set(title=title, xlabel="networks averaged")
    axes.yaxis.set_major_formatter("{x:.4f}")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))


def reading_of(figure: Figure, image: np.ndarray, parts: np.ndarray) -> None:
    """A digit, and beside its rows the class probabilities of `read_in_part`, `(3, rows, 10)`."""
    margin = (len(image) - parts.shape[1]) // 2
    titles = ("from the top", "from the bottom", "together")

    # Fixed places, because finding the best ones takes longer than the drawing.
    figure.set_layout_engine("none")
    places = {"left": 0.1, "right": 0.995, "bottom": 0.1, "top": 0.89, "wspace": 0.08}
    grid = figure.subplots(1, 4, width_ratios=[1.1, 1, 1, 1], gridspec_kw=places)
    grid[0].imshow(image[margin : len(image) - margin], cmap="gray_r", aspect="auto")
    grid[0].set(xticks=[], yticks=[0, 10, 20])
    for axes, probabilities, title in zip(grid[1:], parts, titles, strict=True):
        axes.imshow(probabilities, cmap=PROBABILITY, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set(xticks=range(CLASSES), yticks=[])
        axes.set_title(title, fontsize=8.5, fontweight="normal")
        axes.tick_params(length=0, labelsize=7)
    for axes in grid:
        axes.grid(visible=False)
    grid[0].set_ylabel("row")


def article_curve(figure: Figure, table: pd.DataFrame) -> None:
    """Accuracy by step of the article's system, run again, and the article's own points."""
    axes = figure.subplots()
    axes.plot(table["step"], table["accuracy_batch"], linewidth=1, label="run again: first 1,000 images")
    axes.plot(table["step"], table["accuracy"], label="run again: all 10,000")
    axes.plot(table["step"], table["article_accuracy_batch"], "x", color=INK, label="printed: 1,000 images")
    # Spreads out what lies close to 1.
    axes.set_yscale("logit", nonpositive="clip")
    axes.set_yticks(ARTICLE_TICKS, [f"{tick:g}" for tick in ARTICLE_TICKS])
    axes.set_yticks([], minor=True)
    axes.set(xlabel="step", title="Accuracy of the article's system", ylim=(0.08, 0.998))
    axes.legend(loc="lower right")


def confusion_matrices(figure: Figure, matrices: dict[str, np.ndarray]) -> None:
    """Confusion matrices as counts, correct answers greyed out."""
    for axes, (name, counts) in zip(figure.subplots(1, len(matrices)), matrices.items(), strict=True):
        mistakes = counts - np.diag(np.diag(counts))
        axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=2 * max(mistakes.max(), 4))
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = MUTED if row == column else INK
                axes.text(column, row, count, ha="center", va="center", fontsize=7.5, color=color)
        axes.set(xticks=range(CLASSES), yticks=range(CLASSES), xlabel="predicted", ylabel="label")
        axes.set_title(f"{name}: {mistakes.sum():,} mistakes of {counts.sum():,}")
        axes.grid(visible=False)


def mistakes(figure: Figure, digits: list[dict], images: np.ndarray, total: int) -> None:
    """The digits that were misread, the surest mistakes first; framed if every network misreads it.

    Args:
        digits: `label`, `predicted` and `by_all` of each.
        images: `(n, 28, 28)`, in the same order.
        total: number of all misread digits.
    """
    shown = len(digits[:MOST_MISTAKES])
    step, rows = 36, max(1, -(-shown // MISTAKE_COLUMNS))
    sheet = np.zeros((rows * step, MISTAKE_COLUMNS * step), np.uint8)

    axes = figure.subplots()
    axes.axis("off")
    for number, (digit, image) in enumerate(zip(digits[:shown], images, strict=False)):
        top, left = step * (number // MISTAKE_COLUMNS) + step - 28, step * (number % MISTAKE_COLUMNS)
        sheet[top : top + 28, left : left + 28] = image
        text = f"{digit['label']} read as {digit['predicted']}"
        axes.text(left + 14, top - 2, text, fontsize=8, ha="center")
        if digit["by_all"]:
            axes.add_patch(Rectangle((left, top), 27, 27, fill=False, edgecolor=SERIES[1], clip_on=False))
    axes.imshow(sheet, cmap="gray_r", interpolation="nearest")
    which = f"The {shown} surest of " if shown < total else ""
    title = f"{which}{total:,} misread digits of the MNIST test split, the surest first"
    axes.set_title(f"{title}; framed: misread by every network")
