"""Kill a small pipeline at random moments, run it again, and compare bytes: `make soak KILLS=100`.

Each round starts from nothing: `make repro` is killed with all its processes (SIGKILL) after a random time,
again and again until it ends by itself. A kill is survived if nothing had to be cleaned by hand, and the
round ends in the bytes of an undisturbed run. `docs/soak.md` has the table of the last long run.
"""

import argparse
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers import copy_project
from reference_run import CHANGES
from ruamel.yaml import YAML

LONGEST = 40  # seconds until a kill; longer than any stage that cannot go on where it was
RESULTS = ("data/**/*.npz", "data/**/*.keras", "data/raw/*", "submissions/*.csv", "metrics/*.[cjp]*")
LEFT_OVERS = ("data/**/.*", "metrics/.*", "submissions/.*", "data/training_state")


def make_project(folder):
    """A clone of the project with small parameters."""
    copy_project(folder)
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    for section, values in CHANGES.items():
        params[section].update(values)
    yaml.dump(params, folder / "params.yaml")
    for command in (
        "init -q",
        "config user.name Soak",
        "config user.email soak@localhost",
        "add -A",
        "commit -qm soak",
    ):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)


def start_from_nothing(folder):
    # Not the compiled layer, which takes longer than the time until a kill.
    subprocess.run(["git", "clean", "-qfdx", "-e", "__pycache__"], cwd=folder, check=True)
    subprocess.run(["git", "checkout", "-q", "."], cwd=folder, check=True)
    (folder / "dvc.lock").unlink(missing_ok=True)


def repro(folder, seconds=None):
    """What `make repro` runs: its exit status, None if it was killed after that time, and what it printed."""
    log = folder.with_name("log")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    mend = [sys.executable, "-m", "pipeline.stages.mend"]
    subprocess.run(mend, cwd=folder, env=environment, check=True)
    with open(log, "w") as output:
        process = subprocess.Popen(
            ["dvc", "repro"],
            cwd=folder,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait() and None
    return status, log.read_text(errors="replace")


def results(folder):
    """The SHA-256 of each result, but for times."""

    def digest(path):
        content = path.read_bytes()
        if path.suffix == ".json":
            content = re.sub(rb'"\w*seconds\w*": [\d.]+|"\w*per_second\w*": [\d.]+', b"", content)
        return hashlib.sha256(content).hexdigest()

    paths = {path for pattern in RESULTS for path in folder.glob(pattern) if path.is_file()}
    return {str(path.relative_to(folder)): digest(path) for path in sorted(paths)}


def soak(folder, kills, longest):
    """Yield, for each round, the stages that were killed in it, and what was wrong at its end."""
    start_from_nothing(folder)
    status, output = repro(folder)
    assert status == 0, output
    expected, done = results(folder), 0
    print(f"{len(expected)} files of results", flush=True)
    while done < kills:
        start_from_nothing(folder)
        killed, status = [], None
        while status is None:
            # After the last kill, the round goes on to its end.
            seconds = random.uniform(0, longest) if done < kills else None
            status, output = repro(folder, seconds)
            if status is None:
                done += 1
                killed.append((re.findall(r"^Running stage '(\w+)'", output, re.M) or ["between stages"])[-1])
        found = results(folder)
        wrong = [name for name in expected if found.get(name) != expected[name]]
        wrong += [str(path) for pattern in LEFT_OVERS for path in folder.glob(pattern)]
        if status:
            wrong = output.splitlines()[-3:]
        yield killed, wrong
        print(f"{done} kills, {killed}: {wrong or 'the same bytes'}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kills", type=int, nargs="?", default=100)
    parser.add_argument("--longest", type=float, default=LONGEST, help="seconds until a kill")
    options = parser.parse_args()
    all_kills, survived, started = Counter(), Counter(), time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        make_project(Path(temporary, "project"))
        for killed, wrong in soak(Path(temporary, "project"), options.kills, options.longest):
            all_kills.update(killed)
            if not wrong:
                survived.update(killed)
    print("\n| killed in stage | kills | survived |\n|---|---|---|")
    for stage, count in all_kills.most_common():
        print(f"| {stage} | {count} | {survived[stage]} |")
    print(f"| all | {all_kills.total()} | {survived.total()} |")
    print(f"\n{(time.monotonic() - started) / 60:.0f} minutes")
    sys.exit(all_kills.total() != survived.total())


if __name__ == "__main__":
    main()
