"""The pictures of the stages `check` and `article`."""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import confusion_matrix

from pipeline.accuracy import CLASSES

MOST_MISTAKES = 60
COLUMNS = 10
ACCURACY_TICKS = (0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)


def draw_confusion(path, labels, predicted):
    """The confusion matrix as counts, right answers greyed out."""
    counts = confusion_matrix(labels, predicted, labels=range(CLASSES))
    mistakes = counts - np.diag(np.diag(counts))
    figure, axes = plt.subplots(figsize=(6, 5.6), layout="constrained")
    axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=max(mistakes.max(), 4))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axes.text(column, row, count, ha="center", va="center", fontsize=9,
                      color="0.6" if row == column else "black")
    axes.set(xticks=range(CLASSES), yticks=range(CLASSES), xlabel="predicted digit", ylabel="true digit",
             title=f"{mistakes.sum()} mistakes on {len(labels):,} MNIST test images")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_mistakes(path, images, labels, probabilities):
    """The images that were misread, the surest mistakes first."""
    predicted = np.argmax(probabilities, axis=1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]
    shown = wrong[:MOST_MISTAKES]
    rows = max(1, -(-len(shown) // COLUMNS))
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(COLUMNS, 1.35 * rows + 0.5),
                                squeeze=False, layout="constrained")
    for axes in grid.flat:
        axes.axis("off")
    for axes, number in zip(grid.flat, shown):
        axes.imshow(images[number], cmap="gray_r")
        axes.set_title(f"{labels[number]} read as {predicted[number]}\n"
                       f"{probabilities[number].max():.0%} sure", fontsize=7)
    which = f"The {len(shown)} surest of" if len(shown) < len(wrong) else "All"
    figure.suptitle(f"{which} {len(wrong)} mistakes, the surest first", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_article(path, table, printed):
    """Accuracy by step of the article's system, run again, and the article's own points.

    Args:
        table: of `metrics/article.csv`; printed: step -> the article's cost and accuracy.
    """
    printed = {step: accuracy for step, (_cost, accuracy) in printed.items()
               if step <= table["step"].max()}
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(table["step"], table["accuracy_batch"], linewidth=1, label="run again: first 1,000 test images")
    axes.plot(table["step"], table["accuracy"], label="run again: all 10,000 test images")
    axes.plot(printed.keys(), printed.values(), "kx", label="printed in the article: 1,000 test images")
    # Spreads out what lies close to 1.
    axes.set_yscale("logit", nonpositive="clip")
    axes.set_yticks(ACCURACY_TICKS, [f"{tick:g}" for tick in ACCURACY_TICKS])
    axes.set_yticks([], minor=True)
    axes.set(xlabel="step", ylabel="accuracy", ylim=(0.08, 0.998))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)
