"""Writing files so that they appear whole or not at all, and errors meant for the user."""

import contextlib
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

# What reading a damaged zip archive raises; an .npz file is one, too.
DAMAGED = (ValueError, TypeError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class PipelineError(Exception):
    """Something the user can mend; its text is one line that says what is wrong and where."""


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it is renamed to `path` if the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, because some writers choose the format by it. The name is always the same,
    # so the next run overwrites what a killed run left behind.
    tmp = path.with_name(f".partial.{path.name}")
    try:
        yield tmp
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


@contextlib.contextmanager
def _reading(path, stage, kind):
    """Turn errors of the block into a PipelineError that names the stage that writes the file."""
    try:
        yield
    except FileNotFoundError:
        raise PipelineError(f"{path}: there is no such file; the stage {stage!r} writes it") from None
    except KeyError as error:
        raise PipelineError(f"{path}: {error.args[0]}; run the stage {stage!r} again") from None
    except DAMAGED as error:
        raise PipelineError(f"{path}: is not {kind}: {error}; run the stage {stage!r} again") from error


def load_arrays(path: str | Path, stage: str, *names: str) -> list[np.ndarray]:
    """Read the named arrays of an `.npz` file that `stage` writes.

    Raises:
        PipelineError: the file or an array is missing, or the file is damaged; it names the stage.
    """
    with _reading(path, stage, "a whole .npz file"), np.load(path) as file:
        return [file[name] for name in names]


def save_arrays(path: str | Path, **arrays: np.ndarray) -> None:
    """Write a compressed `.npz` file."""
    with atomic_write(path) as tmp:
        np.savez_compressed(tmp, **arrays)


def load_json(path: str | Path, stage: str):
    """Read a JSON file; raises PipelineError, which names the stage that writes it."""
    with _reading(path, stage, "JSON"):
        return json.loads(Path(path).read_text())


def write_json(path: str | Path, content) -> None:
    """Write a JSON file."""
    with atomic_write(path) as tmp:
        tmp.write_text(json.dumps(content, indent=2) + "\n")


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, with six digits of each number."""
    with atomic_write(path) as tmp:
        table.to_csv(tmp, index=False, float_format="%.6g", lineterminator="\n")


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
