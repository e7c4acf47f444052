"""The closing lines of `dvc repro`."""

from pathlib import Path

from pipeline.report.run import Run


def check_in_words(check: dict, on_all: float | None) -> str:
    """Describe the content of `metrics/check.json`, given also the accuracy on the whole clean test set."""
    text = (
        f"accuracy {check['accuracy']:.4f} on {check['images']:,} images that no network was trained on "
        f"(95 % interval {check['low']:.4f} to {check['high']:.4f})"
    )
    if on_all in (None, check["accuracy"]):
        return text
    return f"{text}. On all images: {on_all:.4f}, contaminated (prepare.hold_out_mnist_test is false)"


def origin_in_words(source: dict) -> str:
    """Describe the origin of the digits by the content of `data/raw/source.json`."""
    return {
        "kaggle": f"Kaggle's own files ({source['competition']})",
        "folder": f"files from a folder ({source['competition']})",
        "mnist": f"MNIST in the competition's place (shuffled with seed {source.get('seed')})",
        "mnist-60k": "MNIST's own split: 60,000 training images, and its test split as test.csv",
    }[source["source"]]


def summary(run: Run, submission: Path) -> str:
    """Make the lines that close a run; `submission` is the path of the file to submit."""
    submit = "make submit"
    if run.source["source"].startswith("mnist"):
        submit = "not this one: add Kaggle credentials, set download.source: kaggle, then: make submit"
    oof, score, check = (run.metrics[name] for name in ("oof", "ensemble", "check"))
    folds = [figures["accuracy"] for name, figures in run.metrics.items() if name.startswith("folds/")]
    gain = score["accuracy"] - oof["accuracy"]
    gain = f"{gain:+.4f} for averaging" if abs(gain) > 1e-9 else "averaging should add to it"
    interval = f"{score['low']:.4f} to {score['high']:.4f}"
    check = check_in_words(check, run.accuracy_on_all) if check["images"] else "none"
    lines = {
        "data": origin_in_words(run.source),
        "folds": ", ".join(f"{accuracy:.4f}" for accuracy in folds),
        "out of fold": f"{oof['accuracy']:.4f} on {oof['images']:,} images, each fold alone",
        run.competition.test_name or "clean test set": check,
        "public score": f"{score['accuracy']:.4f} expected, {interval}; {gain}",
        "submission": submission,
        "submit it": submit,
    }
    return "\n".join(f"{name:17} {text}" for name, text in lines.items())
