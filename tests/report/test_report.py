"""The stage `report`: one page for any run of any competition."""

import re
from dataclasses import replace

import numpy as np
import pytest

from pipeline.competition import COMPETITIONS
from pipeline.files import PipelineError, load_arrays, save_arrays, sha256, write_json
from pipeline.metrics import METRICS
from pipeline.report.page import DISPUTED

SMALL = {"folds": 2, "epochs": 1, "rows": 300, "tests": 1300}


@pytest.mark.parametrize(("file", "stage"), [("metrics/oof.json", "evaluate"), ("data/check.npz", "check")])
def test_a_missing_file_is_named_with_its_stage(finished, file, stage):
    (finished.write(**SMALL).folder / file).unlink()
    with pytest.raises(PipelineError, match=f"{file}: .*'{stage}'"):
        finished.report()


def test_a_misread_digit_has_all_votes_beside_it_and_a_mark_if_its_label_is_disputed(finished):
    path = finished.write(**{**SMALL, "tests": 10_000}, errors=0).folder / "data/check.npz"
    names = ("probabilities", "each", "clean")
    check = dict(zip(names, load_arrays(path, "check", *names), strict=True))
    labels, wrong = finished.mnist["test_labels"], [2, *sorted(DISPUTED)[:3]]
    check["probabilities"][wrong] = check["each"][0, wrong] = np.eye(10)[(labels[wrong] + 1) % 10]
    save_arrays(path, **check)
    page = finished.report()
    assert "3 of these errors are among the 15 test labels" in page and "None." in page
    for row in wrong:
        mark = "<br><b>label disputed</b>" if row in DISPUTED else ""
        assert f"<br>{(labels[row] + 1) % 10}, {labels[row]}<br>test image {row}{mark}</li>" in page


def test_a_new_metric_is_in_the_tables(finished, monkeypatch):
    monkeypatch.setitem(METRICS, "brier_score", lambda probabilities, labels: 0.1234)
    page = finished.write(**SMALL).report()
    table = re.search('<table[^>]*id="fold-table".*?</table>', page, re.DOTALL)[0]
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


def test_the_time_of_another_training_is_not_shown(finished):
    """DVC took the training from its cache, after another one had run on this machine."""
    record = {"commit": "abc1234", "seconds": 150.0, "oof": "of the other training"}
    write_json(finished.write(**SMALL).folder / "data/times/train.json", record)
    page = finished.report()
    assert "abc1234" not in page and "<dt>commit</dt><dd>not recorded</dd>" in page


def test_a_limited_run_is_not_to_be_submitted(finished, capsys):
    params = finished.write(**SMALL).folder / "params.yaml"
    source = {"source": "kaggle", "competition": "digit-recognizer"}
    write_json(finished.folder / "data/raw/source.json", source)
    content, rows = params.read_text(), finished.metrics("ensemble")["images"]
    for limit, advice in ((rows, r"not this one: prepare\.limit is set"), (rows + 1, "make submit")):
        params.write_text(content.replace("limit: null", f"limit: {limit}"))
        finished.report()
        assert re.search(f"submit it +{advice}\n", capsys.readouterr().out)


def test_a_trial_that_learned_nothing_has_a_report(finished):
    record = {"commit": "abc1234", "seconds": 150.0, "finished": "2026-01-02 03:04 UTC", "machine": "Abacus"}
    finished.write(**{**SMALL, "rows": 1200}, errors=1, held_out=False)
    oof = sha256(finished.folder / "data/oof.npz")
    write_json(finished.folder / "data/times/train.json", {**record, "oof": oof})
    page = finished.report()
    partly = f"2 networks, 600 images each; on {finished.metrics('check')['images']:,} images only"
    for words in (*map(str, record.values()), "contaminated", "more, of ", partly):
        assert words.replace("150.0", "2.5 minutes, 1 of 9 stages") in page
    assert len(page) < 2_000_000 and not re.search(r"\bnan\b", page)
    short = (finished.folder / "metrics/report.md").read_text()
    for name in re.findall(r"!\[.+\]\((.+)\)", short):
        picture = (finished.folder / "metrics" / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) < 200_000
    assert f"{finished.metrics('check')['accuracy']:.4f}" in short
