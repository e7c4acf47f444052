"""Charts of the report, drawn by Matplotlib as SVG in the page's colours or as PNG."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

# Light colours and their names in `style.css`, which also has their dark counterparts.
INK, MUTED, LINE = "#1d2530", "#5a6675", "#d5dbe3"
SERIES = ("#1666b8", "#b8500f", "#2b7a3d", "#8a3fb0", "#a8324a", "#0f7480", "#7a6412", "#4a4fc4")
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line"} | {
    color: f"series-{number}" for number, color in enumerate(SERIES)
}
STYLE = Path(__file__).with_name("report.mplstyle")
ARTICLE_TICKS = (0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
FEWEST_IMAGES = 10  # bins with fewer images are not drawn
MISTAKE_COLUMNS = 10
MOST_IN_LEGEND = 12  # more lines would not fit beside the curves


def svg(name: str, chart: Callable[..., None], *arguments, size: tuple[float, float] = (4.8, 3.2)) -> str:
    """Draw `chart(figure, *arguments)` as an SVG element; identifiers begin with `name`; inches."""
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
    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=size)
        chart(figure, *arguments)
        figure.savefig(target, **options)
    return target.getvalue()


def curves(figure: Figure, history: pd.DataFrame, titles: dict[str, str], legend: bool = False) -> None:
    """One line per member, by epoch on a logarithmic scale, for each column of `history` in `titles`."""
    grid = figure.subplots(1, len(titles), squeeze=False)[0]
    for axes, (column, title) in zip(grid, titles.items(), strict=True):
        for number, (member, epochs) in enumerate(history.groupby("member", sort=False)):
            style = ("o-", "o--", "o:")[number // len(SERIES) % 3]
            axes.plot(epochs["epoch"], epochs[column], style, lw=1.3, ms=2, label=member)
        axes.set(title=title, xlabel="epoch", xlim=(0.5, history["epoch"].max() + 0.5), yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        if legend and history["member"].nunique() <= MOST_IN_LEGEND:
            axes.legend()


def reliability_diagram(figure: Figure, rows: list[dict], part: str) -> None:
    """Accuracy by confidence, one series per row of the table of calibration."""
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, label="perfect calibration")
    for row in rows:
        bins = row["bins"][row["bins"]["images"] >= FEWEST_IMAGES]
        axes.plot(bins["confidence"], bins["accuracy"], "o-", ms=4, lw=1.2, label=row["state"])
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title(f"Reliability, {part}")
    axes.legend(loc="upper left")


def article_curve(figure: Figure, table: pd.DataFrame) -> None:
    """Accuracy of the article's system by step, and the values that the article prints."""
    axes = figure.subplots()
    axes.plot(table["step"], table["accuracy_batch"], linewidth=1, label="run again: first 1,000 images")
    axes.plot(table["step"], table["accuracy"], label="run again: all 10,000")
    axes.plot(table["step"], table["article_accuracy_batch"], "x", color=INK, label="printed: 1,000 images")
    # Spread out values close to 1.
    axes.set_yscale("logit", nonpositive="clip")
    axes.set_yticks(ARTICLE_TICKS, [f"{tick:g}" for tick in ARTICLE_TICKS])
    axes.set_yticks([], minor=True)
    axes.set(xlabel="step", title="Accuracy of the article's system", ylim=(0.08, 0.998))
    axes.legend(loc="lower right")


def mistakes(figure: Figure, digits: list[dict], title: str) -> None:
    """Misread digits, framed if every network misreads them; `digits` is a gallery of `page.py`."""
    rows = max(1, -(-len(digits) // MISTAKE_COLUMNS))
    # A fixed layout: computing one takes longer than drawing.
    figure.set_layout_engine("none")
    top = 1 - 0.5 / figure.get_figheight()  # half an inch for the titles
    places = {"left": 0.01, "right": 0.99, "bottom": 0.01, "top": top, "hspace": 0.35}
    grid = figure.subplots(rows, MISTAKE_COLUMNS, squeeze=False, gridspec_kw=places)
    figure.suptitle(title, fontsize=10)
    for axes in grid.flat:
        axes.axis("off")
    for axes, digit in zip(grid.flat, digits, strict=False):
        axes.imshow(digit["image"], cmap="gray_r", interpolation="nearest")
        text = f"{digit['label']} read as {digit['predicted']}{' *' if digit['disputed'] else ''}"
        axes.set_title(text, fontsize=8, fontweight="normal", loc="center")
        if digit["by_all"]:
            axes.axis("on")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, edgecolor=SERIES[1])
