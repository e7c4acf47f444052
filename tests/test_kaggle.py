"""Promises about Kaggle, kept by its unmodified client against `kaggle_server.py`."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from kaggle_server import (
    KEY, SECRETS, TOKEN, USER, KaggleServer, after, cut, drip, echo, half, half_and_hang, hang, status)

from pipeline import kaggle_api
from pipeline.files import PipelineError
from pipeline.submissions import find, with_hash

ROOT = Path(__file__).parent.parent
SUBMISSION = b"ImageId,Label\r\n" + b"".join(b"%d,%d\r\n" % (i, i % 10) for i in range(1, 28_001))
DIGEST = hashlib.sha256(SUBMISSION).hexdigest()
HASH = f"sha256:{DIGEST[:16]}"
SMALL = {name: f"{name}, small\n".encode() * 1000
         for name in ("train.csv", "test.csv", "sample_submission.csv")}


def archive(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return packed.getvalue()


@pytest.fixture(scope="session")
def full_archive():
    """The competition's archive at full size; its rows are all alike."""
    pixels = ",".join(f"pixel{i}" for i in range(784))
    row = ",".join(["7"] * 784)
    return archive({
        "train.csv": f"label,{pixels}\n" + f"7,{row}\n" * 42_000,
        "test.csv": f"{pixels}\n" + f"{row}\n" * 28_000,
        "sample_submission.csv": "ImageId,Label\r\n" + "".join(f"{i},0\r\n" for i in range(1, 28_001)),
    })


@pytest.fixture(scope="session")
def forker():
    """What `forked.py` says it is for."""
    with subprocess.Popen([sys.executable, Path(__file__).with_name("forked.py")], text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)},
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def kaggle():
    with KaggleServer() as server:
        server.files["archive.zip"] = archive(SMALL)
        yield server
    assert server.strangers == []


class Project:
    """A project folder with a submission, and the environment of a user with the legacy key."""

    def __init__(self, folder, server, forker):
        self.folder = folder / "project"
        self.forker = forker
        home = folder / "home"
        home.mkdir()
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith("KAGGLE_") and not name.lower().endswith("_proxy")}
        self.environment = {
            **kept, "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "PYTHONPATH": str(ROOT),
            "HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "XDG_CACHE_HOME": str(home),
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "KAGGLE_CONFIG_DIR": str(home / "kaggle"),
            "http_proxy": server.address, "https_proxy": server.address, "no_proxy": "", "NO_PROXY": "",
            "KAGGLE_USERNAME": USER, "KAGGLE_KEY": KEY,
            "NETWORK_TIMEOUT": "10", "NETWORK_BACKOFF": "0.05", "SCORE_POLL": "0.1", "SCORE_DEADLINE": "20",
            "CALL_DEADLINE": "40", "DOWNLOAD_DEADLINE": "40",
        }
        for name in ("submissions", "metrics", "data/raw"):
            (self.folder / name).mkdir(parents=True)
        self.write("submissions/submission.csv", SUBMISSION)
        self.write("params.yaml", (ROOT / "params.yaml").read_bytes())
        self.write_json("data/raw/source.json", {"source": "kaggle", "competition": "digit-recognizer"})
        self.write_json("metrics/folds.json", {"oof_accuracy": 0.99537})
        self.write_json("metrics/check.json", {"accuracy": 0.9961, "contaminated": False})
        self.write_json("metrics/ensemble.json", {
            "expected_public_score": {"score": 0.99537, "interval_95": [0.9938, 0.9968]}})

    def write(self, name, content):
        (self.folder / name).write_bytes(content)

    def write_json(self, name, content):
        self.write(name, json.dumps(content).encode())

    def read_json(self, name):
        return json.loads((self.folder / name).read_bytes())

    def set_download(self, **values):
        text = (self.folder / "params.yaml").read_text()
        for name, value in values.items():
            text = re.sub(rf"(?m)^  {name}: \S+", f"  {name}: {value}", text, count=1)
        self.write("params.yaml", text.encode())

    def variables(self, changes):
        changed = {**self.environment, **changes}
        return {name: value for name, value in changed.items() if value is not None}

    def start(self, *command, **environment):
        return subprocess.Popen([sys.executable, *command], cwd=self.folder, text=True,
                                env=self.variables(environment),
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *command, **environment):
        """Returns (exit status, stdout, stderr), after a look for what must not be there."""
        process = self.start(*command, **environment)
        out, err = process.communicate(timeout=300)
        self.check(out + err)
        return process.returncode, out, err

    def run_code(self, code, **environment):
        """As `run`, of Python code in a process of its own."""
        out, err = (self.folder.parent / name for name in ("out", "err"))
        job = {"code": code, "folder": str(self.folder), "environment": self.variables(environment),
               "out": str(out), "err": str(err)}
        print(json.dumps(job), file=self.forker.stdin, flush=True)
        status = int(self.forker.stdout.readline())
        self.check(out.read_text() + err.read_text())
        return status, out.read_text(), err.read_text()

    def check(self, output):
        assert "Traceback" not in output
        files = [path for path in self.folder.rglob("*") if path.is_file() and path.stat().st_size < 1 << 20]
        for text in [output.encode(), *(path.read_bytes() for path in files)]:
            assert not [secret for secret in SECRETS if secret.encode() in text]

    def stage(self, name, **environment):
        return self.run_code(f"import runpy; runpy.run_module('pipeline.stages.{name}', None, '__main__', "
                             "alter_sys=True)", **environment)

    def succeeds(self, name, **environment):
        code, out, err = self.stage(name, **environment)
        assert code == 0, err
        return out

    def fails(self, name, **environment):
        """The one line that the stage ends with."""
        code, out, err = self.stage(name, **environment)
        *notices, line = err.splitlines()
        assert code == 1 and line.startswith(f"{name}: ")
        assert all(re.search(r"next try in [\d.]+ s$", notice) for notice in notices)
        assert not list(self.folder.rglob(".*"))  # nothing half-written
        return line


