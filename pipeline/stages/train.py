"""Train the ensemble's members, several at a time: data/checkpoints, data/oof.npz, metrics/history.csv."""

import numpy as np

from pipeline.files import load_arrays, save_arrays, sha256, write_bytes, write_csv
from pipeline.folds import TrainingData
from pipeline.machine import best_precision
from pipeline.params import load_params
from pipeline.paths import DIGITS, EPOCHS_TABLE, OOF, TRAINING_STATE, checkpoint
from pipeline.stages import run_stage


def main():
    from pipeline.training.engines import ENGINES
    from pipeline.training.members import members
    from pipeline.training.progress import TrainingProgress, history_table
    from pipeline.training.runner import export_folds, train_members
    from pipeline.training.state import StateFiles

    params = load_params()
    if params.train.precision == "auto":
        params = params.with_values({"train.precision": best_precision()})
    *arrays, classes = load_arrays(DIGITS, "prepare", "images", "labels", "folds", "classes")
    data = TrainingData(*arrays, int(classes))
    all_members, states = members(params), StateFiles(TRAINING_STATE, params, data)
    oof = np.full((len(data.labels), data.classes), np.nan, np.float32)
    with ENGINES[params.compute.engine](params.compute, len(all_members)) as (executor, workers):
        progress = TrainingProgress(params, data, all_members, workers, EPOCHS_TABLE)
        trained = train_members(executor, workers, params, data, states, progress)
        for fold, (model, probabilities) in enumerate(export_folds(executor, params, data, trained)):
            oof[data.split(fold)[1]] = probabilities
            write_bytes(checkpoint(fold), model)

    write_csv(EPOCHS_TABLE, history_table({member: state.history for member, state in trained.items()}))
    save_arrays(OOF, probabilities=oof, labels=data.labels, folds=data.folds)
    return {"oof": sha256(OOF)}  # tells the report whether this is the training that it shows


if __name__ == "__main__":
    run_stage(main)
