"""The DVC stages, one module each, run as `python -m pipeline.stages.<name>`: they load, call and write."""

# ruff: noqa: E402  NumPy, which `pipeline.files` imports, reads some of the settings below.
import argparse
import contextlib
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

# Drop inherited settings that change numbers or end a stage; those of paths, logs and GPUs stay.
_DROPPED = re.compile(
    r"(KERAS|XLA|NUMBA|ONEDNN|DNNL|NPY|LOKY)_(?!CACHE_DIR)|TF2?_(?!CPP_|FORCE_GPU|GPU_)|PYTHONWARNINGS$"
)
for _name in filter(_DROPPED.match, list(os.environ)):
    del os.environ[_name]
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["KERAS_HOME"] = f"{os.devnull}/keras"  # contains no keras.json
os.environ["MATPLOTLIBRC"] = os.devnull
os.environ["MPLBACKEND"] = "Agg"
# A library's warning does not end a stage, even with `python -W error`, which worker processes inherit.
sys.warnoptions.clear()
warnings.simplefilter("ignore")

_FOLDER = Path(__file__).resolve().parent
_script = Path(getattr(sys.modules["__main__"], "__file__", None) or "-")
if _script.resolve().parent == _FOLDER:  # a script imports libraries before the settings above
    sys.exit(f"run it as: python -m pipeline.stages.{_script.stem}")
# In a temporary copy of the project (`dvc exp run --temp`), its own layer is used, not the installed one.
sys.path.insert(0, str((_FOLDER.parents[1] / "packages/fastlstm/src").resolve()))

from pipeline.files import PipelineError, write_json
from pipeline.git import commit
from pipeline.machine import processor
from pipeline.paths import TIMES


def run_stage(main: Callable[[], None], keep_stderr: bool = False) -> None:
    """Run a stage; an error meant for the user becomes one line and exit status 1.

    Args:
        main: the function `main` of the stage's module.
        keep_stderr: leave stderr as it is, for a progress bar. Otherwise TensorFlow's log is filtered out.
    """
    name = Path(main.__code__.co_filename).stem  # right under a profiler and in a notebook, too
    description = main.__globals__["__doc__"]
    argparse.ArgumentParser(prog=f"python -m pipeline.stages.{name}", description=description).parse_args()
    with contextlib.suppress(AttributeError):  # a notebook's
        sys.stdout.reconfigure(errors="replace")  # the terminal may lack letters of a submission's message
    started, record = time.monotonic(), {"commit": commit(), "machine": processor()}
    try:
        with contextlib.nullcontext() if keep_stderr else _without_tensorflow_log():
            main()
    except (PipelineError, OSError, MemoryError) as error:
        # OSError: a missing permission or a full disk, to which a traceback would add nothing.
        sys.exit(f"{name}: {str(error) or 'out of memory'}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; run it again to go on")
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
    noise = re.compile(
        rb"WARNING: All log messages before absl|WARNING:tensorflow:|To enable the following instr"
        rb"|[IWE]\d{4} \d\d:"
    )
    sys.stderr.flush()
    stderr = os.dup(2)
    read_end, write_end = os.pipe()
    os.dup2(write_end, 2)
    os.close(write_end)

    def copy():
        with open(read_end, "rb") as lines:
            for line in lines:
                if not noise.match(line):
                    os.write(stderr, line)

    copier = threading.Thread(target=copy, daemon=True)
    copier.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        copier.join(timeout=1)  # a process that outlives the stage would keep the pipe open
