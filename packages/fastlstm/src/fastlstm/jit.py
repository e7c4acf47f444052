"""Numba's decorators for this package, and the cache of compiled code."""

import contextlib
import hashlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding
import numba
from numba.extending import overload

# Before anything is compiled: it may tell Numba what to compile for.
from fastlstm.isa import ISA

if numba.config.DISABLE_JIT:
    raise ImportError(
        "fastlstm needs Numba's compiler: unset NUMBA_DISABLE_JIT, or disable_jit in .numba_config.yaml"
    )

# The Keras side, which may change without a new compilation.
_NOT_COMPILED = ("__init__", "convert", "dispatch", "graph", "layers", "ops")


def _folder() -> Path:
    """Cache folder, named by a hash of all that the compiled code depends on.

    Numba recompiles a function only when its own file changes, but the compiled code contains other files'
    functions.
    """
    here = Path(__file__)
    environment = sys.version_info[:2], numba.__version__, ISA, llvmlite.binding.get_host_cpu_name()
    digest = hashlib.sha256(f"{environment} {here.parent}".encode())
    for file in sorted(here.parent.glob("*.py")):
        if file.stem not in _NOT_COMPILED:
            digest.update(file.read_bytes())
    name = f"numba_{digest.hexdigest()[:8]}"
    for base in (numba.config.CACHE_DIR, here.with_name("__pycache__"), Path("~/.cache/numba").expanduser()):
        if base:
            with contextlib.suppress(OSError):
                folder = Path(base, name)
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    return folder
    return Path(tempfile.mkdtemp(prefix="numba_"))


FOLDER = _folder()
_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


# For functions that only compiled code calls. `literal_inline` hands constant arguments on as constants.
inner = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)
inline = numba.njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)
literal_inline = numba.njit(inline="always")


def constant(function: Callable) -> Callable:
    """Make function(item type) a compile-time constant of an array or pointer.

    The result takes the array or pointer itself, also in Python.
    """

    def of_array(array):
        return function(numba.from_dtype(array.dtype))

    def implement(array):
        value = function(array.dtype)
        return lambda array: value

    overload(of_array, inline="always")(implement)
    return of_array


def compile_and_announce(precision: str, body: Callable, signature) -> Callable:
    """Compile a function for C, or load it from the cache; other processes wait meanwhile."""
    done = FOLDER / f"{precision}.done"
    with contextlib.ExitStack() as stack:
        if not done.exists():
            _lock(stack.enter_context(open(FOLDER / "lock", "w")))
        if not done.exists():
            print(
                f"fastlstm: compiling for {ISA}, {precision}; only the first use takes this long",
                file=sys.stderr,
            )
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(FOLDER)  # read when Numba decorates
        try:
            function = numba.cfunc(signature, cache=True)(body)
        finally:
            numba.config.CACHE_DIR = before
        done.touch()
    return function


def _lock(file):
    """Wait for the lock of a file, which closing it releases."""
    try:
        import fcntl
    except ImportError:  # Windows: every process compiles for itself
        return
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX)
