"""The pipeline itself: how fast its workers train, the input side, prediction.

    python -m benchmarks.pipeline_speed

prints lines for the results of the package's benchmarks. It runs the pipeline's own functions on random
pixels, because the time does not depend on what the images show.
"""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np

from pipeline.folds import TrainingData
from pipeline.machine import available_cores, best_precision
from pipeline.params import Params, load_params
from pipeline.training.engines import WORKER_ENVIRONMENT
from pipeline.training.members import Member, members

ROWS = 16000
TEST_IMAGES = 28000


def _params() -> Params:
    params = load_params()
    if params.train.precision == "auto":
        params = params.with_values({"train.precision": best_precision()})
    return params


def _random_images(rows):
    return np.random.default_rng(0).integers(256, size=(rows, 28, 28), dtype=np.uint8)


class Speed(NamedTuple):
    """Training speed of an architecture: batch size, images per second, share of time spent on its input."""

    batch: int
    images_per_second: float
    input_share: float


def training_speeds() -> dict[str, Speed]:
    """Train each architecture on random images as a worker does."""
    from pipeline.training.state import State
    from pipeline.training.trainer import train_epoch

    params, rows = _params(), np.arange(ROWS)
    data = TrainingData(_random_images(ROWS), rows % 10, rows // 10 % params.prepare.folds)
    # The first epoch compiles, so the second one counts. Neither may be the last, which is not augmented.
    params = params.model_copy(update={"train": params.train.model_copy(update={"epochs": 3})})
    speeds = {}
    for architecture in ("rows", "grid_rows"):
        state = State()
        for _ in range(2):
            state = train_epoch(params, data, Member(0, architecture, params.seed), state)
        figures = state.history[-1]
        speeds[architecture] = Speed(
            params.train.batch_size,
            figures["images"] / figures["seconds"],
            figures["input_seconds"] / figures["seconds"],
        )
    return speeds


def prediction_seconds() -> tuple[float, int, int]:
    """Seconds to predict the competition's test images, their number and that of networks."""
    from pipeline.architectures import average, build_network
    from pipeline.prediction import predict, use_one_thread_per_operation

    use_one_thread_per_operation()
    params = _params()
    networks = [
        build_network(member.architecture, params.model, params.train.precision) for member in members(params)
    ]
    for number, network in enumerate(networks):
        network.name = f"network_{number}"
    ensemble = average(networks, "ensemble", params.model.test_shift)
    images = _random_images(TEST_IMAGES)
    # As the stage does, compilation included.
    started = time.perf_counter()
    predict(ensemble, images)
    return time.perf_counter() - started, TEST_IMAGES, len(members(params))


def main():
    os.environ.update(WORKER_ENVIRONMENT)
    context, cores = multiprocessing.get_context("spawn"), len(available_cores())
    with ProcessPoolExecutor(cores, context) as pool:
        workers = [future.result() for future in [pool.submit(training_speeds) for _ in range(cores)]]
    print("| architecture | batch | images/s of a core | images/s | input side |")
    print("|---|---|---|---|---|")
    for architecture in workers[0]:
        speeds = [worker[architecture].images_per_second for worker in workers]
        share = max(worker[architecture].input_share for worker in workers)
        print(
            f"| {architecture} | {workers[0][architecture].batch} | {sum(speeds) / cores:,.0f} | "
            f"{sum(speeds):,.0f} | {share:.1%} of the time |"
        )
    for name in WORKER_ENVIRONMENT:
        if "THREADS" in name:
            del os.environ[name]
    with ProcessPoolExecutor(1, context) as pool:
        seconds, images, networks = pool.submit(prediction_seconds).result()
    print(f"\nPrediction: {images:,} images through an ensemble of {networks} networks in {seconds:.1f} s.")


if __name__ == "__main__":
    main()
