"""Numba's decorators as the layer's compiled code uses them; what they compile is cached on disk."""

import contextlib
import fcntl
import hashlib
import io
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numba
from numba.core import caching

# Before anything is compiled: it may tell Numba what to compile for.
from fastlstm.isa import ISA

# The Keras side, which may change without a new compilation.
_NOT_COMPILED = ("__init__", "convert", "dispatch", "graph", "layers")


def _folder() -> str:
    """The cache's folder, named by the code's content and the instruction set.

    Numba itself recompiles a function only when its own file changes, but the compiled code has the other
    files' functions in it. And processes that start after a change must not share a folder with old code.
    """
    here = Path(__file__)
    digest = hashlib.sha256(ISA.encode())
    for file in sorted(here.parent.glob("*.py")):
        if file.stem not in _NOT_COMPILED:
            digest.update(file.read_bytes())
    name = f"numba_{digest.hexdigest()[:8]}"
    for base in _bases(here):
        with contextlib.suppress(OSError):
            folder = Path(base, name)
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return str(folder)
    return tempfile.mkdtemp(prefix="numba_")


def _bases(here: Path) -> Iterator[str | Path]:
    """Folders that may be writable, best first."""
    if numba.config.CACHE_DIR:
        yield numba.config.CACHE_DIR
    yield here.with_name("__pycache__")
    with contextlib.suppress(RuntimeError):  # this user has no home
        yield Path.home() / ".cache/numba"
    # Only this user's own: what is in it is run.
    with contextlib.suppress(OSError):
        temporary = Path(tempfile.gettempdir(), f"numba_{os.getuid()}")
        temporary.mkdir(mode=0o700, exist_ok=True)
        status = temporary.lstat()
        if status.st_uid == os.getuid() and status.st_mode == stat.S_IFDIR | 0o700:
            yield temporary


class _CacheFile(caching.IndexDataCacheFile):
    """Numba's files with their SHA-256 at the end, which `pickle` ignores; a damaged one counts as none."""

    @contextlib.contextmanager
    def _open_for_write(self, path):
        content = io.BytesIO()
        yield content
        with super()._open_for_write(path) as file:
            file.write(content.getvalue() + hashlib.sha256(content.getvalue()).digest())

    def _load_index(self):
        return super()._load_index() if _is_whole(self._index_path) else {}

    def _load_data(self, name):
        return super()._load_data(name) if _is_whole(self._data_path(name)) else None

    def save(self, key, data):
        # Numba reads the index, adds to it and writes it. Without the lock, what another process adds
        # meanwhile would be lost. A full disk loses the time to compile again, nothing else.
        with lock("index", wait=True), contextlib.suppress(OSError):
            super().save(key, data)


def _is_whole(path):
    try:
        content = Path(path).read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


_FOLDER = _folder()


def cached(decorator: Callable) -> Callable:
    """A decorator of Numba that caches in the layer's folder."""

    def decorate(function):
        # Numba reads these two when it decorates.
        others = numba.config.CACHE_DIR, caching.IndexDataCacheFile
        numba.config.CACHE_DIR, caching.IndexDataCacheFile = _FOLDER, _CacheFile
        try:
            return decorator(function)
        finally:
            numba.config.CACHE_DIR, caching.IndexDataCacheFile = others

    return decorate


@contextlib.contextmanager
def lock(name: str, wait: bool) -> Iterator[bool]:
    """Hold a lock of the cache's folder, against other processes and threads.

    Args:
        name: of the lock.
        wait: until it is free.

    Yields:
        False if another one holds it. True also where files cannot be locked.
    """
    held = True
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(Path(_FOLDER, f"{name}.lock"), "w"))
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            stack.callback(fcntl.flock, file, fcntl.LOCK_UN)  # a child may have the file open, too
        except BlockingIOError:
            held = False
        except OSError:
            pass
        yield held


compiled = cached(numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"}))
inline = numba.njit(inline="always")
