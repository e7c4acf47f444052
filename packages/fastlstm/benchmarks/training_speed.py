"""Training speed of this package beside Keras, PyTorch and TensorFlow 1.

    python training_speed.py --cases abcd

prints a table for each case and writes them to a file; README.md says how to read it.
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
from importlib.util import find_spec
from pathlib import Path

import programs
from programs import Shape

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))
BATCHES = (128, 256, 512, 1000)
# Batches that are fed in turn, and steps before the clock starts.
FEED = 4
# A program's figure is the best of ROUNDS * INTERVALS such intervals, because a shared machine has slow ones.
INTERVAL = 1.0  # seconds
INTERVALS = 5
# To find the best setting; with one interval, a slow second of the machine chose a setting.
SEARCH_INTERVALS = 3
ROUNDS = 2
# Runs whose arithmetic peak is below a library's product are disturbed, and repeated.
TRIES = 3
# No process may keep the others waiting for longer, in seconds.
PATIENCE = 600
LIMIT, PEAK = "limit", "peak"
# The same for every library: glibc returns no memory to the system between steps.
ENVIRONMENT = {
    "KERAS_BACKEND": "tensorflow",
    "CUDA_VISIBLE_DEVICES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
}
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Case:
    title: str
    shape: Shape
    batches: tuple = BATCHES


CASES = {
    "a": Case("one layer of 128, middle readout", Shape(1, 128, "middle")),
    "b": Case("two layers of 128, mean over the steps", Shape(2, 128, "mean")),
    "c": Case(
        "three layers of 128, batch of 16, 113 steps (PyTorch's PR 126051)",
        Shape(3, 128, "last", steps=113, features=128),
        (16,),
    ),
    "d": Case(
        "IMDB as in Keras's example: two layers of 64, 200 words, right-padded",
        Shape(2, 64, "last", steps=200, features=128, classes=2, words=20_000),
        (32, 128),
    ),
}


@dataclass(frozen=True)
class Program:
    """A row of a table: `build(shape)` is from programs.py; the ratios are between families."""

    name: str
    build: Callable
    precision: str = "float32"
    family: str = ""
    cases: tuple = tuple("abcd")

    def is_compared(self, best_precision):
        """Whether a ratio depends on it."""
        return self.family == "keras" or (self.family != "" and self.precision == best_precision)


def all_programs(best_precision):
    """The programs of all cases; libraries only emulate bfloat16 where the processor does not multiply it."""
    precisions = sorted({best_precision, "float32"})
    for name, build in (("TensorFlow", programs.product_tensorflow), ("PyTorch", programs.product_pytorch)):
        for dtype in precisions:
            yield Program(f"{name}, {dtype}", partial(build, dtype=dtype), dtype, cases=(LIMIT,))
    for dtype in precisions:
        yield Program(f"peak, {dtype}", partial(programs.peak, dtype=dtype), dtype, cases=(PEAK,))
    for dtype in precisions:
        yield Program(f"fastlstm, {dtype}", partial(programs.fastlstm, precision=dtype), dtype, "ours")
    yield Program("Keras, stock", programs.keras_stock, family="keras")
    yield Program("Keras, unrolled", partial(programs.keras_stock, unroll=True), cases=("a", "b"))
    yield Program("TensorFlow 1, static graph", programs.tensorflow1, cases=("a",))
    for name, pruned, cases in (
        ("nn.LSTM", False, tuple("abcd")),
        ("two LSTMs, 15 and 14 steps", True, ("a",)),
    ):
        for dtype in precisions:
            build = partial(programs.pytorch, bfloat16=dtype == "bfloat16", pruned=pruned)
            yield Program(f"PyTorch, {name}, {dtype}", build, dtype, "pytorch", cases)


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


def measure(build, shape, batch, intervals):
    """In a process of its own: the best interval's samples/s, while the other processes do the same."""
    inputs, labels = shape.batches(FEED, batch)
    train = build(shape)
    train(inputs, labels)
    _barrier.wait()
    best = 0.0
    for _ in range(intervals):
        trained, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < INTERVAL:
            train(inputs, labels)
            trained += labels.size
        best = max(best, trained / elapsed)
    return best


def run(program, shape, batch, processes, intervals):
    """Samples/s of the whole machine: the sum over fresh processes, one on all cores or one a core.

    Returns:
        0 for a program that fails, which is reported.
    """
    os.environ.update(ENVIRONMENT if processes == 1 else ENVIRONMENT | ONE_THREAD)
    if processes == 1:
        for name in ONE_THREAD:
            os.environ.pop(name, None)
    # BasicLSTMCell is in Keras 2 only.
    os.environ["TF_USE_LEGACY_KERAS"] = str(int(program.build is programs.tensorflow1))
    context, cores = multiprocessing.get_context("spawn"), None
    if processes > 1:
        cores = context.SimpleQueue()
        for core in CORES:
            cores.put(core)
    initial = cores, context.Barrier(processes, timeout=PATIENCE)
    try:
        with ProcessPoolExecutor(processes, context, start_process, initial) as pool:
            arguments = measure, program.build, shape, batch, intervals
            speed = sum(future.result() for future in [pool.submit(*arguments) for _ in range(processes)])
    except Exception as error:
        print(f"{program.name}, {processes} process(es): failed: {error!r}", file=sys.stderr)
        return 0.0
    print(f"{program.name}, {batch}/{processes}: {speed:,.0f}", file=sys.stderr, flush=True)
    return speed


