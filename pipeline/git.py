"""Git commands, and the commit of this clone."""

import os
import subprocess

CODE = ("pipeline", "packages/fastlstm/src", "params.yaml", "dvc.yaml")


def commit() -> str:
    """The short hash of the commit, `-dirty` if the code or the parameters differ from it."""
    name = git("rev-parse", "--short", "HEAD").strip() or "no commit"
    return f"{name}-dirty" if git("status", "--porcelain", "--", *CODE) else name


def git(*arguments: str) -> str:
    """The output of a git command in this folder; empty if it fails.

    It also works in another user's clone, and ignores a repository named by GIT_DIR.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # `git status` would write to the index
    command = ["git", "-c", "safe.directory=*", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
