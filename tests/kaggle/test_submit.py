"""Promises about submissions, kept by the unmodified client against `kaggle_server.py`."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from kaggle_server import after, cut, echo, hang, no_fault, status
from project import DIGEST, HASH, ROOT, SUBMISSION


def test_submit(project, kaggle):
    out = project.succeeds("submit")
    assert "9 submissions left today" in out and "public score 0.99532, expected was 0.99537" in out
    assert [name for name, _ in kaggle.calls if name != "ListSubmissions"] == [
        "GetSubmissionLimits",
        "StartSubmissionUpload",
        "upload",
        "CreateSubmission",
    ]
    assert kaggle.uploads == [SUBMISSION]
    assert kaggle.sent() == [f"{HASH} no commit, oof 0.99537, clean MNIST 0.99610"]
    score = project.read_json("submissions/score.json")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", score.pop("submitted"))
    assert score == {
        "reference": 1000,
        "status": "COMPLETE",
        "public_score": 0.99532,
        "expected_score": 0.99537,
        "expected_interval_95": [0.9938, 0.9968],
        "sha256": DIGEST,
    }
    header, row = (project.folder / "submissions/history.csv").read_text().splitlines()
    assert header == "submitted,reference,sha256,message,status,public_score"
    assert row.endswith('clean MNIST 0.99610",COMPLETE,0.99532') and f",1000,{DIGEST}," in row


def test_message_names_the_commit_and_whether_the_code_differs_from_it(project, kaggle):
    git = ["git", "-C", project.folder, "-c", "user.name=x", "-c", "user.email=x@example.com"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "params.yaml"], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], stdout=-1, text=True).stdout.strip()
    (project.folder / "metrics/oof.json").write_text("{}")
    assert "oof.json has no 'accuracy'" in project.succeeds("submit")
    project.set_download(source="kaggle")
    project.succeeds("submit", RESUBMIT="1")
    assert kaggle.sent() == [
        f"{HASH} {commit}, clean MNIST 0.99610",
        f"{HASH} {commit}-dirty, clean MNIST 0.99610",
    ]


def test_own_message_and_resubmission(project, kaggle):
    project.succeeds("submit", MESSAGE="my best\nyet")
    assert "with Kaggle as submission 1000" in project.succeeds("submit", MESSAGE="again")
    assert kaggle.sent() == [f"{HASH} my best yet"]
    project.succeeds("submit", MESSAGE="again", RESUBMIT="1")
    assert kaggle.sent() == [f"{HASH} my best yet", f"{HASH} again"]
    assert project.read_json("submissions/score.json")["reference"] == 1001
    assert len((project.folder / "submissions/history.csv").read_text().splitlines()) == 3


@pytest.mark.slow
def test_dvc_does_not_send_the_same_bytes_again(project, kaggle):
    shutil.copy(ROOT / "submissions/dvc.yaml", project.folder / "submissions")
    (project.folder / ".dvc/tmp").mkdir(parents=True)
    project.write(".dvc/config", b"[core]\nanalytics = false\ncheck_update = false\nno_scm = true\n")
    repro = ["-m", "dvc", "repro", "submissions/dvc.yaml"]
    kaggle.faults["StartSubmissionUpload"] = [status(403)]
    assert project.run(*repro)[0] != 0
    assert not (project.folder / "submissions/score.json").exists()
    assert project.run(*repro)[0] == 0
    assert project.run(*repro, "-f")[0] == 0
    assert len(kaggle.sent()) == 1
    assert project.run(*repro, "-f", RESUBMIT="1")[0] == 0
    assert len(kaggle.sent()) == 2
    assert project.read_json("submissions/score.json")["reference"] == 1001
    assert (project.folder / "submissions/history.csv").read_text().count(DIGEST) == 2


def test_plain_client_with_the_hash_in_the_message_counts(project, kaggle):
    code, out, _ = project.run(
        "-m",
        "kaggle",
        "competitions",
        "submit",
        "-c",
        "digit-recognizer",
        "-f",
        "submissions/submission.csv",
        "-m",
        f"by hand {DIGEST[:12]}",
    )
    assert code == 0 and "Successfully submitted" in out
    project.succeeds("submit")
    assert kaggle.sent() == [f"by hand {DIGEST[:12]}"]
    assert "by hand" in (project.folder / "submissions/history.csv").read_text()


@pytest.mark.parametrize(
    "source, problem",
    [
        ({"source": "mnist", "seed": 1}, "made from the MNIST stand-in"),
        ({"source": "kaggle", "competition": "titanic"}, "made from the data of 'titanic'"),
        ({}, "does not name its source"),
    ],
)
def test_submission_from_other_data_is_refused(project, kaggle, source, problem):
    project.write_json("data/raw/source.json", source)
    assert problem in project.fails("submit")
    assert kaggle.calls == []


def test_submission_that_is_not_valid_is_refused(project, kaggle):
    project.write("submissions/submission.csv", SUBMISSION[:-9])
    assert "27999 rows, expected 28000" in project.fails("submit")
    assert kaggle.calls == []


@pytest.mark.parametrize(
    "limits, problem",
    [
        ({"numToday": 5, "numTotal": 30}, r"no submissions left today \(5 were made\).* 00:00 UTC"),
        ({"numToday": 1, "numTotal": 99, "limitedByTotal": True}, "no submissions left: 99 were made"),
    ],
)
def test_no_submissions_left(project, kaggle, limits, problem):
    kaggle.limits = limits
    assert re.search(problem, project.fails("submit"))
    assert kaggle.count("StartSubmissionUpload") == 0


def test_first_submission_ever(project, kaggle):
    kaggle.limits = {}
    project.succeeds("submit")
    assert len(kaggle.sent()) == 1


@pytest.mark.parametrize(
    "call, faults, problem, sent",
    [
        ("ListSubmissions", [status(404)], "is 'digit-recognizer' the right competition?", 0),
        ("ListSubmissions", [status(401)], "refuses the credentials of KAGGLE_USERNAME and KAGGLE_KEY: ", 0),
        ("ListSubmissions", [hang], "no answer from localhost within 1 s; run it again", 0),
        (
            "ListSubmissions",
            [lambda handler: handler.answer({"submissions": [{"status": "NEW"}]})],
            "what Kaggle sent cannot be used",
            0,
        ),
        ("StartSubmissionUpload", [status(403, "You must accept")], r"You must accept.*recognizer/rules", 0),
        ("StartSubmissionUpload", [status(500)] * 4, "answered 500.*run it again later$", 0),
        ("StartSubmissionUpload", [hang], "no answer from localhost within 1 s; run it again$", 0),
        ("upload", [status(403)], "the upload failed: localhost answered 403; nothing was submitted", 0),
        ("upload", [status(503)] * 4, "the upload failed: localhost answered 503", 0),
        ("upload", [cut] * 4, "the upload failed: the connection to localhost failed; nothing", 0),
        ("upload", [hang], "the upload failed: no answer from localhost within 1 s; nothing", 0),
        ("StartSubmissionUpload", [echo], r"\(you are Basic \*\*\*, \*\*\*\)", 0),
        ("CreateSubmission", [status(400, "Submission not allowed")], r"400 \(Submission not allowed\)", 1),
        ("CreateSubmission", [status(429, headers={"Retry-After": "9"})], "run it again in 9 s", 1),
        ("CreateSubmission", [status(500)], "answered 500.* is not settled: `make submissions`", 1),
        ("CreateSubmission", [cut], "connection to localhost failed.* is not settled", 1),
        ("CreateSubmission", [hang], "no answer from localhost within 1 s.* is not settled", 1),
        ("CreateSubmission", [lambda handler: handler.answer({"message": "hm"})], r"\(hm\).* not settled", 1),
    ],
)
def test_submission_that_did_not_happen(project, kaggle, call, faults, problem, sent):
    kaggle.faults[call] = faults
    timeout = "1" if hang in faults else "10"
    assert re.search(problem, project.fails("submit", NETWORK_TIMEOUT=timeout))
    assert len(kaggle.sent()) == sent and not kaggle.submissions
    assert not (project.folder / "submissions/score.json").exists()
    assert not (project.folder / "submissions/history.csv").exists()
    if "not settled" in problem:
        project.succeeds("submit")
        assert len(kaggle.submissions) == 1 and kaggle.uploads[-1] == SUBMISSION


@pytest.mark.parametrize("fault", [cut, status(500), hang])
def test_submission_that_happened_though_the_answer_was_lost(project, kaggle, fault):
    kaggle.faults["CreateSubmission"] = [after(fault)]
    project.succeeds("submit", NETWORK_TIMEOUT="1")
    assert len(kaggle.sent()) == 1
    assert project.read_json("submissions/score.json")["public_score"] == 0.99532


@pytest.mark.slow
def test_passing_trouble_is_waited_out(project, kaggle):
    kaggle.faults = {
        "ListSubmissions": [status(429, headers={"Retry-After": "1"}), cut],
        "GetSubmissionLimits": [status(502)],
        "StartSubmissionUpload": [status(503)],
        "upload": [status(503), cut],
    }
    project.succeeds("submit")
    assert kaggle.times[1] - kaggle.times[0] >= 1
    assert kaggle.uploads == [SUBMISSION] and len(kaggle.sent()) == 1


def test_score_that_is_late_is_picked_up_later(project, kaggle):
    kaggle.new = {"status": "PENDING"}
    line = project.fails("submit", SCORE_DEADLINE="0.5")
    assert "no score after 0.5 s" in line and "picks it up without sending again" in line
    assert "PENDING," in (project.folder / "submissions/history.csv").read_text()
    kaggle.submissions[0].update({"status": "COMPLETE"})  # Kaggle's score may come after its status
    project.fails("submit", SCORE_DEADLINE="0.5")
    kaggle.submissions[0].update({"publicScore": "0.9953"})
    project.succeeds("submit")
    assert len(kaggle.sent()) == 1
    assert project.read_json("submissions/score.json")["public_score"] == 0.9953


def test_kaggle_could_not_score_it(project, kaggle):
    kaggle.new = {"status": "ERROR", "errorDescription": "Evaluation\nException: bad ids"}
    for _ in range(2):
        assert "could not score submission 1000: Evaluation Exception: bad ids" in project.fails("submit")
    assert len(kaggle.sent()) == 1
    assert not (project.folder / "submissions/score.json").exists()
    assert ",ERROR," in (project.folder / "submissions/history.csv").read_text()


def kill_when(condition, process):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("moment, sent", [("before", 2), ("at", 1), ("after", 1)])
def test_kill_between_upload_and_score(project, kaggle, moment, sent):
    """Before Kaggle takes the submission, when it has but did not say so, and when it has said so."""
    kaggle.new = {"status": "PENDING"}
    kaggle.faults["CreateSubmission"] = {"before": [hang], "at": [after(hang)], "after": []}[moment]
    process = project.start("-m", "pipeline.stages.submit")
    asked = "ListSubmissions" if moment == "after" else "CreateSubmission"
    kill_when(lambda: kaggle.sent() and kaggle.calls[-1][0] == asked, process)
    kaggle.new = {"status": "COMPLETE", "publicScore": "0.9"}
    for submission in kaggle.submissions:
        submission.update(kaggle.new)
    project.succeeds("submit")
    assert len(kaggle.sent()) == sent and len(kaggle.submissions) == 1
    assert project.read_json("submissions/score.json")["public_score"] == 0.9
    assert (project.folder / "submissions/history.csv").read_text().count(DIGEST) == 1


def test_verbose_does_not_print_credentials(project, kaggle):
    project.succeeds("submit", VERBOSE="1")  # `run` looks for them


def test_wait_that_is_no_number(project, kaggle):
    assert "NETWORK_TIMEOUT is 'soon', allowed: " in project.fails("submit", NETWORK_TIMEOUT="soon")


def test_errors_are_short_whatever_kaggle_says(project, kaggle):
    long = "no reason at all, " * 99
    for code in (400, 403, 404, 429, 500):
        kaggle.faults["CreateSubmission"] = [status(code, long)]
        project.fails("submit")  # `fails` looks for the length
    kaggle.new = {"status": "ERROR", "errorDescription": long}
    project.fails("submit")
    kaggle.submissions[0]["status"] = "PENDING"
    kaggle.faults["ListSubmissions"] = [no_fault, no_fault, status(403, long)]
    assert "score could not be asked for" in project.fails("submit")
    project.set_download(competition="x" * 80)
    project.write_json("data/raw/source.json", {"source": "kaggle", "competition": "x" * 80})
    kaggle.faults["ListSubmissions"] = [status(403, long)]
    assert f"/{'x' * 80}/rules" in project.fails("submit")
    project.set_download(competition="y" * 999)
    project.fails("submit")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["submit", "submissions"])
def test_log_files_have_no_colours(project, kaggle, stage):
    kaggle.new = {"status": "PENDING"}
    _, out, err = project.run(
        "-m",
        f"pipeline.stages.{stage}",
        SCORE_DEADLINE="0.3",
        FORCE_COLOR="1",
        TTY_COMPATIBLE="1",
        CLICOLOR_FORCE="1",
    )
    assert "\x1b" not in out + err


@pytest.mark.slow
def test_progress_is_shown_in_a_terminal(project, kaggle):
    kaggle.new = {"status": "PENDING"}
    here, there = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.stages.submit"],
        cwd=project.folder,
        stderr=there,
        env=project.variables({"SCORE_DEADLINE": "0.5", "TERM": "xterm"}),
        stdout=subprocess.DEVNULL,
    ):
        os.close(there)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux reports that the other end is closed
            while part := os.read(here, 4096):
                shown += part
    os.close(here)
    assert b"submission 1000" in shown and b"\x1b[" in shown


@pytest.mark.slow
@pytest.mark.parametrize("message", ["größer", b"gr\xf6\xdfer", "größer \N{SNOWMAN}"])
def test_message_that_the_terminal_cannot_show(project, kaggle, message):
    kaggle.new = {"status": "PENDING"}
    command = ["-m", "pipeline.stages.submit"]
    options = {"MESSAGE": message, "PYTHONIOENCODING": "ascii", "SCORE_DEADLINE": "0.1"}
    code, out, _ = project.run(*command, **options)
    assert code == 1 and "sent as submission 1000: " in out and "gr??er" in out
    assert len((project.folder / "submissions/history.csv").read_bytes().splitlines()) == 2
    code, out, _ = project.run("-m", "pipeline.stages.submissions", **options)
    assert code == 0 and "gr??er" in out


@pytest.mark.slow
def test_submission_is_recorded_before_it_is_told(project, kaggle):
    """Nobody reads the output any more: the stage fails as it tells, after it has recorded."""
    process = project.start("-m", "pipeline.stages.submit", PYTHONUNBUFFERED="1")
    while b"left today" not in process.stdout.buffer.readline():
        pass
    process.stdout.close()
    process.wait()
    assert len(kaggle.sent()) == 1
    assert ",1000," in (project.folder / "submissions/history.csv").read_text()
