"""What a run is worth, in a few lines for the terminal."""

from pathlib import Path


def check_in_words(check: dict, on_all: float) -> str:
    """What `metrics/check.json` says, in a sentence.

    Args:
        check: its content.
        on_all: accuracy on the whole MNIST test split; contaminated if the check has fewer images.
    """
    figure = (
        f"{check['accuracy']:.4f} on {check['images']:,} MNIST test images "
        f"(95 % interval {check['low']:.4f} to {check['high']:.4f})"
    )
    if check["images"] == 10_000:
        return f"accuracy {figure}; clean: no network was trained on any of them"
    return (
        f"accuracy {figure} that no network was trained on. On all 10,000 it is {on_all:.4f}, but that is "
        "contaminated: the others were trained on (prepare.hold_out_mnist_test is false)"
    )


def origin_in_words(source: dict) -> str:
    """Where the digits come from, by the content of `data/raw/source.json`."""
    if source["source"] == "mnist-60k":
        return "MNIST's own split: 60,000 training images, and its test split as test.csv"
    if source["source"] != "mnist":
        return f"Kaggle's own files ({source['competition']})"
    return f"MNIST in the competition's place (shuffled with seed {source['seed']})"


def summary(source: dict, metrics: dict[str, dict], on_all: float, submission: Path) -> str:
    """The lines that close a run.

    Args:
        source: content of `data/raw/source.json`.
        metrics: content of the files of `metrics/`, by name.
        on_all: see `check_in_words`.
        submission: path of the file to submit.
    """
    submit = "make submit"
    if source["source"].startswith("mnist"):
        submit = "not this one: give Kaggle credentials, set download.source: kaggle in params.yaml, then: "
        submit += "make submit"
    oof, score = metrics["oof"], metrics["ensemble"]
    folds = (figures["accuracy"] for name, figures in metrics.items() if name.startswith("folds/"))
    gain = score["accuracy"] - oof["accuracy"]
    why = (
        f"each fold alone, and {gain:+.4f} for averaging them"
        if abs(gain) > 1e-9
        else "averaging should add to it"
    )
    lines = {
        "data": origin_in_words(source),
        "folds": ", ".join(f"{accuracy:.4f}" for accuracy in folds),
        "out of fold": f"{oof['accuracy']:.4f} on {oof['images']:,} images, each fold alone",
        "MNIST test": check_in_words(metrics["check"], on_all),
        "public score": f"{score['accuracy']:.4f} expected, {score['low']:.4f} to {score['high']:.4f}; {why}",
        "submission": submission,
        "submit it": submit,
    }
    return "\n".join(f"{name:15} {text}" for name, text in lines.items())
