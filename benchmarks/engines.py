"""The engines side by side: what a training costs on each, for docs/log/scaling.md.

    python -m benchmarks.engines

prints a row for each number of members, number of workers and engine, in about eight minutes. Images are
random, because the time does not depend on what they show.
"""

import argparse
import contextlib
import io
import pickle
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.folds import TrainingData
from pipeline.machine import best_precision
from pipeline.params import load_params
from pipeline.training.engines import ENGINES
from pipeline.training.members import members
from pipeline.training.progress import TrainingProgress
from pipeline.training.runner import train_members
from pipeline.training.state import State, StateFiles
from pipeline.training.trainer import train_epoch

ROWS, FOLDS, EPOCHS = 36_000, 2, 2


def measure(executor, workers, params, data):
    """Train all members: seconds on the clock and of the driver's processor, and a state's size in bytes."""
    everyone = members(params)
    # Each worker compiles before the clock starts.
    for job in [executor.submit(train_epoch, params, data, everyone[0], State()) for _ in range(2 * workers)]:
        job.result()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        files, table = StateFiles(Path(folder, "states"), params, data), Path(folder, "history.csv")
        wall, processor = time.perf_counter(), time.process_time()
        progress = TrainingProgress(params, data, everyone, workers, table)
        states = train_members(executor, workers, params, data, files, progress)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return wall, processor, len(pickle.dumps(states[everyone[0]]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    rows = np.arange(ROWS)
    images = np.random.default_rng(0).integers(256, size=(ROWS, 28, 28), dtype=np.uint8)
    data = TrainingData(images, rows % 10, rows // 10 % FOLDS)
    print("| workers | members | engine | seconds | of local | driver's processor, s/epoch | state, MB |")
    print("|---|---|---|---|---|---|---|")
    for workers in arguments.workers:
        local = {}
        for engine in ENGINES:
            values = {"compute.engine": engine, "compute.workers": workers, "train.epochs": EPOCHS}
            values |= {"prepare.folds": FOLDS, "model.architecture": "rows"}
            params = load_params().with_values({**values, "train.precision": best_precision()})
            with ENGINES[engine](params.compute, workers) as (executor, _):
                for seeds in arguments.seeds:
                    of_seeds = params.with_values({"train.seeds": seeds})
                    wall, processor, size = measure(executor, workers, of_seeds, data)
                    efficiency = local.setdefault(seeds, wall) / wall
                    count = FOLDS * seeds
                    print(
                        f"| {workers} | {count} | `{engine}` | {wall:.1f} | {efficiency:.0%} "
                        f"| {processor / count / EPOCHS:.3f} | {size / 1e6:.1f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
