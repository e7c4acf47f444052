"""The stage `report`: a page for any run, and one line for any file that it cannot use."""

import json
import re

import pytest

from pipeline.files import PipelineError, load_arrays
from pipeline.metrics import worst_first

FILES = {
    "data/raw/source.json": "download",
    "metrics/folds/fold_1.json": "train",
    "metrics/oof.json": "train",
    "metrics/history.csv": "train",
    "metrics/ensemble.json": "ensemble",
    "metrics/check.json": "check",
    "metrics/article.json": "article",
    "metrics/article.csv": "article",
    "data/check.npz": "check",
    "data/oof.npz": "train",
}
SMALL = {"folds": 2, "epochs": 1, "rows": 300, "steps": 20}


def test_a_file_that_cannot_be_used_is_named_with_its_stage(finished):
    for file, stage in FILES.items():
        finished.write(**SMALL)
        refuses(finished, file, stage)


def refuses(finished, file, stage):
    path = finished.folder / file
    for content in (None, b"", b"{}", b"[1]", b"step,fold\n", b"\xff\xfe"):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(PipelineError) as error:
            finished.report()
        line = str(error.value)
        assert line.startswith(f"{file}: ") and repr(stage) in line and "\n" not in line
        assert not (finished.folder / "metrics/report.html").exists()


def test_figures_that_are_no_numbers_are_refused(finished):
    finished.write(**SMALL)
    figures = finished.json("check.json")
    (finished.folder / "metrics/check.json").write_text(json.dumps({**figures, "accuracy": "high"}))
    with pytest.raises(PipelineError, match=r"'accuracy'.*'check'"):
        finished.report()


def test_arrays_of_another_run_are_refused(finished):
    finished.write(**SMALL)
    oof = (finished.folder / "data/oof.npz").read_bytes()
    finished.write(**{**SMALL, "rows": 400})
    (finished.folder / "data/oof.npz").write_bytes(oof)
    with pytest.raises(PipelineError, match=r"data/oof.npz: .*'train'"):
        finished.report()


def test_a_misread_digit_has_the_votes_of_all_networks_beside_it(finished):
    page = finished.write(**SMALL).report()
    probabilities, each, clean = load_arrays(
        finished.folder / "data/check.npz", "check", "probabilities", "each", "clean"
    )
    worst = next(n for n in worst_first(probabilities, finished.mnist["test_labels"]) if clean[n])
    votes = ", ".join(map(str, each[:, worst].argmax(axis=1)))
    assert f"<br>{votes}<br>test image {worst}</li>" in page


@pytest.mark.parametrize(
    ("trial", "says"),
    [
        ({"errors": 0, "reads": False}, ["None.", "No network of this run reads an image row by row"]),
        ({"errors": 1, "held_out": False}, ["contaminated", "more, of "]),
    ],
    ids=["no mistake", "nothing learned"],
)
def test_a_small_trial_has_a_report(finished, trial, says):
    (finished.folder / "data/times").mkdir()
    times = {
        "commit": "abc1234",
        "seconds": 150.0,
        "finished": "2026-01-02 03:04 UTC",
        "machine": "Abacus, 2 cores",
    }
    (finished.folder / "data/times/train.json").write_text(json.dumps(times))
    (finished.folder / "data/times/check.json").write_text("damaged")
    page = finished.write(**{**SMALL, "rows": 1200, **trial}).report()
    when_and_where = "abc1234", "2026-01-02 03:04 UTC", "Abacus, 2 cores", "2.5 minutes", "not recorded here"
    assert all(words in page for words in (*says, *when_and_where))
    assert len(page) < 2_000_000 and not re.search(r"\bnan\b", page)
    short = (finished.folder / "metrics/report.md").read_text()
    for name in re.findall(r"!\[.+\]\((.+)\)", short):
        picture = (finished.folder / "metrics" / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) < 200_000
    assert f"{finished.json('check.json')['accuracy']:.4f}" in short
