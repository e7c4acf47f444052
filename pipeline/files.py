"""Atomic writes, the file formats of the stages, and errors meant for the user."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd


class PipelineError(Exception):
    """An error that the user can fix; its text is one line that says what is wrong and where."""

    def __init__(self, text: str):
        super().__init__(one_line(text))


def one_line(text: str, limit: int | None = None) -> str:
    """Replace line ends and control characters, and cut the text at `limit` characters."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return line if limit is None or len(line) <= limit else f"{line[: limit - 3]}..."


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it is renamed to `path` if the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, because some writers choose the format by it. The name is constant, so that the
    # next run overwrites the file of a killed one.
    tmp = path.with_name(f".partial.{path.name}")
    try:
        yield tmp
        os.replace(tmp, path)
    except OSError as error:
        raise PipelineError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        tmp.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder; it replaces `path` if the block ends without an error."""
    path = Path(path)
    temporary = path.with_name(f".partial.{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _load(path, stage, load):
    """Call `load(path)`; its errors become a PipelineError that names the stage that writes the file."""
    try:
        return load(path)
    except FileNotFoundError:
        raise PipelineError(
            f"{path}: there is no such file; the stage {stage!r} makes it: dvc repro {stage}"
        ) from None
    # Corrupt bytes raise dozens of types, from zlib's own errors to those of NumPy's parser of headers.
    except Exception as error:
        reason = one_line(str(error), 120)
        raise PipelineError(f"{path}: cannot be read: {reason}; run the stage {stage!r} again") from error


def load_arrays(path: str | Path, stage: str, *names: str) -> list[np.ndarray]:
    """Read the named arrays of an `.npz` file that `stage` writes; raises PipelineError."""

    def load(path):
        with np.load(path) as file:
            return [file[name] for name in names]

    return _load(path, stage, load)


def load_json(path: str | Path, stage: str):
    """Read a JSON file that `stage` writes; raises PipelineError."""
    return _load(path, stage, lambda path: json.loads(Path(path).read_text()))


def load_csv(path: str | Path, stage: str) -> pd.DataFrame:
    """Read a table that `stage` writes; raises PipelineError."""
    return _load(path, stage, pd.read_csv)


def save_arrays(path: str | Path, **arrays: np.ndarray) -> None:
    """Write a compressed `.npz` file."""
    with atomic_write(path) as tmp:
        np.savez_compressed(tmp, **arrays)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file."""
    with atomic_write(path) as tmp:
        tmp.write_bytes(content)


def write_json(path: str | Path, content) -> None:
    """Write a JSON file."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def save_network(network, path: str | Path) -> None:
    """Write a `keras.Model` as a `.keras` file whose bytes depend on the model alone."""
    with atomic_write(path) as tmp:
        network.save(tmp)
        with zipfile.ZipFile(tmp) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        metadata = json.loads(parts["metadata.json"])
        del metadata["date_saved"]
        parts["metadata.json"] = json.dumps(metadata).encode()
        # `shared_object_id` depends on the process, and loading does not need it.
        parts["config.json"] = re.sub(rb', "shared_object_id": \d+', b"", parts["config.json"])
        with zipfile.ZipFile(tmp, "w") as archive:
            for name, content in parts.items():
                archive.writestr(zipfile.ZipInfo(name), content)


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, floats with six digits."""
    with atomic_write(path) as tmp:
        table.to_csv(tmp, index=False, float_format="%.6g", lineterminator="\n")


def sha256(path: str | Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