@pytest.fixture
def project(tmp_path, kaggle, forker):
    return Project(tmp_path, kaggle, forker)


# Credentials and names


@pytest.mark.parametrize("given", [
    "digit-recognizer", " digit-recognizer ", "https://www.kaggle.com/competitions/digit-recognizer",
    "https://www.kaggle.com/competitions/digit-recognizer/data?select=train.csv",
    "http://kaggle.com/c/digit-recognizer/", "www.kaggle.com/c/digit-recognizer#rules"])
def test_slug_of_an_address(given):
    assert kaggle_api.slug(given) == "digit-recognizer"


@pytest.mark.parametrize("given", ["", "../x", "https://example.com/c/x", "two words", "a/b"])
def test_what_is_no_slug(given):
    with pytest.raises(PipelineError, match="allowed: a competition's slug or address"):
        kaggle_api.slug(given)


def test_credentials_are_found_in_the_order_of_the_client(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("KAGGLE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert kaggle_api.find_credentials() is None
    key = json.dumps({"username": USER, "key": KEY})

    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    file = write("config/kaggle/kaggle.json", key)
    assert kaggle_api.find_credentials() == file
    oauth = write(".kaggle/credentials.json", json.dumps({"refresh_token": TOKEN}))
    assert kaggle_api.find_credentials() == oauth  # now ~/.kaggle is there, and hides ~/.config/kaggle
    file = write(".kaggle/kaggle.json", key)
    assert kaggle_api.find_credentials() == file
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "elsewhere"))
    assert kaggle_api.find_credentials() == oauth
    file = write("elsewhere/kaggle.json", key)
    monkeypatch.setenv("KAGGLE_USERNAME", "")  # a secret that is not set counts as none
    assert kaggle_api.find_credentials() == file
    monkeypatch.setenv("KAGGLE_USERNAME", USER)
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    assert kaggle_api.find_credentials() == "KAGGLE_USERNAME and KAGGLE_KEY"
    token = write(".kaggle/access_token.txt", TOKEN)
    assert kaggle_api.find_credentials() == token
    token = write(".kaggle/access_token", TOKEN)
    assert kaggle_api.find_credentials() == token
    monkeypatch.setenv("KAGGLE_API_TOKEN", write("empty", ""))
    assert kaggle_api.find_credentials() == "KAGGLE_USERNAME and KAGGLE_KEY"
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    assert kaggle_api.find_credentials() == "KAGGLE_API_TOKEN"
    assert "kaggle" not in sys.modules


NO_KEY = {"KAGGLE_USERNAME": None, "KAGGLE_KEY": None}


@pytest.mark.parametrize("where", ["KAGGLE_API_TOKEN", "a file it names", ".kaggle/access_token",
                                   "kaggle/kaggle.json", ".kaggle/credentials.json"])
