"""Which commit the code is at."""

import subprocess


def commit() -> str:
    """The short hash of the commit, `-dirty` if the code or the parameters differ from it."""
    found = _git("rev-parse", "--short", "HEAD") or "no commit"
    if _git("status", "--porcelain", "--", "pipeline", "params.yaml", "dvc.yaml"):
        found += "-dirty"
    return found


def _git(*arguments):
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
