"""Train the ensemble's members, several side by side: data/checkpoints, data/oof.*, metrics."""

import shutil

import numpy as np

from pipeline.competition import CLASSES
from pipeline.files import load_arrays, save_arrays, write_bytes, write_csv, write_json
from pipeline.folds import TrainingData
from pipeline.machine import best_precision
from pipeline.metrics import fold_figures, history_table, oof_table
from pipeline.params import load_params
from pipeline.paths import DIGITS, METRICS, OOF, OOF_TABLE, TENSORBOARD, TRAINING_STATE, checkpoint
from pipeline.stages import run_stage
from pipeline.training.engines import ENGINES
from pipeline.training.logs import EpochLog
from pipeline.training.members import members
from pipeline.training.progress import TrainingProgress
from pipeline.training.runner import export_folds, train_members
from pipeline.training.state import StateFiles


def main():
    params = load_params()
    if params.train.precision == "auto":
        params = params.with_values({"train.precision": best_precision()})
    data = TrainingData(*load_arrays(DIGITS, "prepare", "images", "labels", "folds"))
    states = StateFiles(TRAINING_STATE, params, data)
    oof = np.full((len(data.labels), CLASSES), np.nan, np.float32)
    log = EpochLog(METRICS / "history.csv", TENSORBOARD if params.compute.tensorboard else None)
    with (
        ENGINES[params.compute.engine](params.compute, len(members(params))) as (executor, workers),
        TrainingProgress(params, data, members(params), workers, log) as progress,
    ):
        trained = train_members(executor, workers, params, data, states, progress)
        for fold, (model, probabilities) in enumerate(export_folds(executor, params, data, trained)):
            oof[data.split(fold)[1]] = probabilities
            write_bytes(checkpoint(fold), model)

    history = history_table({member: state.history for member, state in trained.items()})
    write_csv(METRICS / "history.csv", history)
    save_arrays(OOF, probabilities=oof, labels=data.labels, folds=data.folds)
    write_csv(OOF_TABLE, oof_table(data, oof))
    shutil.rmtree(METRICS / "folds", ignore_errors=True)
    for name, figures in fold_figures(data, oof, history).items():
        write_json(METRICS / f"{name}.json", figures)


if __name__ == "__main__":
    run_stage(main)