def test_each_kind_of_credentials_signs_in(project, kaggle, where):
    home = Path(project.environment["HOME"])
    environment = dict(NO_KEY)
    if where == "KAGGLE_API_TOKEN":
        environment[where] = TOKEN
    else:
        file = home / ("token" if where == "a file it names" else where)
        file.parent.mkdir(exist_ok=True)
        file.write_text({
            "kaggle.json": json.dumps({"username": USER, "key": KEY}),
            "credentials.json": json.dumps({"refresh_token": "x", "access_token": TOKEN,
                                            "access_token_expiration": "2999-01-01T00:00:00+00:00"}),
        }.get(file.name, TOKEN))
        if file.name == "token":
            environment["KAGGLE_API_TOKEN"] = str(file)
        elif file.name == "kaggle.json":
            environment.update({"KAGGLE_USERNAME": "", "KAGGLE_KEY": ""})
    kaggle.add("the first")
    assert "the first" in project.succeeds("submissions", **environment)


def test_without_credentials_all_ways_to_give_them_are_named(project, kaggle):
    line = project.fails("submit", **NO_KEY)
    for way in ("KAGGLE_API_TOKEN", "access_token", "KAGGLE_KEY", "kaggle.json", "kaggle auth login"):
        assert way in line
    assert kaggle.calls == []


@pytest.mark.parametrize("introspected", [True, False])
def test_stale_token_that_beats_a_good_key(project, kaggle, introspected):
    if not introspected:
        kaggle.faults["IntrospectToken"] = [status(400, "expired")]
    line = project.fails("submit", KAGGLE_API_TOKEN="stale-" + TOKEN)
    assert "of KAGGLE_API_TOKEN, which come before those of KAGGLE_USERNAME and KAGGLE_KEY" in line
    assert kaggle.sent() == []


def test_expired_login(project, kaggle):
    file = Path(project.environment["HOME"]) / ".kaggle/credentials.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"refresh_token": "made-up"}))
    kaggle.faults["GenerateAccessToken"] = [status(401)]
    assert f"Kaggle refuses the credentials of {file}: " in project.fails("submit", **NO_KEY)


# Download


def test_download_of_the_archive(project, kaggle, full_archive):
    kaggle.files["archive.zip"] = full_archive
    shutil.rmtree(project.folder / "data/raw")
    project.set_download(competition="https://www.kaggle.com/c/digit-recognizer/data")
    project.succeeds("download")
    raw = project.folder / "data/raw"
    assert sorted(path.name for path in raw.iterdir()) == [
        "sample_submission.csv", "source.json", "test.csv", "train.csv"]
    origin = project.read_json("data/raw/source.json")
    assert (origin["source"], origin["competition"]) == ("kaggle", "digit-recognizer")
    assert [name for name, _ in kaggle.calls] == ["DownloadDataFiles", "storage"]


def download(project, before="", **environment):
    """`kaggle_api.download` alone, with an error as a stage prints it; the files it leaves."""
    (project.folder / "new").mkdir()
    code, _, err = project.run_code(f"""
import sys
from pipeline import kaggle_api
from pipeline.files import PipelineError
{before}
try:
    kaggle_api.download("digit-recognizer", "new")
except PipelineError as error:
    sys.exit(f"download: {{error}}")""", **environment)
    assert code in (0, 1), err
    return err, {path.name: path.read_bytes() for path in (project.folder / "new").iterdir()}


@pytest.mark.parametrize("first", [status(404), status(500)])
def test_download_of_single_files_where_there_is_no_archive(project, kaggle, first):
    kaggle.faults["DownloadDataFiles"] = [first] * 4
    kaggle.files = {**SMALL, "train.csv.zip": archive({"train.csv": SMALL["train.csv"]})}
    del kaggle.files["train.csv"]
    assert download(project)[1] == SMALL


@pytest.mark.parametrize("fault", [half, status(503), cut, status(429, headers={"Retry-After": "1"})])
def test_download_goes_on_after_a_fault(project, kaggle, fault):
    kaggle.faults["storage"] = [fault]
    assert download(project)[1] == SMALL
    assert kaggle.count("storage") == 2


@pytest.mark.parametrize("fault", [half, half_and_hang, drip])
def test_download_that_never_ends_is_given_up(project, kaggle, fault):
    kaggle.faults["storage"] = [fault] * 9
    before = sorted(project.folder.rglob("*"))
    project.set_download(source="kaggle")
    line = project.fails("download", NETWORK_TIMEOUT="1", DOWNLOAD_DEADLINE="2")
    assert "not finished within 2 s" in line
    assert sorted(project.folder.rglob("*")) == before


