"""Numba as all compiled code of the pipeline uses it, its results kept on disk."""

import hashlib
from pathlib import Path

import numba
from numba.core.registry import cpu_target

# The files whose functions are compiled.
COMPILED = ("compiled", "vectors", "products", "lstm_step", "kernels")


def _folder():
    """Where Numba keeps what it compiles: a folder named by the content of the files with compiled code.

    Numba itself asks only whether the file of a function has changed, but what it compiles to holds the other
    files' code; and processes that start after a change must not meet in a folder of old code.
    """
    here = Path(__file__)
    content = b"".join(here.with_name(f"{name}.py").read_bytes() for name in COMPILED)
    name = f"numba_{hashlib.sha256(content).hexdigest()[:8]}"
    for base in (numba.config.CACHE_DIR, here.with_name("__pycache__"), Path.home() / ".cache/numba"):
        if base:
            try:
                Path(base, name).mkdir(parents=True, exist_ok=True)
                return str(Path(base, name))
            except OSError:
                continue
    return numba.config.CACHE_DIR


_FOLDER = _folder()


def kept(decorator):
    """A decorator of Numba, its results kept in that folder."""
    def decorate(function):
        # Numba looks at the setting when it decorates; it is everybody's, and so put back.
        others, numba.config.CACHE_DIR = numba.config.CACHE_DIR, _FOLDER
        try:
            return decorator(function)
        finally:
            numba.config.CACHE_DIR = others
    return decorate


compiled = kept(numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"}))
inlined = numba.njit(inline="always")


def host_has(feature):
    """Whether the processor that Numba compiles for has a feature, by LLVM's name of it."""
    return f"+{feature}" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")
