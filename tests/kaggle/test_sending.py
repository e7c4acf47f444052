"""Submissions and their history, with the unmodified client."""

import json
import re
import shutil
import time

import pytest
from helpers import ROOT
from kaggle_server import DIGEST, SUBMISSION, after, cut, hang, page, status

from pipeline.files import PipelineError
from pipeline.kaggle import api
from pipeline.kaggle.history import Submission, find, read_history
from pipeline.kaggle.sending import check_origin, send_once

SLUG = "digit-recognizer"
HASH = f"sha256:{DIGEST[:16]}"


@pytest.fixture
def send(user, tmp_path):
    """The function `send_once` for the file `submission.csv` in the user's folder."""
    (tmp_path / "submission.csv").write_bytes(SUBMISSION)

    def send(message="mine", **options):
        return send_once(SLUG, tmp_path / "submission.csv", message, tmp_path / "history.csv", **options)

    return send


def test_stage(project, kaggle):
    assert "public score 0.99532, expected was 0.99537" in project.stage("submit")
    assert [name for name, _ in kaggle.calls] == [
        "ListSubmissions", "StartSubmissionUpload", "upload", "CreateSubmission", "ListSubmissions",
        "ListCompetitions"]  # fmt: skip
    assert kaggle.uploads == [SUBMISSION]
    assert kaggle.sent() == [f"{HASH} no commit, expected 0.99537, clean test 0.99610"]
    score = json.loads((project.folder / "submissions/score.json").read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", score.pop("submitted"))
    assert score == {
        "reference": 1000,
        "status": "COMPLETE",
        "public_score": 0.99532,
        "rank": 7,
        "expected_score": 0.99537,
        "expected_interval_95": [0.9938, 0.9968],
        "sha256": DIGEST,
    }
    header, row = (project.folder / "submissions/history.csv").read_text().splitlines()
    assert header == "submitted,reference,sha256,message,status,public_score"
    assert row.endswith('clean test 0.99610",COMPLETE,0.99532') and f",1000,{DIGEST}," in row
    assert "not sent again" in project.stage("submit", MESSAGE="again")
    project.stage("submit", MESSAGE="my best\nyet \N{SNOWMAN}", RESUBMIT="1")
    assert kaggle.sent()[1:] == [f"{HASH} my best yet \N{SNOWMAN}"]
    output = project.stage("submissions")
    assert re.search("history.csv:\n.*\n.*1000.*\n.*1001.*my best.*\nKaggle:\n.*\n *1001 .*my best", output)


def test_dvc_does_not_send_the_same_bytes_again(project, kaggle):
    shutil.copy(ROOT / "submissions/dvc.yaml", project.folder / "submissions")
    (project.folder / ".dvc").mkdir()
    config = "[core]\nanalytics = false\ncheck_update = false\nno_scm = true\n"
    (project.folder / ".dvc/config").write_text(config)
    repro = ["-m", "dvc", "repro", "submissions/dvc.yaml"]
    assert project.run(*repro)[0] == 0
    assert project.run(*repro, "-f")[0] == 0
    assert len(kaggle.sent()) == 1
    assert json.loads((project.folder / "submissions/score.json").read_text())["reference"] == 1000


def test_plain_client_with_the_hash_in_the_message_counts(project, kaggle, send):
    message = f"{HASH} by hand"
    command = f"-m kaggle competitions submit -c {SLUG} -f submissions/submission.csv -m".split()
    code, output = project.run(*command, message, NETRC="/dev/null")
    assert code == 0 and "Successfully submitted" in output
    assert send().message == message and len(kaggle.sent()) == 1


def test_submission_of_a_limited_run_is_refused(project, kaggle):
    (project.folder / "submissions/submission.csv").write_bytes(SUBMISSION[:-9])
    with pytest.raises(PipelineError, match=r"submission\.csv: lacks the id 28000"):
        project.stage("submit")
    assert kaggle.calls == []


@pytest.mark.parametrize(
    "origin, problem",
    [
        ({"source": "mnist", "competition": SLUG}, r"but from mnist \(digit-recognizer\)"),
        ({"source": "mnist-60k", "competition": SLUG}, r"but from mnist-60k \(digit-recognizer\)"),
        ({"source": "folder", "competition": "Kannada-MNIST"}, r"but from folder \(Kannada-MNIST\)"),
    ],
)
def test_submission_from_other_data_is_refused(origin, problem):
    check_origin({"source": "folder", "competition": SLUG}, SLUG)
    with pytest.raises(PipelineError, match=problem):
        check_origin(origin, SLUG)


@pytest.mark.parametrize(
    "call, fault, problem",
    [
        ("ListSubmissions", status(404), "is 'digit-recognizer' the right competition"),
        ("StartSubmissionUpload", status(403, "You must accept"), r"\(You must accept\): accept the rules"),
        ("StartSubmissionUpload", hang, "nothing was submitted: no answer from localhost"),
        ("upload", status(403), "nothing was submitted: storage.test answered 403"),
        ("upload", status(503), "nothing was submitted: storage.test answered 503"),
        ("upload", cut, "nothing was submitted: the connection to storage.test failed"),
        ("upload", hang, "nothing was submitted: no answer from storage.test"),
        ("CreateSubmission", status(400, "No submissions left"), r"nothing .* 400 \(No submissions left\)"),
        ("CreateSubmission", status(429), "nothing was submitted: .* too many requests"),
        ("CreateSubmission", status(500), "Kaggle does not list the submission so far"),
        ("CreateSubmission", cut, "connection to localhost failed.* does not list the submission so far"),
        ("CreateSubmission", hang, "no answer from localhost.* does not list the submission so far"),
        ("CreateSubmission", page, "received a web page .* does not list the submission so far"),
        ("CreateSubmission", lambda handler: handler.answer({"message": "hm"}),
         r"no number for the submission \(hm\).* not"),
    ],
)  # fmt: skip
def test_submission_that_did_not_happen(kaggle, send, tmp_path, monkeypatch, call, fault, problem):
    monkeypatch.setattr(api, "TIMEOUT", 0.3 if fault is hang else 5)
    kaggle.faults[call] = [fault]
    with pytest.raises(PipelineError, match=problem):
        send()
    assert kaggle.count("CreateSubmission") == (call == "CreateSubmission") and not kaggle.submissions
    assert not (tmp_path / "history.csv").exists()
    send()
    assert len(kaggle.submissions) == 1 and kaggle.uploads[-1] == SUBMISSION


@pytest.mark.parametrize("fault", [cut, status(500), hang, page, lambda handler: handler.answer({})])
def test_lost_answer_is_looked_up(kaggle, send, monkeypatch, fault):
    monkeypatch.setattr(api, "TIMEOUT", 0.3)
    kaggle.add(f"{HASH} the same bytes, sent before")
    kaggle.faults["CreateSubmission"] = [after(fault)]
    assert send(resubmit=True).reference == 1001
    assert len(kaggle.sent()) == 1


def test_late_score_is_picked_up_later(kaggle, send, tmp_path, capfd):
    kaggle.new = {"status": "PENDING"}
    with pytest.raises(PipelineError, match=r"no score after 0.3 s; `make submit` waits again"):
        send()
    assert read_history(tmp_path / "history.csv")["status"].tolist() == ["PENDING"]
    kaggle.submissions[0].update({"status": "COMPLETE"})  # the score may come after the status
    kaggle.faults["ListSubmissions"] = [lambda handler: handler.answer(handler.take())] + [status(500)] * 99
    with pytest.raises(PipelineError, match=r"no score after 0.3 s"):
        send()
    assert "submit: localhost answered 500 (so it is): run it again later\n" in capfd.readouterr().out
    kaggle.faults.clear()
    kaggle.submissions[0].update({"publicScore": "0.9953"})
    assert send().public_score == 0.9953
    assert len(kaggle.sent()) == 1


def test_kaggle_could_not_score_it(kaggle, send, tmp_path):
    kaggle.new = {"status": "ERROR", "errorDescription": "Evaluation\nException: bad ids"}
    for _ in range(2):
        with pytest.raises(PipelineError, match="submission 1000: Evaluation Exception: bad ids"):
            send()
    assert len(kaggle.sent()) == 1
    assert read_history(tmp_path / "history.csv")["status"].tolist() == ["ERROR"]


def test_kill_before_the_answer_to_a_submission(project, kaggle):
    kaggle.faults["CreateSubmission"] = [after(hang)]
    process = project.start("-m", "pipeline.stages.submit")
    deadline = time.monotonic() + 60
    while not kaggle.submissions and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    project.stage("submit")
    assert len(kaggle.sent()) == 1
    assert (project.folder / "submissions/history.csv").read_text().count(DIGEST) == 1


def test_history_knows_what_the_message_does_not_tell(kaggle, send):
    send()
    kaggle.submissions[0]["description"] = "edited on the site"
    assert send().reference == 1000
    kaggle.submissions.clear()
    with pytest.raises(PipelineError, match="this file was sent, but Kaggle does not list it"):
        send()
    assert len(kaggle.sent()) == 1


def test_find_takes_the_newest(tmp_path):
    listed = [Submission(reference, "", f"{HASH} x", "ERROR") for reference in (5, 9, 7)]
    history = read_history(tmp_path / "history.csv")
    assert find(listed, DIGEST, history).reference == 9
    assert find(listed, "0" * 64, history) is None


@pytest.mark.parametrize(
    "damage, problem",
    [
        (lambda text: text[:-60], "row 2"),
        (lambda text: text.replace(",1001,", ",1.0E+03,"), "row 2"),
        (lambda text: text.replace(DIGEST, DIGEST[:9]), "row 1"),
        (lambda text: text.replace(",COMPLETE", ",COMPLETE,x"), "row 1"),
        (lambda text: text.replace(",", ";"), ".*submitted"),
        (lambda text: "", "No columns"),
    ],
)
def test_damaged_history(kaggle, send, tmp_path, damage, problem):
    send("a message, with a comma")
    send(resubmit=True)
    history = tmp_path / "history.csv"
    text = history.read_text()
    history.write_text(damage(text))
    with pytest.raises(PipelineError, match=f"history.csv: is damaged: {problem}"):
        send(resubmit=True)
    assert len(kaggle.sent()) == 2
    history.write_bytes(b"\xef\xbb\xbf" + text.encode().replace(b"\n", b"\r\n\r\n"))  # by a spreadsheet
    send()
    assert sorted(history.read_text().splitlines()) == sorted(text.splitlines())
