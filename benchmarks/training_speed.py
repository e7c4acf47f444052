"""Training speed of this project's layer beside Keras, PyTorch and TensorFlow 1: `make benchmark`.

Prints a table a case and writes them to results-ISA.md beside this file; README.md says how to read it.
"""

import argparse
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks import programs
from benchmarks.pipeline_speed import prediction_seconds, training_speeds
from benchmarks.programs import CLASSES, SIZE, Shape
from pipeline.machine import available_cores, best_precision
from pipeline.params import load_params
from pipeline.training.engines import WORKER_ENVIRONMENT

BATCHES = (128, 256, 512, 1000)
CORES = available_cores()
# Batches that are fed in turn, and steps before the clock starts.
FEED = 4
# Speeds are those of the best of some such intervals: other users of the machine slow the others down.
INTERVAL = 1.0  # seconds
INTERVALS = 5
# After the search, which takes an interval a setting, a program's best one is measured again, so often.
ROUNDS = 2
# No process may keep the others waiting for longer, in seconds.
PATIENCE = 600
LIMIT, PEAK = "limit", "peak"


@dataclass(frozen=True)
class Program:
    """A row of a table: `build(shape)` is from programs.py; the ratios are between families."""

    name: str
    build: Callable
    precision: str = "float32"
    family: str = ""
    batches: tuple = BATCHES


@dataclass(frozen=True)
class Setting:
    """How a program is run."""

    batch: int
    processes: int

    def __str__(self):
        return f"{self.batch} | {self.processes}" + (" (all cores)" if self.processes == 1 else "")


def cases():
    """Title, shape and programs of each case."""
    # Not above: the processes that measure PyTorch read this file too, and must not load TensorFlow.
    from pipeline.networks import MARGIN

    model = load_params().model
    # Where the processor has no bfloat16 products, libraries emulate them, many times slower.
    precisions = sorted({best_precision(), "float32"})
    shapes = {
        "a": ("one layer of 128, middle readout", Shape(1, 128, "middle")),
        "b": ("two layers of 128, mean over the steps", Shape(2, 128, "mean")),
        "c": (
            "the network `rows` of params.yaml",
            Shape(**model.model_dump(include=set(Shape.__dataclass_fields__)), margin=MARGIN),
        ),
    }
    found = {
        LIMIT: (
            "matrix products",
            None,
            [
                Program(f"{family}, {dtype}", partial(build, dtype=dtype), dtype, batches=(programs.ROWS,))
                for family, build in (
                    ("TensorFlow", programs.product_tensorflow),
                    ("PyTorch", programs.product_pytorch),
                )
                for dtype in precisions
            ],
        ),
        PEAK: (
            "arithmetic peak",
            None,
            [
                Program(
                    f"peak, {dtype}", partial(programs.peak, dtype=dtype), dtype, batches=(programs.ROWS,)
                )
                for dtype in precisions
            ],
        ),
    }
    for case, (title, shape) in shapes.items():
        rows = [
            Program(
                f"this layer, {precision}", partial(programs.bilstm, precision=precision), precision, "ours"
            )
            for precision in precisions
        ]
        rows.append(Program("Keras, stock", programs.keras_stock, family="keras"))
        if case != "c":
            rows.append(Program("Keras, unrolled", partial(programs.keras_stock, unroll=True)))
        if case == "a":
            # It takes up to a minute to compile, for every batch size anew.
            rows.append(
                Program(
                    "Keras, unrolled, jit_compile",
                    partial(programs.keras_stock, unroll=True, jit_compile=True),
                    batches=(128, 512),
                )
            )
            rows.append(Program("TensorFlow 1, static graph", programs.tensorflow1))
        for name, pruned in (("nn.LSTM", False), ("two LSTMs, 15 and 14 steps", True)):
            if pruned and case != "a":
                continue
            for precision in precisions:
                build = partial(programs.pytorch, bfloat16=precision == "bfloat16", pruned=pruned)
                rows.append(Program(f"PyTorch, {name}, {precision}", build, precision, "pytorch"))
        found[case] = (title, shape, rows)
    return found


