"""Average the folds' models into one and predict test.csv: data/ensemble.keras, data/predictions.npz."""

import shutil
import time

import numpy as np

from pipeline.competition import find_competition
from pipeline.files import load_arrays, save_arrays, save_network, write_json
from pipeline.metrics import averaging_gains, expected_public_score
from pipeline.params import load_params
from pipeline.paths import DIGITS, ENSEMBLE, METRICS, OOF, PREDICTIONS, TRAINING_STATE, checkpoint
from pipeline.stages import run_stage


def main():
    from pipeline.architectures import average
    from pipeline.prediction import load_network, predict, use_one_thread_per_operation

    params = load_params()
    competition = find_competition(params.download.competition)
    test_images, images, labels, folds = load_arrays(
        DIGITS, "prepare", "test_images", "images", "labels", "folds"
    )
    (oof,) = load_arrays(OOF, "train", "probabilities")
    use_one_thread_per_operation()
    models = [load_network(checkpoint(fold)) for fold in range(params.prepare.folds)]
    ensemble = average(models, "ensemble")
    started = time.perf_counter()
    probabilities = predict(ensemble, test_images)
    seconds = time.perf_counter() - started

    held_out = folds < 0
    each = [predict(model, images[held_out]) for model in models] if held_out.any() else []
    correct = np.argmax(oof[~held_out], axis=1) == labels[~held_out]
    save_network(ensemble, ENSEMBLE)
    save_arrays(PREDICTIONS, probabilities=probabilities)
    rows = len(test_images)
    expected = expected_public_score(
        int(correct.sum()),
        len(correct),
        max(1, round(rows * competition.public_share)),
        averaging_gains(each, labels[held_out]),
    )
    write_json(METRICS / "ensemble.json", {**expected, "images": rows, "seconds": round(seconds, 1)})
    # Not in `train`, which would start over if it were killed before DVC records its outputs.
    shutil.rmtree(TRAINING_STATE, ignore_errors=True)
    print(f"ensemble: {len(models)} folds, {rows:,} images in {seconds:.1f} s")


if __name__ == "__main__":
    run_stage(main)
