"""The DVC stages, one module each, run as `python -m pipeline.stages.<name>`: they load, call and write."""

# ruff: noqa: E402  NumPy, which `pipeline.files` imports, reads some of the settings below.
import argparse
import contextlib
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

# Drop inherited settings that change numbers or end a stage. Kept: those of paths, logs and threads
# (TF_NUM_): training workers inherit theirs from `engines.WORKER_ENVIRONMENT`, other stages set their own.
_DROPPED = re.compile(
    r"(KERAS|XLA|NUMBA|ONEDNN|DNNL|NPY|LOKY)_(?!CACHE_DIR)|TF2?_(?!CPP_|NUM_)|PYTHONWARNINGS$"
)
# Lines of TensorFlow's own log.
NOISE = "^(WARNING: All log messages before absl|WARNING:tensorflow:|To enable the following|[IWE][0-9]{4} )"
for _name in filter(_DROPPED.match, list(os.environ)):
    del os.environ[_name]
os.environ["NUMBA_DISABLE_JIT"] = "0"  # also where .numba_config.yaml says otherwise
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # the layer runs on CPUs, and GPUs would give other bytes
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["KERAS_HOME"] = f"{os.devnull}/keras"  # contains no keras.json
os.environ["MATPLOTLIBRC"] = os.devnull
os.environ["MPLBACKEND"] = "Agg"
# A library's warning does not end a stage, even with `python -W error`, which worker processes inherit.
sys.warnoptions.clear()
warnings.simplefilter("ignore")

# In a temporary copy of the project (`dvc exp run --temp`), its own layer is used, not the installed one.
sys.path.insert(0, str((Path(__file__).parents[2] / "packages/fastlstm/src").resolve()))

from pipeline.files import PipelineError, write_json
from pipeline.git import commit
from pipeline.machine import processor
from pipeline.paths import TIMES


def run_stage(main: Callable[[], dict | None], keep_stderr: bool = False) -> None:
    """Run the `main` of a stage's module; an error meant for the user becomes one line and exit status 1.

    The stage's time is recorded, with what `main` returns.
    Unless `keep_stderr` (for a progress bar), TensorFlow's log is filtered out, so `main` has to import it.
    """
    name = Path(main.__code__.co_filename).stem  # right under a profiler and in a notebook, too
    description = main.__globals__["__doc__"]
    argparse.ArgumentParser(prog=f"python -m pipeline.stages.{name}", description=description).parse_args()
    with contextlib.suppress(AttributeError):  # a notebook's
        sys.stdout.reconfigure(errors="replace")  # the terminal may lack letters of a submission's message
    started, record = time.monotonic(), {"commit": commit(), "machine": processor()}
    try:
        with contextlib.nullcontext() if keep_stderr else _without_tensorflow_log():
            record |= main() or {}
    except (PipelineError, OSError, MemoryError) as error:
        # OSError: a missing permission or a full disk, to which a traceback would add nothing.
        sys.exit(f"{name}: {str(error) or 'out of memory'}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; run it again to resume")
    record |= {"seconds": round(time.monotonic() - started, 1), "finished": f"{datetime.now(UTC):%F %R} UTC"}
    # For the report. It differs from run to run, so DVC does not track it.
    if TIMES.parent.is_dir():
        with contextlib.suppress(OSError, PipelineError):  # another user's folder does not fail the stage
            write_json(TIMES / f"{name}.json", record)


@contextlib.contextmanager
def _without_tensorflow_log():
    """Filter TensorFlow's own log out of stderr, also of worker processes; errors are exceptions.

    TensorFlow writes half of it before it reads any setting.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    stderr = os.dup(2)
    command = ["grep", "--line-buffered", "-avE", NOISE]
    # In a session of its own, so that Ctrl-C does not end it before the stage.
    grep = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stderr, start_new_session=True)
    os.dup2(grep.stdin.fileno(), 2)
    grep.stdin.close()
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process outlives the stage
            grep.wait(timeout=1)
