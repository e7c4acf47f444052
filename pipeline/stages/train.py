"""Train one network a fold, several side by side: data/checkpoints, data/oof.npz, metrics."""

import shutil
import statistics
import sys

import numpy as np
import pandas as pd

from pipeline.accuracy import CLASSES, score
from pipeline.files import replacing, write_json
from pipeline.params import load_params
from pipeline.progress import TrainingProgress
from pipeline.stages import DIGITS, METRICS, OOF, TRAINING_STATE, checkpoint, run_stage
from pipeline.training import (
    Digits, Recipe, available_cores, best_precision, fingerprint, train_folds)


def main():
    params = load_params()
    train, folds = params.train, params.prepare.folds
    with np.load(DIGITS) as file:
        digits = Digits(file["images"], file["labels"], file["folds"])
    recipe = Recipe(
        seed=params.seed, **params.model.model_dump(),
        **train.model_dump(exclude={"workers", "engine", "precision"}),
        precision=best_precision() if train.precision == "auto" else train.precision)
    workers = len(available_cores()) if train.workers == "auto" else train.workers
    workers = min(workers, folds)
    print(f"train: {folds} folds, {workers} at a time, on {np.sum(digits.folds >= 0):,} images "
          f"(each fold leaves out its share), {recipe.precision}", flush=True)

    state = TRAINING_STATE / fingerprint(recipe, digits)
    if TRAINING_STATE.exists():
        # What another recipe left behind would never be used again.
        for other in set(TRAINING_STATE.iterdir()) - {state}:
            shutil.rmtree(other)
    with TrainingProgress(folds, recipe.epochs) as progress:
        histories, probabilities = train_folds(
            recipe, digits, folds, workers, state, [checkpoint(fold) for fold in range(folds)],
            progress)

    oof = np.full((len(digits.labels), CLASSES), np.nan, np.float32)
    for fold in range(folds):
        oof[digits.split(fold)[1]] = probabilities[fold]
    with replacing(OOF) as beside:
        np.savez_compressed(beside, probabilities=oof, labels=digits.labels, folds=digits.folds)
    write_json(METRICS / "folds.json", fold_metrics(digits, histories, oof))
    with replacing(METRICS / "history.csv") as beside:
        history_table(histories).to_csv(beside, index=False, float_format="%.6g")
    shutil.rmtree(TRAINING_STATE)


def fold_metrics(digits, histories, oof):
    """`metrics/folds.json`: each fold's figures, and those of all folds together."""
    folds = {}
    for fold, history in enumerate(histories):
        rows = digits.split(fold)[1]
        accuracy, loss = score(oof[rows], digits.labels[rows])
        seconds = sum(epoch["seconds"] for epoch in history)
        folds[f"fold_{fold}"] = {
            "accuracy": accuracy, "loss": loss, "images": len(rows), "epochs": len(history),
            "seconds": round(seconds, 1),
            "images_per_second": round(sum(epoch["images"] for epoch in history) / seconds),
        }
    rows = np.flatnonzero(digits.folds >= 0)
    oof_accuracy, oof_loss = score(oof[rows], digits.labels[rows])
    accuracies = [fold["accuracy"] for fold in folds.values()]
    return {
        "oof_accuracy": oof_accuracy, "oof_loss": oof_loss, "oof_images": len(rows),
        "mean_accuracy": statistics.mean(accuracies),
        "std_accuracy": statistics.stdev(accuracies),
        **folds,
    }


def history_table(histories):
    """`metrics/history.csv`: a row an epoch; means over the folds, then each fold's accuracy."""
    table = {"epoch": range(1, len(histories[0]) + 1)}
    for name in ("loss", "val_loss", "accuracy", "val_accuracy"):
        table[name] = [statistics.mean(epoch[name] for epoch in epochs)
                       for epochs in zip(*histories)]
    for fold, history in enumerate(histories):
        table[f"val_accuracy_{fold}"] = [epoch["val_accuracy"] for epoch in history]
    return pd.DataFrame(table)


if __name__ == "__main__":
    run_stage(sys.modules[__name__], main)
