"""Search for better hyperparameters: a table of trials in data/sweep/trials.md; see `training/sweep.py`."""

from pipeline.files import PipelineError, load_arrays, write_bytes
from pipeline.folds import TrainingData
from pipeline.machine import best_precision
from pipeline.params import load_params
from pipeline.paths import DIGITS, SWEEP
from pipeline.stages import run_stage


def main():
    from pipeline.training.engines import ENGINES

    try:
        from pipeline.training.sweep import sweep, table
    except ImportError:
        raise PipelineError("the sweep needs Optuna: make sweep installs it") from None

    params = load_params()
    if params.train.precision == "auto":
        params = params.with_values({"train.precision": best_precision()})
    *arrays, classes = load_arrays(DIGITS, "prepare", "images", "labels", "folds", "classes")
    with ENGINES[params.compute.engine](params.compute, 1024) as (executor, workers):
        study = sweep(executor, workers, params, TrainingData(*arrays, int(classes)), SWEEP)
    write_bytes(SWEEP / "trials.md", table(study).encode())
    print(table(study), end="")


if __name__ == "__main__":
    run_stage(main)
