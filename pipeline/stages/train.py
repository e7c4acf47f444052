"""Train the folds' networks, several side by side: data/checkpoints, data/oof.npz, metrics."""

import shutil
import statistics
import sys

import numpy as np
import pandas as pd

from pipeline.accuracy import CLASSES, score
from pipeline.files import load_arrays, replacing, write_json
from pipeline.params import load_params
from pipeline.progress import TrainingProgress
from pipeline.stages import DIGITS, METRICS, OOF, TRAINING_STATE, checkpoint, run_stage
from pipeline.training import Digits, Recipe, available_cores, fingerprint, rounds
from pipeline.workers import train_folds


def main():
    params = load_params()
    train, folds = params.train, params.prepare.folds
    images, labels, folds_of_rows, test_images, test_held_out = load_arrays(
        DIGITS, "prepare", "images", "labels", "folds", "test_images", "test_held_out")
    digits = Digits(images, labels, folds_of_rows, test_images[~test_held_out])
    recipe = Recipe.from_params(params)
    workers = len(available_cores()) if train.workers == "auto" else train.workers
    to_train = rounds(recipe, folds)
    workers = min(workers, len(to_train[0]))
    print(f"train: {len(to_train[0])} networks in {folds} folds, {workers} at a time, "
          f"on {np.sum(digits.folds >= 0):,} images (each fold leaves out its share), "
          f"{recipe.precision}"
          + (f"; then as many on {len(digits.unlabelled):,} pseudo-labelled images of test.csv too"
             if recipe.pseudo_labels else ""), flush=True)

    state = TRAINING_STATE / fingerprint(recipe, digits)
    if TRAINING_STATE.exists():
        # What another recipe left behind would never be used again.
        for other in set(TRAINING_STATE.iterdir()) - {state}:
            shutil.rmtree(other)
    names = {network: f"fold {network.fold}, {network.reader}{', student' if network.student else ''}"
             for networks in to_train for network in networks}
    with TrainingProgress(names, recipe.epochs) as progress:
        histories, probabilities = train_folds(
            recipe, digits, folds, workers, state, [checkpoint(fold) for fold in range(folds)],
            progress)

    oof = np.full((len(digits.labels), CLASSES), np.nan, np.float32)
    for fold in range(folds):
        oof[digits.split(fold)[1]] = probabilities[fold]
    with replacing(OOF) as beside:
        np.savez_compressed(beside, probabilities=oof, labels=digits.labels, folds=digits.folds,
                            test_trained_on=~test_held_out & recipe.pseudo_labels)
    write_json(METRICS / "folds.json", fold_metrics(digits, recipe, histories, oof))
    with replacing(METRICS / "history.csv") as beside:
        history_table(histories, to_train[-1]).to_csv(beside, index=False, float_format="%.6g")
    shutil.rmtree(TRAINING_STATE)


def fold_metrics(digits, recipe, histories, oof):
    """`metrics/folds.json`: each fold's figures, and those of all folds together."""
    folds = {}
    for fold in range(digits.folds.max() + 1):
        rows = digits.split(fold)[1]
        accuracy, loss = score(oof[rows], digits.labels[rows])
        epochs = [epoch for network, history in histories.items() if network.fold == fold
                  for epoch in history]
        seconds = sum(epoch["seconds"] for epoch in epochs)
        folds[f"fold_{fold}"] = {
            "reader": ", ".join(recipe.readers(fold)),
            "accuracy": accuracy, "loss": loss, "images": len(rows), "epochs": recipe.epochs,
            "seconds": round(seconds, 1),
            "images_per_second": round(sum(epoch["images"] for epoch in epochs) / seconds),
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


def history_table(histories, networks):
    """`metrics/history.csv`: a row an epoch; means over the networks, then over each fold's."""
    def means(name, networks):
        return [statistics.mean(epoch[name] for epoch in epochs)
                for epochs in zip(*(histories[network] for network in networks))]

    table = {"epoch": range(1, len(histories[networks[0]]) + 1)}
    for name in ("loss", "val_loss", "accuracy", "val_accuracy"):
        table[name] = means(name, networks)
    for fold in range(networks[-1].fold + 1):
        table[f"val_accuracy_{fold}"] = means("val_accuracy", [n for n in networks if n.fold == fold])
    return pd.DataFrame(table)


if __name__ == "__main__":
    run_stage(sys.modules[__name__], main)
