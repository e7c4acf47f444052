"""Writing files so that they appear whole or not at all, and errors meant for the user."""

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

LONGEST_MESSAGE = 280  # characters; the stage's name comes before it
LARGEST_JSON = 1 << 24  # bytes
# An archive that unpacks to more is refused if it is also packed more densely than real data ever are.
LARGEST_CONTENT = 1 << 30  # bytes
MAX_COMPRESSION = 50  # bytes of content for each of the archive; real data stay far below


class PipelineError(Exception):
    """Something the user can fix; its text is one line that says what is wrong and where."""

    def __init__(self, text: str):
        # A part may come from a damaged file.
        text = one_line(text)
        if len(text) > LONGEST_MESSAGE:
            # What is wrong stands at the beginning, what to do at the end.
            text = f"{text[: LONGEST_MESSAGE - 105]} ... {text[-100:]}"
        super().__init__(text)


def one_line(text: str, limit: int | None = None) -> str:
    """Make one printable line of a text from elsewhere.

    Args:
        text: may have line ends and control characters.
        limit: longest result, in characters.
    """
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return line if limit is None or len(line) <= limit else f"{line[: limit - 3]}..."


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it is renamed to `path` if the block ends without an error.

    Raises:
        PipelineError: it cannot be written, such as to a full disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, because some writers choose the format by it. The name is always the same,
    # so the next run overwrites what a killed run left behind.
    tmp = path.with_name(f".partial.{path.name}")
    try:
        yield tmp
        os.replace(tmp, path)
    except OSError as error:
        # Neither another file's error nor one of a decompressor, which have no number.
        if error.errno is None or error.filename not in (None, str(tmp)):
            raise
        raise PipelineError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            tmp.unlink()


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder; it takes the place of `path` if the block ends without an error."""
    path = Path(path)
    temporary = path.with_name(f".partial.{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    new = temporary / "new"
    new.mkdir(parents=True)
    try:
        yield new
        if path.exists():
            path.rename(temporary / "old")
        new.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def explained(path: str | Path, stage: str, kind: str) -> Iterator[None]:
    """Turn errors of the block into a PipelineError that names the stage that writes the file."""
    try:
        yield
    except FileNotFoundError:
        raise PipelineError(
            f"{path}: there is no such file; the stage {stage!r} makes it: dvc repro {stage}"
        ) from None
    except KeyError as error:
        raise PipelineError(f"{path}: {error.args[0]}; run the stage {stage!r} again") from None
    except MemoryError as error:
        raise PipelineError(
            f"{path}: too little memory ({one_line(str(error), 120)}), or a damaged file: then run the stage "
            f"{stage!r} again"
        ) from error
    # Damaged bytes raise dozens of types, from zlib's own errors to those of NumPy's parser of headers.
    except Exception as error:
        raise PipelineError(
            f"{path}: is not {kind}: {one_line(str(error), 120)}; run the stage {stage!r} again"
        ) from error


def load_arrays(path: str | Path, stage: str, *names: str) -> list[np.ndarray]:
    """Read the named arrays of an `.npz` file that `stage` writes.

    Raises:
        PipelineError: the file or an array is missing, or the file is damaged; it names the stage.
    """
    with explained(path, stage, "a whole .npz file"):
        check_archive(path)
        with np.load(path) as file:
            return [file[name] for name in names]


def check_archive(path: str | Path) -> None:
    """Raise an error, of any type, if a file is no zip archive, or one that would fill the memory."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    packed = Path(path).stat().st_size
    if size > max(LARGEST_CONTENT, MAX_COMPRESSION * packed):
        raise ValueError(f"{packed} bytes that unpack to {size}")


def save_arrays(path: str | Path, **arrays: np.ndarray) -> None:
    """Write a compressed `.npz` file."""
    with atomic_write(path) as tmp:
        np.savez_compressed(tmp, **arrays)


def load_json(path: str | Path, stage: str):
    """Read a JSON file; raises PipelineError, which names the stage that writes it."""
    with explained(path, stage, "JSON"):
        return json.loads(read_text(path, LARGEST_JSON))


def read_text(path: str | Path, largest: int) -> str:
    """Read a text of at most `largest` bytes; raises OSError or ValueError."""
    with open(path, "rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"it has more than {largest} bytes")
    return content.decode()


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file."""
    with atomic_write(path) as tmp:
        tmp.write_bytes(content)


def write_json(path: str | Path, content) -> None:
    """Write a JSON file."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def save_network(network, path: str | Path) -> None:
    """Write a Keras model as a `.keras` file whose bytes depend on the model alone.

    Keras's own has the time of saving in it, and addresses of objects in this process.

    Args:
        network: a `keras.Model`.
        path: ends with `.keras`.
    """
    with atomic_write(path) as tmp:
        network.save(tmp)
        with zipfile.ZipFile(tmp) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        metadata = json.loads(parts["metadata.json"])
        del metadata["date_saved"]
        parts["metadata.json"] = json.dumps(metadata).encode()
        # They say which data types are the same object; loaded as equal ones, they do as well.
        parts["config.json"] = re.sub(rb', "shared_object_id": \d+', b"", parts["config.json"])
        with zipfile.ZipFile(tmp, "w") as archive:
            for name, content in parts.items():
                archive.writestr(zipfile.ZipInfo(name), content)


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, with six digits of each number."""
    with atomic_write(path) as tmp:
        table.to_csv(tmp, index=False, float_format="%.6g", lineterminator="\n")


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
