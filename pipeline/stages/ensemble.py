"""Average the folds' networks into one model and predict test.csv: data/ensemble.keras."""

import sys
import time

import numpy as np

from pipeline.accuracy import averaging_gains, expected_public_score
from pipeline.files import load_arrays, replacing, write_json
from pipeline.params import load_params
from pipeline.stages import (
    DIGITS, ENSEMBLE, METRICS, OOF, PREDICTIONS, checkpoint, run_stage)


def main():
    # TensorFlow comes with it, and must come when its log is out of the way (see run_stage).
    from pipeline.ensemble import build_ensemble, load_network, predict, use_one_thread_an_operation
    from pipeline.training import Recipe, rounds

    use_one_thread_an_operation()
    params = load_params()
    folds = params.prepare.folds
    number = sum(map(len, rounds(Recipe.from_params(params), folds)))
    networks = [load_network(checkpoint(fold)) for fold in range(folds)]
    model = build_ensemble(networks)
    test_images, images, labels, folds_of_rows = load_arrays(
        DIGITS, "prepare", "test_images", "images", "labels", "folds")
    held_out = folds_of_rows < 0
    held_out_images, held_out_labels = images[held_out], labels[held_out]
    started = time.perf_counter()
    probabilities = predict(model, test_images)
    seconds = time.perf_counter() - started
    each = [predict(network, held_out_images) for network in networks] if held_out.any() else []
    oof, = load_arrays(OOF, "train", "probabilities")
    right = np.argmax(oof[~held_out], axis=1) == labels[~held_out]
    with replacing(ENSEMBLE) as beside:
        model.save(beside)
    with replacing(PREDICTIONS) as beside:
        np.savez_compressed(beside, probabilities=probabilities)
    write_json(METRICS / "ensemble.json", {
        "networks": number,
        "images": len(test_images),
        "seconds": round(seconds, 1),
        "expected_public_score": expected_public_score(
            int(right.sum()), len(right), len(test_images), averaging_gains(each, held_out_labels)),
    })
    print(f"ensemble: {number} networks, {len(test_images)} images in {seconds:.1f} s")


if __name__ == "__main__":
    run_stage(sys.modules[__name__], main)
