"""Evaluate the ensemble on the clean test set: metrics/check.json, data/check.npz."""

import time

import numpy as np

from pipeline.competition import find_competition
from pipeline.files import load_arrays, save_arrays, write_json
from pipeline.metrics import evaluate
from pipeline.params import load_params
from pipeline.paths import CHECK, CLEAN, DIGITS, ENSEMBLE, METRICS
from pipeline.report.run import check_in_words
from pipeline.stages import run_stage


def main():
    from pipeline.prediction import load_network, predict, use_one_thread_per_operation

    competition = find_competition(load_params().download.competition)
    images, labels = load_arrays(CLEAN, "prepare", "images", "labels")
    if not len(labels):
        empty = np.empty((0, competition.classes))
        save_arrays(CHECK, probabilities=empty, each=empty[None], clean=labels > 0)
        write_json(METRICS / "check.json", {"images": 0})
        return print(f"check: {competition.slug} has no clean test set; see the out-of-fold figures instead")

    use_one_thread_per_operation()
    index, folds = load_arrays(DIGITS, "prepare", "test_index", "folds")
    clean = np.ones(len(labels), bool)
    clean[index[(index >= 0) & (folds >= 0)]] = False  # a network was trained on them
    ensemble = load_network(ENSEMBLE)
    started = time.perf_counter()
    folds = [layer for layer in ensemble.layers if layer.name.startswith("fold_")]
    each = np.stack([predict(fold, images) for fold in folds])
    probabilities = each.mean(axis=0)
    seconds = time.perf_counter() - started
    save_arrays(CHECK, probabilities=probabilities, each=each, clean=clean)
    figures = evaluate(probabilities[clean], labels[clean], seconds=round(seconds, 1))
    write_json(METRICS / "check.json", figures)
    print(f"check: {check_in_words(figures, np.mean(probabilities.argmax(axis=1) == labels))}")


if __name__ == "__main__":
    run_stage(main)
