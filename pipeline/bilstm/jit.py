"""Numba's decorators as the layer's compiled code uses them; what they compile is cached on disk."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numba

# Before anything is compiled: it may tell Numba what to compile for.
from pipeline.bilstm.isa import ISA


def _folder() -> str:
    """The cache's folder, named by the code's content and the instruction set.

    Numba itself recompiles a function only when its own file changes, but the compiled code has the other
    files' functions in it. And processes that start after a change must not share a folder with old code.
    """
    here = Path(__file__)
    digest = hashlib.sha256(ISA.encode())
    for file in sorted(here.parent.glob("*.py")):
        digest.update(file.read_bytes())
    name = f"numba_{digest.hexdigest()[:8]}"
    for base in (numba.config.CACHE_DIR, here.with_name("__pycache__"), Path.home() / ".cache/numba"):
        if base:
            try:
                Path(base, name).mkdir(parents=True, exist_ok=True)
                return str(Path(base, name))
            except OSError:
                continue
    return numba.config.CACHE_DIR


_FOLDER = _folder()


def cached(decorator: Callable) -> Callable:
    """A decorator of Numba that caches in the layer's folder."""

    def decorate(function):
        # Numba reads this global setting when it decorates.
        others, numba.config.CACHE_DIR = numba.config.CACHE_DIR, _FOLDER
        try:
            return decorator(function)
        finally:
            numba.config.CACHE_DIR = others

    return decorate


compiled = cached(numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"}))
inline = numba.njit(inline="always")
