"""Writing files so that they appear whole or not at all, and errors meant for the user."""

import contextlib
import hashlib
import json
import os
import zipfile
import zlib
from pathlib import Path


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


def write_json(path, content):
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n")


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
