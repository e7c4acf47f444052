"""Promises about the history of submissions, and about Kaggle's own list."""

import hashlib
import re

import pytest
from project import DIGEST, HASH, NO_KEY

from pipeline.kaggle.submissions import Submission, find, with_hash


@pytest.mark.parametrize("tokens", [True, False])
def test_all_pages_are_searched(project, kaggle, tokens):
    kaggle.add(with_hash("long ago", DIGEST))
    for i in range(10):
        kaggle.add(with_hash(f"other {i}", hashlib.sha256(b"%d" % i).hexdigest()))
    kaggle.page_size, kaggle.tokens = 4, tokens
    project.succeeds("submit")
    assert kaggle.sent() == [] and project.read_json("submissions/score.json")["reference"] == 1000


def test_history_knows_what_the_message_does_not_tell(project, kaggle):
    project.succeeds("submit")
    kaggle.submissions[0]["description"] = "edited on the site"
    project.succeeds("submit")
    kaggle.submissions.clear()
    line = project.fails("submit")
    assert "sent as submission 1000, which Kaggle does not list for the account of KAGGLE_USERNAME" in line
    assert len(kaggle.sent()) == 1


def test_find_takes_the_newest(kaggle):
    listed = [Submission(reference, "", with_hash("x", DIGEST), "ERROR", None, "") for reference in (5, 9, 7)]
    assert find(listed, DIGEST, {}).reference == 9
    assert find(listed, "0" * 64, {}) is None


def test_submissions_beside_what_kaggle_lists(project, kaggle):
    kaggle.add("by a colleague", status="ERROR", publicScore="", errorDescription="bad ids")
    kaggle.new = {"status": "PENDING"}
    project.fails("submit", SCORE_DEADLINE="0.1", MESSAGE="mine")
    kaggle.submissions[0].update({"status": "COMPLETE", "publicScore": "0.9951"})
    lines = [
        re.sub(r"\d{4}-\S+Z", "DATE", line).split() for line in project.succeeds("submissions").splitlines()
    ]
    assert lines[1:] == [
        ["1000", "DATE", "-", "ERROR", "by", "a", "colleague", "bad", "ids"],
        f"1001 DATE PENDING COMPLETE 0.9951 {HASH} mine".split(),
    ]
    code, out, err = project.stage("submissions", **NO_KEY)
    assert code == 1 and err.count("\n") == 1 and "no Kaggle credentials" in err and "1001" in out


@pytest.mark.parametrize(
    "damage, problem",
    [
        (lambda text: text[:-60], r"row 2 is damaged \("),
        (lambda text: re.sub(r",1000,.*", ",1000,", text), r"row 1 is damaged \(it has too few cells"),
        (lambda text: re.sub(r" no commit.*\n", "\n", text, count=1), r"row 1 is damaged \("),
        (lambda text: text.replace(",1001,", ",1.0E+03,"), r"row 2 is damaged \(reference is '1.0E\+03'"),
        (lambda text: text.replace(DIGEST, DIGEST[:9]), r"row 1 is damaged \(sha256 is not 64 hex"),
        (lambda text: text.replace(",COMPLETE", ",COMPLETE,x"), r"row 1 is damaged \(it has too many cells"),
        (lambda text: text.replace(",", ";"), r"must have the columns submitted,.*found 'submitted;ref"),
        (lambda text: "", r"must have the columns submitted,.*, found ''"),
    ],
)
def test_history_edited_by_hand(project, kaggle, damage, problem):
    history = project.folder / "submissions/history.csv"
    project.succeeds("submit")
    project.succeeds("submit", RESUBMIT="1")
    text = history.read_text()
    history.write_text(damage(text))
    for stage in ("submit", "submissions"):
        assert re.search(rf"submissions/history.csv: {problem}", project.fails(stage, RESUBMIT="1"))
    assert len(kaggle.sent()) == 2
    history.write_bytes(b"\xef\xbb\xbf" + text.encode().replace(b"\n", b"\r\n\r\n"))  # by a spreadsheet
    project.succeeds("submit")
    assert history.read_text() == text
