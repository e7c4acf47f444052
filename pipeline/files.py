"""Writing files so that they appear whole or not at all, and errors meant for the user."""

import contextlib
import hashlib
import json
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

# What reading a damaged zip archive, or an .npz file, which is one, raises.
DAMAGED = (ValueError, TypeError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class PipelineError(Exception):
    """Something the user can mend; its text is one line that says what and where."""


@contextlib.contextmanager
def replacing(path):
    """Yields a path beside `path` to write to; it takes the name when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: some writers choose the format by it. The name is always the same, so
    # that what a killed run left is overwritten by the next.
    beside = path.with_name(f".partial.{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def _reading(path, stage, kind):
    """What goes wrong in the block becomes a PipelineError that tells which stage writes the file."""
    try:
        yield
    except FileNotFoundError:
        raise PipelineError(f"{path}: there is no such file; the stage {stage!r} writes it")
    except KeyError as error:
        raise PipelineError(f"{path}: {error.args[0]}; run the stage {stage!r} again")
    except DAMAGED as error:
        raise PipelineError(f"{path}: is not {kind}: {error}; run the stage {stage!r} again")


def load_arrays(path, stage, *names):
    """The arrays of an `.npz` file, in the order of the names; PipelineError tells which stage writes it."""
    with _reading(path, stage, "a whole .npz file"), np.load(path) as file:
        return [file[name] for name in names]


def load_json(path, stage):
    """The content of a JSON file; PipelineError tells which stage writes it."""
    with _reading(path, stage, "JSON"):
        return json.loads(Path(path).read_text())


def write_json(path, content):
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n")


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
