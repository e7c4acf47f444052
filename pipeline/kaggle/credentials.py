"""Which Kaggle credentials this machine has, in the order in which Kaggle's own client looks for them.

Works offline and without the client, so it cannot tell whether they are valid.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.files import PipelineError, read_text

LARGEST = 1 << 16  # bytes, of a file with credentials
TOKEN_PAGE = "https://www.kaggle.com/settings/api"
NO_CREDENTIALS = (
    "no Kaggle credentials; give one of: KAGGLE_API_TOKEN (a token or a file with one), "
    "~/.kaggle/access_token, KAGGLE_USERNAME and KAGGLE_KEY, kaggle.json in KAGGLE_CONFIG_DIR or "
    f"~/.kaggle or ~/.config/kaggle, `kaggle auth login`; make a token at {TOKEN_PAGE}"
)


@dataclass(frozen=True)
class Credentials:
    """One way to sign in.

    Attributes:
        where: the file or the environment variables that hold them.
        arguments: what `KaggleClient` takes; empty for a login (OAuth), whose token may need a refresh.
    """

    where: str
    arguments: dict[str, str] = field(repr=False)


def find_credentials() -> Credentials | None:
    """Find the credentials that the client would use.

    Raises:
        PipelineError: they are there but cannot be read.
    """
    return next(_all_credentials(), None)


def refused_credentials() -> str:
    """Describe in one line that Kaggle refuses the credentials, and which others they hide."""
    found = []
    with contextlib.suppress(PipelineError):
        found.extend(one.where for one in _all_credentials())
    hidden = f", which come before those of {found[1]}" if found[1:] else ""
    return (
        f"Kaggle refuses the credentials of {found[0]}{hidden}: they are wrong or have expired; "
        f"remove them, or make new ones at {TOKEN_PAGE}"
    )


def _all_credentials() -> Iterator[Credentials]:
    home = Path(os.path.expanduser("~"), ".kaggle")  # no error where this user has no home
    if token := _token_from_environment():
        yield Credentials("KAGGLE_API_TOKEN", {"api_token": token})
    elif not os.environ.get("KAGGLE_API_TOKEN"):
        for file in (home / "access_token", home / "access_token.txt"):
            if token := _read_token(file):
                yield Credentials(str(file), {"api_token": token})
                break
    yield from _username_and_key(_config_folder(home) / "kaggle.json")
    file = home / "credentials.json"
    if _read_json(file).get("refresh_token"):
        yield Credentials(str(file), {})


def _token_from_environment() -> str:
    value = os.environ.get("KAGGLE_API_TOKEN", "")
    if value and os.path.exists(value):
        return _read_token(Path(value))
    return _checked_token(value, "KAGGLE_API_TOKEN")


def _config_folder(home: Path) -> Path:
    if folder := os.environ.get("KAGGLE_CONFIG_DIR"):
        return Path(folder)
    if sys.platform == "linux" and not home.exists():
        return Path(os.environ.get("XDG_CONFIG_HOME") or home.with_name(".config")) / "kaggle"
    return home


def _username_and_key(file: Path) -> Iterator[Credentials]:
    """The environment's values replace those of the file, one by one."""
    names = {"username": "KAGGLE_USERNAME", "key": "KAGGLE_KEY"}
    values = {name: os.environ.get(variable, "") for name, variable in names.items()}
    where = " and ".join(names.values())
    if not all(values.values()):
        where = str(file)
        in_file = _read_json(file)
        values = {name: value or str(in_file.get(name) or "") for name, value in values.items()}
    if all(values.values()):
        yield Credentials(where, {"username": values["username"], "password": values["key"]})
    elif any(values.values()):
        missing = next(name for name, value in values.items() if not value)
        raise PipelineError(
            f"Kaggle credentials without a {missing}: give {names[missing]}, or {missing!r} in {file}"
        )


def _read_token(path: Path) -> str:
    return _checked_token(_read(path, "text") or "", path)


def _checked_token(text: str, where: str | Path) -> str:
    token = text.strip()
    if not token.isascii() or not token.isprintable():
        raise PipelineError(f"{where}: is there but is not one line of plain text; repair or delete it")
    return token


def _read_json(path: Path) -> dict:
    text = _read(path, "JSON")
    try:
        content = {} if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{path}: is there but is not JSON ({error}); repair or delete it") from error
    if not isinstance(content, dict):
        raise PipelineError(f"{path}: is there but is not JSON (an object); repair or delete it")
    return content


def _read(path: Path, kind: str) -> str | None:
    """The file's text; None if there is no such file."""
    try:
        return read_text(path, LARGEST)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise PipelineError(f"{path}: is there but cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise PipelineError(f"{path}: is there but is not {kind} ({error}); repair or delete it") from error


def main():
    """Exit with one line if there are no credentials; `make submit` asks before it runs the pipeline."""
    try:
        if find_credentials() is None:
            raise PipelineError(NO_CREDENTIALS)
    except PipelineError as error:
        sys.exit(f"submit: {error}")


if __name__ == "__main__":
    main()
