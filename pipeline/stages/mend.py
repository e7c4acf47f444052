"""Delete DVC's own files that a kill has cut off: DVC makes them anew. `make repro` begins with it.

DVC writes `dvc.lock` and its list of who reads and writes which file in place, and refuses to read half of
one. Without `dvc.lock`, its run cache brings back the results of finished stages.
"""

import itertools
import json
import sys
import time
from pathlib import Path

import psutil
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML

from pipeline.paths import DVC_LOCK, DVC_USERS
from pipeline.stages import run_stage


def main():
    for path, check in ((DVC_LOCK, check_lock), (DVC_USERS, check_users)):
        # Another DVC may be writing it just now.
        if problem(path, check) and not time.sleep(1) and (text := problem(path, check)):
            path.unlink()
            print(f"mend: deleted {path}: {text}; DVC makes it anew")


def problem(path, check):
    try:
        check(path)
    except FileNotFoundError:
        return None
    except Exception as error:  # of YAML, JSON, their schemas
        return " ".join(str(error).split())[:100]


def check_lock(path: Path) -> None:
    COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(path))


def check_users(path: Path) -> None:
    """Also refuses a list of processes that have ended, whose numbers others may have by now."""
    users = json.loads(path.read_text())
    listed = itertools.chain(*users["read"].values(), users["write"].values())
    commands = [
        psutil.Process(user["pid"]).cmdline() if psutil.pid_exists(user["pid"]) else [] for user in listed
    ]
    if commands and not any("dvc" in " ".join(command) for command in commands):
        raise ValueError("its processes have ended")


if __name__ == "__main__":
    run_stage(sys.modules[__name__], main)
