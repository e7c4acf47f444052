"""The stage `report`: one page for any run of any competition."""

import re
from dataclasses import replace

import numpy as np
import pytest

from pipeline import metrics
from pipeline.competition import COMPETITIONS
from pipeline.files import PipelineError, load_arrays, save_arrays, write_json
from pipeline.metrics import worst_first
from pipeline.report.page import DISPUTED

SMALL = {"folds": 2, "epochs": 1, "rows": 300}


def test_a_missing_file_is_named_with_its_stage(finished):
    finished.write(**SMALL)
    for file, stage in {"metrics/oof.json": "evaluate", "data/check.npz": "check"}.items():
        path = finished.folder / file
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(PipelineError, match=f"{file}: .*'{stage}'"):
            finished.report()
        path.write_bytes(content)


def test_a_misread_digit_has_the_votes_of_all_networks_beside_it(finished):
    page = finished.write(**SMALL).report()
    probabilities, each, clean = load_arrays(
        finished.folder / "data/check.npz", "check", "probabilities", "each", "clean"
    )
    worst = next(n for n in worst_first(probabilities, finished.mnist["test_labels"]) if clean[n])
    votes = ", ".join(map(str, each[:, worst].argmax(axis=1)))
    assert f"<br>{votes}<br>test image {worst}</li>" in page


def test_disputed_labels_are_counted_and_marked(finished):
    finished.write(**SMALL, errors=0)
    path = finished.folder / "data/check.npz"
    names = ("probabilities", "each", "clean", "shown", "reading")
    arrays = dict(zip(names, load_arrays(path, "check", *names), strict=True))
    wrong = [2, *sorted(DISPUTED)[:3]]
    arrays["probabilities"][wrong] = np.eye(10)[(finished.mnist["test_labels"][wrong] + 1) % 10]
    save_arrays(path, **arrays)
    page = finished.report()
    assert "3 of these errors are among the 15 test labels" in page
    assert [int(row) for row in re.findall(r"test image (\d+)<br><b>label disputed", page)] == wrong[1:]


def test_a_new_metric_is_in_the_tables(finished, monkeypatch):
    monkeypatch.setitem(metrics.METRICS, "brier_score", lambda probabilities, labels: 0.1234)
    page = finished.write(**SMALL).report()
    table = page[page.index('id="fold-table"') : page.index("</table>", page.index('id="fold-table"'))]
    assert table.count("0.1234") == 3 and '<th scope="col">brier score</th>' in table
    assert (finished.folder / "metrics/report.md").read_text().count("0.1234") == 5


def test_another_clean_test_set_is_called_by_its_file(finished):
    page = finished.write(**SMALL, slug="Kannada-MNIST").report()
    short = (finished.folder / "metrics/report.md").read_text()
    assert "Accuracy on Dig-MNIST.csv" in page and "Dig-MNIST.csv" in short
    for words in ("MNIST test", "published", "article's", "leak in", "disputed", "contaminated"):
        assert words not in page and words not in short


def test_without_a_clean_test_set_its_parts_are_left_out(finished, monkeypatch, capsys):
    other = replace(COMPETITIONS["Kannada-MNIST"], slug="other", classes=12, size=20, test=None)
    monkeypatch.setitem(COMPETITIONS, "other", other)
    page = finished.write(**SMALL, slug="other").report()
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections == ["folds", "errors", "calibration", "gallery", "provenance"]
    assert 'id="check"' not in page and "None" not in page and not re.search(r"\bnan\b", page)
    assert re.search("clean test set +none", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("trial", "says"),
    [
        ({"errors": 0, "reads": False}, ["None.", "No network of this run reads images row by row"]),
        ({"errors": 1, "held_out": False}, ["contaminated", "more, of "]),
    ],
    ids=["no mistake", "nothing learned"],
)
def test_a_small_trial_has_a_report(finished, trial, says):
    record = {"commit": "abc1234", "seconds": 150.0, "finished": "2026-01-02 03:04 UTC", "machine": "Abacus"}
    write_json(finished.folder / "data/times/train.json", record)
    page = finished.write(**{**SMALL, "rows": 1200, **trial}).report()
    when_and_where = "abc1234", "2026-01-02 03:04 UTC", "Abacus", "2.5 minutes, 1 of 9 stages"
    assert all(words in page for words in (*says, *when_and_where))
    assert len(page) < 2_000_000 and not re.search(r"\bnan\b", page)
    short = (finished.folder / "metrics/report.md").read_text()
    for name in re.findall(r"!\[.+\]\((.+)\)", short):
        picture = (finished.folder / "metrics" / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) < 200_000
    assert f"{finished.json('check.json')['accuracy']:.4f}" in short
