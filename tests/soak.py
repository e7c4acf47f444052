"""Kill a small pipeline at random moments, run it again, and compare bytes: `make soak KILLS=100`.

Each round makes DVC forget one stage; stages take turns. The commands of `make repro` are killed with all
their processes (SIGKILL), after a random time or while DVC writes `dvc.lock`, until they end by themselves.
A kill is survived if nothing had to be cleaned up by hand, and the round ends in the bytes of an undisturbed
run. `docs/log/soak.md` has the table of the last long run.
"""

import argparse
import contextlib
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
    "model": CHANGES["model"] | {"architecture": "cycle", "layers": 1, "grid_layers": 1},
    "article": CHANGES["article"] | {"steps": 2},
}
# One of AIMED kills is aimed at dvc.lock, which DVC writes in place.
AIMED = 5
WRITING = "(DVC writes dvc.lock)"
RESULTS = ("data/**/*.npz", "data/**/*.keras", "data/raw/*", "submissions/*.csv", "metrics/*.[cjp]*")
LEFT_OVERS = ("data/**/.*", "metrics/.*", "submissions/.*", "data/training_state/*/.*")
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def make_project(folder):
    """A clone of the project with small parameters, without results."""
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


def repro(folder, stage, seconds=None, aimed=False):
    """Run the commands of `make repro` up to a stage.

    Args:
        folder: the project.
        stage: its name.
        seconds: until it is killed.
        aimed: kill it while DVC writes `dvc.lock` instead.

    Returns:
        The exit status, None if it was killed, and what was printed.
    """
    log, lock = folder.with_name("log"), folder / "dvc.lock"
    repair = [sys.executable, "-m", "pipeline.stages.repair"]
    subprocess.run(repair, cwd=folder, env=ENVIRONMENT, check=True)
    before, started = lock.stat().st_size if lock.exists() else 0, time.monotonic()
    with open(log, "w") as output:
        process = subprocess.Popen(
            ["dvc", "repro", stage],
            cwd=folder,
            stdout=output,
            stderr=output,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        while (status := process.poll()) is None:
            if lock.stat().st_size < before if aimed else seconds and time.monotonic() - started > seconds:
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


def run_undisturbed(folder):
    """Run all stages; returns the seconds of each."""
    seconds = {}
    for stage in YAML().load(folder / "dvc.yaml")["stages"]:
        started = time.monotonic()
        status, output = repro(folder, stage)
        assert status == 0, output
        seconds[stage] = time.monotonic() - started
    return seconds


def soak(folder, kills):
    """Yield the stage of each round, the places of its kills, and the problems at its end."""
    seconds, done, stages = run_undisturbed(folder), 0, []
    expected = results(folder)
    print(f"{len(expected)} files of results; {sum(seconds.values()):.0f} seconds undisturbed", flush=True)
    while done < kills:
        # All stages in turn, in a new order each time.
        stages = stages or random.sample(list(seconds), len(seconds))
        stage, killed, status = stages.pop(), [], None
        forget(folder, stage)
        while status is None:
            aimed = done < kills and random.randrange(AIMED) == 0
            # Some rounds end by themselves, and the last one does.
            limit = random.uniform(0, 1.2 * seconds[stage]) if done < kills else None
            started = time.monotonic()
            status, output = repro(folder, stage, limit, aimed)
            if status == 0 and not killed:
                seconds[stage] = time.monotonic() - started  # without compiling the layer
            if status is None:
                done += 1
                running = f"Running stage '{stage}'" in output
                killed.append(WRITING if aimed else stage if running else "(DVC before a stage)")
        found = results(folder)
        wrong = [name for name in expected if found.get(name) != expected[name]]
        wrong += [str(path) for pattern in LEFT_OVERS for path in folder.glob(pattern)]
        if status:
            wrong = output.splitlines()[-3:]
        yield stage, killed, wrong


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kills", type=int, nargs="?", default=100)
    kills = parser.parse_args().kills
    all_kills, survived, started = Counter(), Counter(), time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        make_project(Path(temporary, "project"))
        with contextlib.suppress(KeyboardInterrupt):
            for stage, killed, wrong in soak(Path(temporary, "project"), kills):
                all_kills.update(killed)
                if not wrong:
                    survived.update(killed)
                print(f"{stage}, killed in {killed}: {wrong or 'the same bytes'}")
                print(f"survived {survived.total()} of {all_kills.total()}: {dict(survived)}", flush=True)
    print("\n| killed in stage | kills | survived |\n|---|---|---|")
    for name, count in sorted(all_kills.items()):
        print(f"| {name} | {count} | {survived[name]} |")
    print(f"| all | {all_kills.total()} | {survived.total()} |")
    print(f"\n{(time.monotonic() - started) / 60:.0f} minutes")
    sys.exit(all_kills.total() != survived.total())


if __name__ == "__main__":
    main()
