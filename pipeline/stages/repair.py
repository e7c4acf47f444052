"""Put DVC's own files right that a kill has cut off. `make repro`, `submit` and `sweep` begin with it.

DVC writes `dvc.lock`, and its list of who reads and writes which file, in place, and refuses to read half of
one. Each stage keeps a copy of `dvc.lock`; without one, finished stages may have to run again.
"""

import itertools
import json
import re
import time

import psutil
from dvc.rwlock import SCHEMA
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML

from pipeline.files import write_bytes
from pipeline.paths import DVC_LOCK, DVC_LOCK_COPY, DVC_RWLOCK
from pipeline.stages import run_stage


def main():
    for path, check in ((DVC_LOCK, check_lock), (DVC_RWLOCK, check_rwlock)):
        # Another DVC may be writing it just now.
        if problem(path, check) and not time.sleep(1) and (text := problem(path, check)):
            copied = path == DVC_LOCK and DVC_LOCK_COPY.exists() and not problem(DVC_LOCK_COPY, check)
            write_bytes(path, DVC_LOCK_COPY.read_bytes()) if copied else path.unlink()
            print(f"repair: {'put back the copy of' if copied else 'deleted'} {path} after a kill ({text})")


def problem(path, check):
    try:
        check(path)
    except FileNotFoundError:
        return None
    except Exception as error:  # of YAML, JSON, their schemas
        return " ".join(str(error).split())[:100]


def check_lock(path):
    COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(path))
    if DVC_LOCK_COPY.exists():
        # DVC can read a file that was cut off between two lines.
        keys, of_copy = (re.findall("(?m)^.*?:", file.read_text()) for file in (path, DVC_LOCK_COPY))
        if keys == of_copy[: len(keys)] != of_copy:
            raise ValueError("its end is missing")


def check_rwlock(path):
    """Refuse also a list of processes that have ended, whose numbers others may have by now."""
    users = SCHEMA(json.loads(path.read_text()))
    listed = itertools.chain(*users["read"].values(), users["write"].values())
    commands = [psutil.Process(user["pid"]).cmdline() for user in listed if psutil.pid_exists(user["pid"])]
    if list(users["read"]) + list(users["write"]) and not any("dvc" in " ".join(c) for c in commands):
        raise ValueError("its processes have ended")


if __name__ == "__main__":
    run_stage(main)
