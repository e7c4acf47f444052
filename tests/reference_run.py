"""Print SHA-256 sums of a small run's results: `python tests/reference_run.py [FOLDER]`.

Run it before and after a change that should not change results, on the same machine, and compare the
output. The run goes through all stages but the report, with the architectures of `all`. FOLDER stores the
data for the next run.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
CHANGES = {
    "download": {"source": "mnist"},
    "prepare": {"limit": 400, "folds": 2},
    "model": {"architecture": "all", "grid_layers": 3, "grid_units": 8},
    "train": {"epochs": 2, "batch_size": 32},
    "compute": {"workers": 2},
    "article": {"steps": 11, "units": 16, "batch_size": 100},
}
# A stage is skipped while its output exists.
DATA = {"mnist": "data/mnist.npz", "download": "data/raw/source.json"}
STAGES = ("mnist", "download", "prepare", "train", "evaluate", "ensemble", "check", "submission", "article")


def run(folder):
    """Run the pipeline in `folder`, with the committed parameters, except `CHANGES`."""
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    for section, values in CHANGES.items():
        assert set(values) <= set(params[section]), section
        params[section].update(values)
    yaml.dump(params, folder / "params.yaml")
    for name in ("data/training_state", "data/checkpoints", "metrics"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for stage in STAGES:
        if not (folder / DATA.get(stage, "none")).exists():
            subprocess.run(
                [sys.executable, "-m", f"pipeline.stages.{stage}"],
                cwd=folder,
                check=True,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )


def results(folder):
    """Yield the name and the SHA-256 of each result."""
    patterns = ("data/*.npz", "data/**/*.keras", "submissions/submission.csv")
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        yield path.relative_to(folder), hashlib.sha256(path.read_bytes()).hexdigest()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        folder = (folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        run(folder)
        for name, digest in results(folder):
            print(digest, name)


if __name__ == "__main__":
    main()
