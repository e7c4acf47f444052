"""Train the ensemble's members, several side by side: data/checkpoints, data/oof.npz, metrics."""

import sys

import numpy as np

from pipeline.competition import CLASSES
from pipeline.files import atomic_write, load_arrays, save_arrays, write_json
from pipeline.folds import TrainingData
from pipeline.machine import best_precision
from pipeline.metrics import fold_table, history_table
from pipeline.params import load_params
from pipeline.paths import DIGITS, METRICS, OOF, TRAINING_STATE, checkpoint
from pipeline.stages import run_stage
from pipeline.training.engines import ENGINES
from pipeline.training.members import members
from pipeline.training.progress import TrainingProgress
from pipeline.training.runner import export_folds, train_members
from pipeline.training.state import StateFiles


def main():
    params = load_params()
    if params.train.precision == "auto":
        params = params.with_precision(best_precision())
    data = TrainingData(*load_arrays(DIGITS, "prepare", "images", "labels", "folds"))
    states = StateFiles(TRAINING_STATE, params, data)
    oof = np.full((len(data.labels), CLASSES), np.nan, np.float32)
    with (
        ENGINES[params.compute.engine](params.compute, len(members(params))) as (executor, workers),
        TrainingProgress(params, data, members(params), workers) as progress,
    ):
        trained = train_members(executor, workers, params, data, states, progress)
        for fold, (model, probabilities) in enumerate(export_folds(executor, params, data, trained)):
            oof[data.split(fold)[1]] = probabilities
            with atomic_write(checkpoint(fold)) as tmp:
                tmp.write_bytes(model)

    histories = {member: state.history for member, state in trained.items()}
    save_arrays(OOF, probabilities=oof, labels=data.labels, folds=data.folds)
    write_json(METRICS / "folds.json", fold_table(data, oof, histories))
    with atomic_write(METRICS / "history.csv") as tmp:
        history_table(histories).to_csv(tmp, index=False, float_format="%.6g")


if __name__ == "__main__":
    run_stage(sys.modules[__name__], main)