def compare(rows, quick):
    """Search each program's best setting, then measure that again, round by round.

    Args:
        rows: triples of a case's name, shape and batches, and a program.

    Returns:
        Samples/s, batch and processes of each `(case, program)`.
    """
    chosen, best = {}, {}
    for case, shape, batches, program in rows:
        batches = batches[:1] if quick else batches
        settings = [(batch, count) for batch in batches for count in sorted({1, len(CORES)})]
        intervals = 1 if quick else SEARCH_INTERVALS
        found = {setting: run(program, shape, *setting, intervals) for setting in settings}
        chosen[case, program] = max(found, key=found.get)
        best[case, program] = (found[chosen[case, program]] if quick else 0.0, *chosen[case, program])
    # So a slow minute of the machine hits everybody.
    for _ in range(0 if quick else ROUNDS):
        for case, shape, _, program in rows:
            setting = chosen[case, program]
            speed = run(program, shape, *setting, INTERVALS)
            best[case, program] = (max(speed, best[case, program][0]), *setting)
    return best


def ceilings(best):
    """FLOP/s of a library's product and of the arithmetic peak, for each precision."""
    found = {LIMIT: {}, PEAK: {}}
    for (case, program), (speed, *_) in best.items():
        if case in found:
            flops = speed * 2 * programs.INNER * programs.COLUMNS
            found[case][program.precision] = max(flops, found[case].get(program.precision, 0))
    return found[LIMIT], found[PEAK]


def table(name, best):
    """Lines of a case's table, and of this package's ratios to the others."""
    case, (limits, peaks) = CASES[name], ceilings(best)
    speeds = {program: values for (case, program), values in best.items() if case == name}
    top = {
        family: max((speed for program, (speed, *_) in speeds.items() if program.family == family), default=0)
        for family in ("ours", "keras", "pytorch")
    }
    yield f"## ({name}) {case.title}: {case.shape.flop() / 1e6:.1f} MFLOP a sample"
    yield ""
    columns = "program", "samples/s", "ms a step", "batch", "processes", "x Keras", "of limit", "of peak"
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for program, (speed, batch, processes) in speeds.items():
        shares = [speed * case.shape.flop() / most[program.precision] for most in (limits, peaks)]
        step = 1e3 * batch * processes / speed if speed else 0
        yield (
            f"| {program.name} | {speed:,.0f} | {step:.1f} | {batch} | "
            f"{processes}{' (all cores)' if processes == 1 else ''} | {speed / (top['keras'] or 1):.2f} | "
            + " | ".join(f"{share:.0%}" for share in shares)
            + " |"
        )
    yield ""
    ratios = [top["ours"] / (top[family] or float("nan")) for family in ("keras", "pytorch")]
    yield f"fastlstm: **{ratios[0]:.2f}x** Keras stock, **{ratios[1]:.2f}x** the best PyTorch variant."
    yield ""


def report(names, best):
    """Lines of the file of results."""
    yield "# Training speed"
    yield ""
    installed = filter(find_spec, ("tensorflow", "keras", "torch"))
    packages = ", ".join(f"{package} {version(package)}" for package in installed)
    yield f"{len(CORES)} cores, {processor()}, {time.strftime('%Y-%m-%d')}; {packages}."
    for name, figures in zip(("Matrix-product limit", "Arithmetic peak"), ceilings(best), strict=True):
        listed = ", ".join(f"{dtype} {figure / 1e9:,.0f} GFLOP/s" for dtype, figure in figures.items())
        yield f"{name}: {listed}."
    yield ""
    for name in names:
        yield from table(name, best)


def processor():
    """The processor's name, as far as the system tells."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", default="abcd", help="default: abcd")
    parser.add_argument("--output", type=Path, help="default: results-<instruction set>.md beside this file")
    parser.add_argument("--short", action="store_true", help="only what the ratios compare; writes no file")
    parser.add_argument("--quick", action="store_true", help="one setting, one interval: to try it; no file")
    arguments = parser.parse_args()
    # Not above: the processes that measure PyTorch read this file too, and must not load TensorFlow.
    from fastlstm.isa import ISA

    best_precision = "bfloat16" if ISA in ("amx", "avx512_bf16") else "float32"
    # Products ignore the shape.
    product = "", CASES["a"].shape, (programs.ROWS,)
    listed = {LIMIT: product, PEAK: product}
    listed |= {name: (name, CASES[name].shape, CASES[name].batches) for name in arguments.cases}
    rows = [
        (name, shape, batches, program)
        for name, (_, shape, batches) in listed.items()
        for program in all_programs(best_precision)
        if name in program.cases
        and (not arguments.short or name in (LIMIT, PEAK) or program.is_compared(best_precision))
    ]
    for _ in range(TRIES):
        best = compare(rows, arguments.quick)
        limits, peaks = ceilings(best)
        if arguments.quick or all(peaks[dtype] >= limits[dtype] for dtype in peaks):
            break
        print("the arithmetic peak is below a library's product: a disturbed run", file=sys.stderr)
    text = "\n".join(report(arguments.cases, best))
    print(text)
    if not (arguments.quick or arguments.short):
        output = arguments.output or Path(__file__).with_name(f"results-{ISA}.md")
        output.write_text(text)


if __name__ == "__main__":
    main()