@pytest.mark.parametrize("call", ["IntrospectToken", "ListSubmissions"])
def test_call_that_never_ends_is_given_up(project, kaggle, call):
    kaggle.faults[call] = [drip] * 9
    line = project.fails("submit", KAGGLE_API_TOKEN=TOKEN, CALL_DEADLINE="1")
    assert line == "submit: Kaggle: not finished within 1 s; run it again"


def test_download_from_a_slow_server(project, kaggle):
    kaggle.faults["DownloadDataFiles"] = [hang]
    err, files = download(project, NETWORK_TIMEOUT="0.5")
    assert err == "download: no answer from localhost within 0.5 s; run it again\n" and not files


@pytest.mark.parametrize("name, problem", [
    ("../outside.csv", "would be written outside of the folder"),
    ("/outside.csv", "would be written outside of the folder"),
])
def test_archive_that_would_leave_the_folder(project, kaggle, name, problem):
    kaggle.files["archive.zip"] = archive({**SMALL, name: b"x"})
    err, files = download(project)
    assert problem in err and not files


def test_download_beyond_all_bounds(project, kaggle):
    kaggle.files["archive.zip"] = os.urandom(5000)
    err, files = download(project, "kaggle_api.LARGEST_MEMBER = 4000")
    assert "localhost sends more than 4000 bytes" in err and not files


@pytest.mark.parametrize("fault, problem", [
    (status(401), "refuses the credentials of KAGGLE_USERNAME and KAGGLE_KEY: "),
    (status(403), "accept the rules at https://www.kaggle.com/competitions/digit-recognizer/rules"),
    (status(404), "is 'digit-recognizer' the right competition? download.competition in params.yaml"),
    (status(429, headers={"Retry-After": "3600"}), "too many requests; run it again in 3600 s"),
    (status(500, "out of order"), "answered 500 (out of order): the trouble is there"),
    (cut, "the connection to localhost failed"),
], ids=["401", "403", "404", "429", "500", "cut"])
def test_download_refused(project, kaggle, fault, problem):
    kaggle.faults = {"DownloadDataFiles": [fault] * 4, "DownloadDataFile": [fault] * 4}
    err, files = download(project)
    assert problem in err.splitlines()[-1] and not files


def test_damaged_archive(project, kaggle):
    kaggle.files["archive.zip"] = archive(SMALL)[:-100]
    err, files = download(project)
    assert "is not a whole zip archive" in err and not files


# Submit


def test_submit(project, kaggle):
    out = project.succeeds("submit")
    assert "9 submissions left today" in out and "public score 0.99532, expected was 0.99537" in out
    assert [name for name, _ in kaggle.calls if name != "ListSubmissions"] == [
        "GetSubmissionLimits", "StartSubmissionUpload", "upload", "CreateSubmission"]
    assert kaggle.uploads == [SUBMISSION]
    assert kaggle.sent() == [f"{HASH} no commit, oof 0.99537, clean MNIST 0.99610"]
    score = project.read_json("submissions/score.json")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", score.pop("submitted"))
    assert score == {
        "reference": 1000, "status": "COMPLETE", "public_score": 0.99532, "expected_score": 0.99537,
        "expected_interval_95": [0.9938, 0.9968], "sha256": DIGEST}
    header, row = (project.folder / "submissions/history.csv").read_text().splitlines()
    assert header == "submitted,reference,sha256,message,status,public_score"
    assert row.endswith('clean MNIST 0.99610",COMPLETE,0.99532') and f",1000,{DIGEST}," in row


def test_message_names_the_commit_and_whether_the_code_differs_from_it(project, kaggle):
    git = ["git", "-C", project.folder, "-c", "user.name=x", "-c", "user.email=x@example.com"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "params.yaml"], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], stdout=-1, text=True).stdout.strip()
    (project.folder / "metrics/folds.json").write_text("{}")
    assert "folds.json has no 'oof_accuracy'" in project.succeeds("submit")
    project.set_download(source="kaggle")
    project.succeeds("submit", RESUBMIT="1")
    assert kaggle.sent() == [f"{HASH} {commit}, clean MNIST 0.99610",
                             f"{HASH} {commit}-dirty, clean MNIST 0.99610"]


