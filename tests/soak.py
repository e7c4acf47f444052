"""Kill a small pipeline at random moments, run it again, and compare bytes: `make soak KILLS=30`.

A round makes DVC forget a stage, each in turn. What `make repro` runs is killed with all its processes
(SIGKILL), after a random time or while DVC writes `dvc.lock`, again and again until it ends by itself. A kill
is survived if nothing has to be cleaned by hand, and the round ends in the bytes of an undisturbed run.
"""

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers import copy_project
from reference_run import CHANGES
from ruamel.yaml import YAML

CHANGES = CHANGES | {
    "model": CHANGES["model"] | {"architecture": "cycle", "grid_layers": 1},
    "article": CHANGES["article"] | {"steps": 2},
}
# One of AIMED kills is aimed at dvc.lock, which DVC writes in place.
AIMED = 5
RESULTS = ("data/**/*.npz", "data/**/*.keras", "data/raw/*", "submissions/*.csv", "metrics/*.[cjp]*")
LEFT_OVERS = ("data/**/.*", "metrics/.*", "submissions/.*")
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def make_project(folder):
    """A copy of the project with small parameters, without results."""
    copy_project(folder)
    (folder / "dvc.lock").unlink()
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    for section, values in CHANGES.items():
        params[section].update(values)
    yaml.dump(params, folder / "params.yaml")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)


def forget(folder, stage):
    """Delete a stage's outputs, and DVC's records of them."""
    yaml = YAML()
    lock = yaml.load(folder / "dvc.lock")
    for output in lock["stages"].pop(stage)["outs"]:
        path = folder / output["path"]
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    yaml.dump(lock, folder / "dvc.lock")
    shutil.rmtree(folder / ".dvc/cache/runs", ignore_errors=True)


def size(path):
    """The size of a file in bytes; 0 if it is missing, as `dvc.lock` is after a repair without a commit."""
    return path.stat().st_size if path.exists() else 0


def repro(folder, stage, seconds=None, aimed=False):
    """Run what `make repro` runs, as far as a stage.

    Args:
        folder: the project.
        stage: its name.
        seconds: until it is killed; None: never.
        aimed: kill it while DVC writes `dvc.lock` instead.

    Returns:
        The exit status, None if it was killed, and the output.
    """
    log, lock = folder.with_name("log"), folder / "dvc.lock"
    repair = [sys.executable, "-m", "pipeline.stages.repair"]
    subprocess.run(repair, cwd=folder, env=ENVIRONMENT, check=True)
    before, started = size(lock), time.monotonic()
    command = [sys.executable, "-m", "dvc", "repro", stage]
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=output, env=ENVIRONMENT, start_new_session=True
        )
        while (status := process.poll()) is None:
            if size(lock) < before if aimed else seconds and time.monotonic() - started > seconds:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                break
            time.sleep(0.001 if aimed else 0.05)
    return status, log.read_text(errors="replace")


def results(folder):
    """The SHA-256 of each result, except times."""

    def digest(path):
        content = path.read_bytes()
        if path.name == "history.csv":
            content = pd.read_csv(path).filter(regex="^(?!.*seconds)").to_csv().encode()
        if path.suffix == ".json":
            content = re.sub(rb'"\w*seconds\w*": [\d.]+|"\w*per_second\w*": [\d.]+', b"", content)
        return hashlib.sha256(content).hexdigest()

    paths = {path for pattern in RESULTS for path in folder.glob(pattern) if path.is_file()}
    return {str(path.relative_to(folder)): digest(path) for path in sorted(paths)}


def soak(folder, kills):
    """Yield, for each round, its stage, the number of kills, and what is wrong at its end."""
    seconds, done, stages = {}, 0, []
    for stage in YAML().load(folder / "dvc.yaml")["stages"]:
        started = time.monotonic()
        status, output = repro(folder, stage)
        assert status == 0, output
        seconds[stage] = time.monotonic() - started
    for command in ("add dvc.lock", "-c user.name=Soak -c user.email=soak@localhost commit -qm run"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)
    expected = results(folder)
    print(f"{len(expected)} files of results; {sum(seconds.values()):.0f} seconds undisturbed", flush=True)
    while done < kills:
        stages = stages or random.sample(list(seconds), len(seconds))  # each in turn, in a random order
        stage, before, status = stages.pop(), done, None
        forget(folder, stage)
        while status is None:
            # Some rounds end by themselves; after the last kill, the round does.
            limit = random.uniform(0, 1.2 * seconds[stage]) if done < kills else None
            aimed = limit is not None and random.randrange(AIMED) == 0
            status, output = repro(folder, stage, limit, aimed)
            done += status is None
        after = results(folder)
        wrong = [name for name in expected if after.get(name) != expected[name]]
        wrong += [str(path) for pattern in LEFT_OVERS for path in folder.glob(pattern)]
        yield stage, done - before, output.splitlines()[-3:] if status else wrong


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kills", type=int, nargs="?", default=30)
    kills, survived = Counter(), Counter()
    with tempfile.TemporaryDirectory() as temporary:
        make_project(Path(temporary, "project"))
        for stage, number, wrong in soak(Path(temporary, "project"), parser.parse_args().kills):
            kills[stage] += number
            survived[stage] += 0 if wrong else number
            print(f"{stage}, killed {number} times: {wrong or 'the same bytes'}", flush=True)
    print("\n| stage | kills | survived |\n|---|---|---|")
    for stage in kills:
        print(f"| {stage} | {kills[stage]} | {survived[stage]} |")
    print(f"| all | {kills.total()} | {survived.total()} |")
    sys.exit(kills != survived)


if __name__ == "__main__":
    main()
