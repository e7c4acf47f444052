"""When, where and by which code a run was made."""

import json
from pathlib import Path

STAGES = ("mnist", "download", "prepare", "train", "ensemble", "check", "article", "submission")


def read_provenance(folder: Path) -> dict:
    """Read when, where and by which code the stages last ran on this machine.

    Args:
        folder: of the files that `run_stage` leaves, `<stage>.json`.

    Returns:
        `commit`, `date` and `machine` of the training, `total` time in words, and in `stages` the seconds
        of each stage by name, None where the stage did not run here.
    """
    times = {stage: _read(folder / f"{stage}.json") for stage in STAGES}
    seconds = {stage: time.get("seconds") for stage, time in times.items()}
    known = [value for value in seconds.values() if value is not None]
    missing = len(STAGES) - len(known)
    total = f"{sum(known) / 60:.1f} minutes" if known else "not recorded"
    if known and missing:
        total += f", without {missing} of {len(STAGES)} stages, which did not run here"
    return {
        "commit": times["train"].get("commit", "not recorded"),
        "date": times["train"].get("finished", "not recorded"),
        "machine": times["train"].get("machine", "not recorded"),
        "total": total,
        "stages": seconds,
    }


def _read(path):
    """A stage's file, empty where there is none or it is damaged: it decides nothing."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
