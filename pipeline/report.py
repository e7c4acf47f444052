"""The report: what a run is worth, as text for the terminal and as one self-contained page."""

import base64
import html
import io

import matplotlib.pyplot as plt

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Digit Recognizer: report</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .2rem .9rem .2rem 0; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
tr {{ border-bottom: 1px solid #ddd; }}
img {{ max-width: 100%; }}
pre {{ background: #f4f4f4; padding: 1rem; white-space: pre-wrap; }}
</style>
<h1>Digit Recognizer: report</h1>
<pre>{summary}</pre>
<h2>Folds</h2>
{folds}
<h2>Training</h2>
<img alt="Loss and validation accuracy by epoch" src="{history}">
<h2>Confusion</h2>
<img alt="Confusion matrix on the MNIST test split" src="{confusion}">
<h2>Mistakes</h2>
<img alt="MNIST test images that were misread" src="{mistakes}">
<h2>The article</h2>
<p>{article_words}</p>
<img alt="Accuracy of the article's system by step" src="{article}">
</html>
"""


def in_words(result):
    """What `metrics/check.json` says, in a sentence."""
    low, high = result["interval_95"]
    figure = (f"{result['accuracy']:.4f} on {result['images']:,} MNIST test images "
              f"(95 % interval {low:.4f} to {high:.4f})")
    if not result["contaminated"]:
        return f"accuracy {figure}; clean: no network was trained on any of them"
    return (f"accuracy {figure} that no network was trained on. On all 10,000 it is "
            f"{result['contaminated_accuracy_on_all_images']:.4f}, but that is contaminated: the "
            "others were trained on (prepare.hold_out_mnist_test is false)")


def article_in_words(article, check):
    """What the article says, what its system gives when run again, and the ensemble beside it.

    Args:
        article, check: content of `metrics/article.json` and `metrics/check.json`.
    """
    low, high = article["interval_95"]
    compared = [name for name in article if name.startswith("step_")]
    # The article's last figure that the run reached; a run of a few steps may have none to show.
    printed = (f"The article prints {article[compared[-1]]['article_accuracy_batch']:.3f} at step "
               f"{compared[-1].removeprefix('step_')}, on one batch of 1,000 MNIST test images. "
               if compared else "")
    return (f"{printed}Its system, run again for {article['step'] + 1:,} steps, is right on "
            f"{article['accuracy_batch']:.3f} of the first 1,000 test images and on "
            f"{article['accuracy']:.4f} of all {article['images']:,} (95 % interval {low:.4f} to "
            f"{high:.4f}); our ensemble on {check['accuracy']:.4f} of {check['images']:,}.")


def summary(source, folds, ensemble, check, submission):
    """The lines that close a run.

    Args:
        source: content of `data/raw/source.json`; folds, ensemble, check: of the metrics files.
        submission: path of the file to submit.
    """
    if source["source"] == "kaggle":
        origin = f"Kaggle's own files ({source['competition']})"
        submit = "make submit"
    else:
        origin = f"MNIST in the competition's place (shuffled with seed {source['seed']})"
        submit = ("not this one: give Kaggle credentials, set download.source: kaggle in params.yaml, "
                  "then: make submit")
    accuracies = ", ".join(f"{fold['accuracy']:.4f}" for fold in _by_fold(folds))
    score = ensemble["expected_public_score"]
    low, high = score["interval_95"]
    return "\n".join([
        f"data            {origin}",
        f"folds           {accuracies}",
        f"out of fold     {folds['oof_accuracy']:.4f} on {folds['oof_images']:,} images, "
        "each fold alone",
        f"MNIST test      {in_words(check)}",
        f"public score    {score['score']:.4f} expected, {low:.4f} to {high:.4f}; "
        + ("averaging should add to it" if not score["gain_images"] else
           f"each fold alone, and {score['gain_of_averaging']:+.4f} for averaging them"),
        f"submission      {submission}",
        f"submit it       {submit}",
    ])


def render_page(summary_text, folds, history, confusion_png, mistakes_png, article_words, article_png):
    """The report as one HTML page with its pictures in it.

    Args:
        history: the table of `metrics/history.csv`; confusion_png, mistakes_png, article_png: bytes.
        article_words: what `article_in_words` says.
    """
    names = ("reader", "accuracy", "loss", "images", "epochs", "seconds", "images_per_second")
    rows = [f"<tr><td>{number}</td>" + "".join(
        f"<td>{_in_table(fold[name])}</td>" for name in names) + "</tr>"
        for number, fold in enumerate(_by_fold(folds))]
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in ("fold", *names))
    return PAGE.format(
        summary=html.escape(summary_text),
        folds=f"<table><tr>{head}</tr>{''.join(rows)}</table>",
        history=_inline(_history_png(history)), confusion=_inline(confusion_png),
        mistakes=_inline(mistakes_png),
        article_words=html.escape(article_words), article=_inline(article_png))


def _in_table(value):
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if isinstance(value, float) and value < 1 else f"{value:,}"


def _by_fold(folds):
    return [folds[f"fold_{number}"] for number in range(sum(key.startswith("fold_") for key in folds))]


def _history_png(history):
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.plot(history["epoch"], history["loss"], label="training")
    left.plot(history["epoch"], history["val_loss"], label="validation")
    left.set(xlabel="epoch", ylabel="loss", yscale="log",
             title="training: smoothed labels; distorted in all epochs but the last")
    left.legend()
    for name in (column for column in history if column.startswith("val_accuracy_")):
        right.plot(history["epoch"], 1 - history[name], label=f"fold {name.rpartition('_')[2]}")
    right.set(xlabel="epoch", ylabel="validation error", yscale="log",
              title="2,000 images of each fold, all after the last epoch")
    right.legend()
    target = io.BytesIO()
    figure.savefig(target, dpi=110)
    plt.close(figure)
    return target.getvalue()


def _inline(png):
    return "data:image/png;base64," + base64.b64encode(png).decode()