def test_own_message_and_resubmission(project, kaggle):
    project.succeeds("submit", MESSAGE="my best\nyet")
    assert "with Kaggle as submission 1000" in project.succeeds("submit", MESSAGE="again")
    assert kaggle.sent() == [f"{HASH} my best yet"]
    project.succeeds("submit", MESSAGE="again", RESUBMIT="1")
    assert kaggle.sent() == [f"{HASH} my best yet", f"{HASH} again"]
    assert project.read_json("submissions/score.json")["reference"] == 1001
    assert len((project.folder / "submissions/history.csv").read_text().splitlines()) == 3


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
    code, out, _ = project.run("-m", "kaggle", "competitions", "submit", "-c", "digit-recognizer",
                               "-f", "submissions/submission.csv", "-m", f"by hand {DIGEST[:12]}")
    assert code == 0 and "Successfully submitted" in out
    project.succeeds("submit")
    assert kaggle.sent() == [f"by hand {DIGEST[:12]}"]
    assert "by hand" in (project.folder / "submissions/history.csv").read_text()


@pytest.mark.parametrize("source, problem", [
    ({"source": "mnist", "competition": None}, "made from the MNIST stand-in"),
    ({"source": "kaggle", "competition": "titanic"}, "made from the data of 'titanic'"),
    ({}, "does not tell where the data come from"),
])
def test_submission_from_other_data_is_refused(project, kaggle, source, problem):
    project.write_json("data/raw/source.json", source)
    assert problem in project.fails("submit")
    assert kaggle.calls == []


def test_submission_that_is_not_valid_is_refused(project, kaggle):
    project.write("submissions/submission.csv", SUBMISSION[:-9])
    assert "27999 rows, expected 28000" in project.fails("submit")
    assert kaggle.calls == []


@pytest.mark.parametrize("limits, problem", [
    ({"numToday": 5, "numTotal": 30}, r"no submissions left today \(5 were made\).* 00:00 UTC"),
    ({"numToday": 1, "numTotal": 99, "limitedByTotal": True}, "no submissions left: 99 were made"),
])
def test_no_submissions_left(project, kaggle, limits, problem):
    kaggle.limits = limits
    assert re.search(problem, project.fails("submit"))
    assert kaggle.count("StartSubmissionUpload") == 0


def test_first_submission_ever(project, kaggle):
    kaggle.limits = {}
    project.succeeds("submit")
    assert len(kaggle.sent()) == 1


@pytest.mark.parametrize("call, faults, problem, sent", [
    ("ListSubmissions", [status(404)], "is 'digit-recognizer' the right competition?", 0),
    ("ListSubmissions", [status(401)], "refuses the credentials of KAGGLE_USERNAME and KAGGLE_KEY: ", 0),
    ("ListSubmissions", [hang], "no answer from localhost within 1 s; run it again", 0),
    ("ListSubmissions", [lambda handler: handler.answer({"submissions": [{"status": "NEW"}]})],
     "what Kaggle sent cannot be used", 0),
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
])
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


def test_passing_trouble_is_waited_out(project, kaggle):
    kaggle.faults = {"ListSubmissions": [status(429, headers={"Retry-After": "1"}), cut],
                     "GetSubmissionLimits": [status(502)], "StartSubmissionUpload": [status(503)],
                     "upload": [status(503), cut]}
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
    listed = [kaggle_api.Submission(reference, "", with_hash("x", DIGEST), "ERROR", None, "")
              for reference in (5, 9, 7)]
    assert find(listed, DIGEST, {}).reference == 9
    assert find(listed, "0" * 64, {}) is None


def test_submissions_beside_what_kaggle_lists(project, kaggle):
    kaggle.add("by a colleague", status="ERROR", publicScore="", errorDescription="bad ids")
    kaggle.new = {"status": "PENDING"}
    project.fails("submit", SCORE_DEADLINE="0.1", MESSAGE="mine")
    kaggle.submissions[0].update({"status": "COMPLETE", "publicScore": "0.9951"})
    lines = [re.sub(r"\d{4}-\S+Z", "DATE", line).split()
             for line in project.succeeds("submissions").splitlines()]
    assert lines[1:] == ["1000 DATE - ERROR by a colleague bad ids".split(),
                         f"1001 DATE PENDING COMPLETE 0.9951 {HASH} mine".split()]
    code, out, err = project.stage("submissions", **NO_KEY)
    assert code == 1 and err.count("\n") == 1 and "no Kaggle credentials" in err and "1001" in out


def test_verbose_does_not_print_credentials(project, kaggle):
    project.succeeds("submit", VERBOSE="1")  # `run` looks for them


def test_wait_that_is_no_number(project, kaggle):
    assert "NETWORK_TIMEOUT is 'soon', allowed: " in project.fails("submit", NETWORK_TIMEOUT="soon")
