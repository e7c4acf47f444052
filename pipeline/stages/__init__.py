"""The DVC stages, one module each, run as `python -m pipeline.stages.<name>`: they load, call and write."""

import argparse
import contextlib
import fcntl
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from pipeline.files import PipelineError, write_bytes, write_json
from pipeline.git import commit
from pipeline.machine import processor
from pipeline.paths import DVC_LOCK, DVC_LOCK_COPY, DVC_TMP, TIMES

# What a stage inherits from a shell, a notebook or another project's settings changes no result and breaks
# nothing: settings of Keras, TensorFlow, XLA and Numba are dropped, except places, logs and GPU memory.
_SETTINGS = re.compile(r"(KERAS|XLA|NUMBA)_(?!CACHE_DIR)|TF_(?!CPP_|FORCE_GPU|GPU_)")
_OWN_SETTINGS = {
    "KERAS_BACKEND": "tensorflow",
    "KERAS_HOME": f"{os.devnull}/keras",  # can hold no keras.json
    "MATPLOTLIBRC": os.devnull,
    "MPLBACKEND": "Agg",
}
for _name in filter(_SETTINGS.match, list(os.environ)):
    del os.environ[_name]
os.environ.update(_OWN_SETTINGS)


def _end(kind, error, traceback):
    """What happens while a stage imports what it needs, before `run_stage`, is one line, too."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted; run it again to go on", file=sys.stderr)
    elif issubclass(kind, MemoryError):
        print("there is too little memory to load the libraries", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _end


def run_stage(main: Callable[[], None], keep_stderr: bool = False) -> None:
    """Run a stage; an error meant for the user becomes one line and exit status 1.

    Args:
        main: the function `main` of the stage's module.
        keep_stderr: leave stderr as it is, for a progress bar. Otherwise TensorFlow's log is filtered out.
    """
    module = sys.modules[main.__module__]
    name = module.__spec__.name.rpartition(".")[2]
    argparse.ArgumentParser(prog=f"python -m pipeline.stages.{name}", description=module.__doc__).parse_args()
    # A message of a submission may have letters that the terminal cannot show.
    sys.stdout.reconfigure(errors="replace")
    if "DVC_STAGE" in os.environ:
        _copy_lock()
    try:
        _wait_for_others(name)
        _check_temporary_folder()
        started, began_at = time.monotonic(), commit()
        with contextlib.nullcontext() if keep_stderr else _without_tensorflow_log():
            main()
        _record_time(name, time.monotonic() - started, began_at)
    except (PipelineError, OSError, MemoryError) as error:
        # OSError: no right to a file, no space left: nothing that a traceback would explain better.
        sys.exit(f"{name}: {str(error) or 'out of memory'}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; run it again to go on")


def _wait_for_others(name):
    """Wait while the same stage runs in this folder, such as one whose DVC alone was killed."""
    with contextlib.suppress(OSError):  # there is no such folder, or no locks on a network's disk
        # Never closed: the lock ends with this process.
        file = os.open(DVC_TMP / f"stage_{name}.lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{name}: waits until another process that runs this stage ends", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)


def _check_temporary_folder():
    """TensorFlow writes code there, and without it fails with an error about something else."""
    try:
        with tempfile.TemporaryFile() as file:
            file.write(bytes(1 << 13))
    except OSError as error:
        raise PipelineError(
            f"no room for temporary files: {error.strerror}; make room, or name another folder in TMPDIR"
        ) from error


def _copy_lock():
    """Keep `dvc.lock` as DVC has written it after the stage before; see `repair.py`."""
    with contextlib.suppress(OSError, PipelineError):
        content = DVC_LOCK.read_bytes()
        if content.endswith(b"\n"):  # no other DVC is writing it just now
            write_bytes(DVC_LOCK_COPY, content)


def _record_time(name, seconds, began_at):
    """Note for the report a stage's time and commit; no output of it, because they differ from run to run."""
    if TIMES.parent.is_dir():
        record = {"seconds": round(seconds, 1), "machine": processor(), "commit": began_at}
        record["finished"] = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        with contextlib.suppress(OSError):
            write_json(TIMES / f"{name}.json", record)


@contextlib.contextmanager
def _without_tensorflow_log():
    """Keep TensorFlow's log, which is about itself, out of stderr, in child processes too.

    Half of it is written before any setting is looked at; warnings tell of graphs that are built for each of
    several networks. Errors come as exceptions all the same.
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
        # A child process that outlives the stage would keep the pipe open.
        copier.join(timeout=1)