def set_environment(build, processes):
    """The variables of the processes that will be started: the same for every library."""
    os.environ |= WORKER_ENVIRONMENT | {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    if processes == 1:
        for name in WORKER_ENVIRONMENT:
            if "THREADS" in name:
                del os.environ[name]
    # BasicLSTMCell is in Keras 2 only.
    os.environ["TF_USE_LEGACY_KERAS"] = str(int(build is programs.tensorflow1))


def start_process(cores, barrier):
    """Runs first in a process: pins it to a core, if one is given.

    Left to itself, the scheduler of some virtual machines runs two processes on one core.
    """
    global _barrier
    _barrier = barrier
    # TensorFlow's log about itself; errors come as exceptions.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get()})


def together(processes, build, function, *arguments):
    """Call `function(*arguments)` in fresh processes, one a core or one on all; their results."""
    set_environment(build, processes)
    context = multiprocessing.get_context("spawn")
    cores = None
    if processes > 1:
        cores = context.SimpleQueue()
        for core in CORES:
            cores.put(core)
    initial = cores, context.Barrier(processes, timeout=PATIENCE)
    with ProcessPoolExecutor(processes, context, start_process, initial) as pool:
        return [future.result() for future in [pool.submit(function, *arguments) for _ in range(processes)]]


def measure(build, shape, batches, intervals):
    """In a process of its own: images/s for each batch size, while the other processes do the same."""
    random = np.random.default_rng(0)
    speeds = []
    for batch in batches:
        train = build(shape)
        # Mostly black, as digits are; several batches, so that they are not learnt by heart at once.
        drawn = random.random((FEED, batch, SIZE, SIZE)) < 0.2
        images = (drawn * random.integers(256, size=drawn.shape)).astype("float32")
        labels = random.integers(CLASSES, size=(FEED, batch), dtype="int32")
        train(images, labels)
        _barrier.wait()
        speeds.append(max(images_per_second(train, images, labels) for _ in range(intervals)))
    return speeds


def images_per_second(train, images, labels):
    """Images/s in an interval."""
    trained, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < INTERVAL:
        train(images, labels)
        trained += labels.size
    return trained / elapsed


def run(program, shape, processes, batches, intervals):
    """Images/s of the whole machine for each setting; a program that fails is reported and left out."""
    try:
        speeds = together(processes, program.build, measure, program.build, shape, batches, intervals)
    except Exception as error:
        print(f"{program.name}, {processes} process(es): failed: {error!r}", file=sys.stderr)
        return {}
    return {Setting(batch, processes): sum(each) for batch, *each in zip(batches, *speeds, strict=True)}


def is_compared(program):
    """Whether a ratio can depend on it: Keras stock, and this layer and PyTorch in the best precision."""
    return program.family == "keras" or (program.family != "" and program.precision == best_precision())


def compare(selected, quick):
    """Each program's best setting and its images/s: search among all settings, then more of the best one."""
    rows = [(case, shape, program) for case, (_, shape, listed) in selected.items() for program in listed]
    found = {}
    for case, shape, program in rows:
        settings = {}
        for processes in sorted({1, len(CORES)}):
            batches = program.batches[:1] if quick else program.batches
            settings |= run(program, shape, processes, batches, 1)
        found[case, program] = settings
        tell(case, program, settings)
    if not quick:
        chosen = {key: max(settings, key=settings.get) for key, settings in found.items() if settings}
        # Round by round, so that a slow minute of the machine hits everybody.
        for _ in range(ROUNDS):
            for case, shape, program in rows:
                if setting := chosen.get((case, program)):
                    again = run(program, shape, setting.processes, (setting.batch,), INTERVALS)
                    tell(case, program, again)
                    for setting, speed in again.items():
                        found[case, program][setting] = max(speed, found[case, program][setting])
    return {
        key: max(settings.items(), key=lambda item: item[1]) for key, settings in found.items() if settings
    }


def tell(case, program, settings):
    speeds = ", ".join(f"{s.batch}/{s.processes}: {speed:,.0f}" for s, speed in settings.items())
    print(f"[{case}] {program.name}: {speeds}", file=sys.stderr, flush=True)


def table(case, title, shape, listed, best, limits, peaks):
    """Lines of a case's table, and of this layer's ratios to the others."""
    speeds = {program: best[case, program] for program in listed if (case, program) in best}
    top = {
        family: max(
            (speed for program, (_, speed) in speeds.items() if program.family == family),
            default=float("nan"),
        )
        for family in ("ours", "keras", "pytorch")
    }
    yield f"## ({case}) {title}: {shape.flop() / 1e6:.1f} MFLOP an image"
    yield ""
    yield "| program | images/s | batch | processes | x Keras stock | share of limit | share of peak |"
    yield "|---|---|---|---|---|---|---|"
    for program, (setting, speed) in speeds.items():
        shares = (
            speed * shape.flop() / most.get(program.precision, float("nan")) for most in (limits, peaks)
        )
        yield (
            f"| {program.name} | {speed:,.0f} | {setting} | {speed / top['keras']:.2f} | "
            + " | ".join(f"{share:.0%}" for share in shares)
            + " |"
        )
    yield ""
    yield (
        f"This layer: **{top['ours'] / top['keras']:.2f}x** Keras stock, "
        f"**{top['ours'] / top['pytorch']:.2f}x** the best PyTorch variant."
    )
    yield ""


def report(selected, best):
    """Lines of the file of results."""
    limits, peaks = (
        {
            precision: max(
                (
                    speed * 2 * programs.INNER * programs.COLUMNS
                    for (case, program), (_, speed) in best.items()
                    if case == which and program.precision == precision
                ),
                default=float("nan"),
            )
            for precision in sorted({program.precision for _, program in best})
        }
        for which in (LIMIT, PEAK)
    )
    yield "# Training speed"
    yield ""
    yield (
        f"{len(CORES)} cores, {processor()}; "
        + ", ".join(f"{package} {version(package)}" for package in ("tensorflow", "keras", "torch"))
        + "."
    )
    for name, figures in (("Matrix-product limit", limits), ("Arithmetic peak", peaks)):
        yield (
            f"{name}: "
            + ", ".join(f"{precision} {figure / 1e9:,.0f} GFLOP/s" for precision, figure in figures.items())
            + "."
        )
    yield ""
    for case, (title, shape, listed) in selected.items():
        if case not in (LIMIT, PEAK):
            yield from table(case, title, shape, listed, best, limits, peaks)


def pipeline_report():
    """Lines on the rest of the pipeline: training as its workers do it, the input side, prediction."""
    workers = together(len(CORES), None, training_speeds)
    seconds, images, networks = together(1, None, prediction_seconds)[0]
    yield "## The pipeline"
    yield ""
    yield "Networks of params.yaml as the workers train them, each process on a core of its own:"
    yield ""
    yield "| architecture | batch | images/s of a core | images/s | input side |"
    yield "|---|---|---|---|---|"
    for architecture in workers[0]:
        batch = workers[0][architecture].batch
        speeds = [worker[architecture].images_per_second for worker in workers]
        share = max(worker[architecture].input_share for worker in workers)
        yield (
            f"| {architecture} | {batch} | {sum(speeds) / len(speeds):,.0f} | {sum(speeds):,.0f} | "
            f"{share:.1%} of the time |"
        )
    yield ""
    yield f"Prediction: {images:,} images through an ensemble of {networks} networks in {seconds:.1f} s."


def processor():
    """The processor's name, as far as the system tells."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one batch size, one short round: to try it, not for figures"
    )
    parser.add_argument("--cases", default="abc", help="which cases, such as ab (default: all)")
    parser.add_argument(
        "--short", action="store_true", help="only the programs that the ratios compare; writes no file"
    )
    arguments = parser.parse_args()
    selected = {case: listed for case, listed in cases().items() if case in (LIMIT, PEAK, *arguments.cases)}
    if arguments.short:
        selected = {
            case: (title, shape, [row for row in listed if case in (LIMIT, PEAK) or is_compared(row)])
            for case, (title, shape, listed) in selected.items()
        }
    text = "\n".join([*report(selected, compare(selected, arguments.quick)), *pipeline_report()]) + "\n"
    print(text)
    if not (arguments.quick or arguments.short):
        from fastlstm.isa import ISA

        Path(__file__).with_name(f"results-{ISA}.md").write_text(text)


if __name__ == "__main__":
    main()
