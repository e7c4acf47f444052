"""Compute the metrics of each fold and of all together, out of fold: metrics/folds, metrics/oof.json."""

import shutil

import numpy as np

from pipeline.files import load_arrays, load_csv, write_json
from pipeline.metrics import evaluate
from pipeline.paths import EPOCHS_TABLE, METRICS, OOF
from pipeline.stages import run_stage


def main():
    probabilities, labels, folds = load_arrays(OOF, "train", "probabilities", "labels", "folds")
    history = load_csv(EPOCHS_TABLE, "train")
    epochs = int(history["epoch"].max())
    shutil.rmtree(METRICS / "folds", ignore_errors=True)
    parts = {f"folds/fold_{fold}": folds == fold for fold in history["fold"].unique()} | {"oof": folds >= 0}
    for name, rows in parts.items():
        seconds = history["seconds"][history["fold"].isin(folds[rows])].sum()
        figures = evaluate(probabilities[rows], labels[rows], epochs=epochs, seconds=round(float(seconds), 1))
        write_json(METRICS / f"{name}.json", figures)
    others = [f"{name} {figures[name]:.4f}" for name in figures if name not in ("low", "high", "images")]
    print(f"evaluate: out of fold, {np.sum(rows):,} images: {', '.join(others[:-2])}")


if __name__ == "__main__":
    run_stage(main)
