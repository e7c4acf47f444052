"""Repair the files that DVC writes in place after a kill has truncated them; `make repro` begins with it.

Nothing is computed again: finished stages are in DVC's run cache.
"""

import json
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.files import write_bytes
from pipeline.git import git
from pipeline.stages import run_stage

LOCKS = Path("dvc.lock"), Path("submissions/dvc.lock")
RUNNING_COMMANDS = Path(".dvc/tmp/rwlock")


def main():
    for lock in LOCKS:
        if truncated(lock, check_lock):
            committed = git("show", f"HEAD:./{lock}")
            write_bytes(lock, committed.encode()) if committed else lock.unlink()
            print(f"repair: {lock} was truncated; {'restored it from git' if committed else 'deleted it'}")
    if truncated(RUNNING_COMMANDS, json.loads):
        RUNNING_COMMANDS.unlink()
        print(f"repair: {RUNNING_COMMANDS} was truncated; deleted it")


def truncated(path, check):
    try:
        check(path.read_text())
    except Exception:  # any of YAML's and JSON's, and of an unexpected type
        return path.exists()
    return False


def check_lock(text):
    """Raise an exception unless each stage has its command, and each file its path, hash and size."""
    lock = YAML(typ="safe").load(text)
    values = [lock["schema"]]
    for stage in lock.get("stages", {}).values():
        values.append(stage["cmd"])
        for file in [*stage.get("deps", []), *stage.get("outs", [])]:
            values += [file["path"], file["md5"], file["size"], file.get("nfiles", 0)]
        values += [parameters.keys() for parameters in stage.get("params", {}).values()]
    if None in values:
        raise ValueError("a value is missing")


if __name__ == "__main__":
    run_stage(main)
