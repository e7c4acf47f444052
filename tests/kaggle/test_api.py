"""Credentials, downloads and failures, with the unmodified client."""

import json

import pytest
import requests
from helpers import zipped
from kaggle_server import KEY, PAGE, TOKEN, USER, cut, half, hang, page, status

from pipeline.competition import COMPETITIONS
from pipeline.files import PipelineError
from pipeline.kaggle import api

SLUG = "digit-recognizer"
KEY_FILE = json.dumps({"username": USER, "key": KEY})
LOGIN = {"refresh_token": "x", "access_token": TOKEN, "access_token_expiration": "2999-01-01T00:00:00+00:00"}
EXPIRED = {**LOGIN, "access_token_expiration": "1999-01-01T00:00:00+00:00"}
NOTEBOOK = {
    "KAGGLE_KERNEL_RUN_TYPE": "Interactive",
    "KAGGLE_DATA_PROXY_URL": "https://example.com",
    "KAGGLE_API_V1_TOKEN": "home/token",
}
FILES = {name: f"{name}, small\n".encode() * 1000 for name in COMPETITIONS[SLUG].files}


def refusal(call, *arguments):
    with pytest.raises(PipelineError) as error:
        call(*arguments)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


@pytest.fixture
def no_key(user, monkeypatch):
    """A user's home without credentials; the variables exist but are empty, like missing secrets in CI."""
    monkeypatch.setenv("KAGGLE_USERNAME", "")
    monkeypatch.setenv("KAGGLE_KEY", "")
    return user


@pytest.mark.parametrize(
    "variables, files",
    [
        ({"KAGGLE_API_TOKEN": TOKEN}, {}),
        ({"KAGGLE_API_TOKEN": "home/token"}, {"token": TOKEN}),
        ({}, {".kaggle/access_token": TOKEN}),
        ({}, {".kaggle/kaggle.json": KEY_FILE}),
        ({}, {".kaggle/credentials.json": json.dumps(LOGIN)}),
        ({}, {".kaggle/credentials.json": json.dumps(EXPIRED)}),
        (NOTEBOOK, {"token": TOKEN}),
    ],
)
def test_every_way_to_sign_in(no_key, kaggle, monkeypatch, variables, files):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name, text in files.items():
        (no_key / name).write_text(text)
    kaggle.add("the first")
    assert [submission.message for submission in api.submissions(SLUG)] == ["the first"]


def test_without_credentials(no_key, kaggle):
    assert api.sign_in() is None
    assert "no Kaggle credentials: run `kaggle auth login`" in refusal(api.submissions, SLUG)
    assert kaggle.calls == []


@pytest.mark.parametrize(
    "name, content",
    [
        ("kaggle.json", b"{'username': 'x'}"),
        ("kaggle.json", b"[]"),
        ("kaggle.json", b'{"username": "x"}'),
        ("kaggle.json", "{}".encode("utf-16")),
        ("credentials.json", b""),
        ("credentials.json", b"[]"),
        ("credentials.json", b'{"refresh_token": "x", "access_token_expiration": "soon"}'),
        ("access_token", b"one\ntwo"),
        ("access_token", b"\xff\xfe"),
    ],
)
def test_damaged_credentials_are_not_taken_for_none(no_key, kaggle, name, content):
    (no_key / ".kaggle" / name).write_bytes(content)
    line = refusal(api.sign_in)
    assert f"cannot sign in with the credentials in {no_key}/.kaggle/{name}: they are damaged" in line
    assert "soon" not in line


def test_user_name_without_a_key(no_key, monkeypatch):
    monkeypatch.setenv("KAGGLE_USERNAME", USER)
    assert "in KAGGLE_USERNAME: they are damaged, incomplete" in refusal(api.sign_in)


def test_expired_login_is_not_taken_for_none(no_key, kaggle):
    (no_key / ".kaggle/credentials.json").write_text(json.dumps(EXPIRED))
    kaggle.faults["GenerateAccessToken"] = [status(401)]
    assert "credentials.json: they are damaged, incomplete or expired" in refusal(api.sign_in)


def test_stale_token_that_hides_a_good_key(user, kaggle, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", f"stale-{TOKEN}")
    assert "in KAGGLE_API_TOKEN" in refusal(api.submissions, SLUG)


def test_sign_in_has_a_time_limit_and_no_home_folder_is_needed(project, kaggle):
    kaggle.faults["IntrospectToken"] = [hang] * 2
    command = "from pipeline.kaggle import api; api.TIMEOUT = 0.2; api.sign_in()"
    code, output = project.run(
        "-c", command.replace("api.sign_in()", "\ntry: api.sign_in()\nexcept Exception as e: print(e)"),
        HOME="/proc/none", KAGGLE_API_TOKEN=TOKEN,
    )  # fmt: skip
    assert (code, output) == (0, "no answer from localhost within 0.2 s; run it again\n")


def test_check_before_make_submit_runs_the_pipeline(project, kaggle):
    kaggle.add("the first")
    command = "-m", "pipeline.stages.submissions"
    code, output = project.run(*command, VERBOSE="1")  # the client then logs every request
    assert code == 0 and "the first" in output
    code, output = project.run(*command, KAGGLE_USERNAME=None, KAGGLE_KEY=None)
    assert code == 1 and output.splitlines()[-1].startswith("submissions: no Kaggle credentials")
    kaggle.faults["ListSubmissions"] = [status(403, "You must accept")]
    with pytest.raises(PipelineError, match="accept the rules at"):
        project.stage("submissions")


def test_download(user, kaggle, tmp_path):
    kaggle.archive = zipped(FILES)
    api.download(COMPETITIONS[SLUG], tmp_path / "home")
    assert {name: (user / name).read_bytes() for name in FILES} == FILES
    assert not list(user.glob(".kaggle-*"))


def test_interrupted_download_is_resumed(user, kaggle, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    kaggle.archive = zipped(FILES)
    kaggle.faults["storage"] = [half]
    api.download(COMPETITIONS[SLUG], tmp_path / "home")
    assert (user / "train.csv").read_bytes() == FILES["train.csv"] and kaggle.count("storage") == 2


@pytest.mark.parametrize(
    "call, fault, problem",
    [
        ("DownloadDataFiles", status(401), "the credentials in KAGGLE_USERNAME, KAGGLE_KEY are wrong"),
        ("DownloadDataFiles", status(403), f"accept the rules at {api.SITE}/competitions/{SLUG}/rules"),
        ("DownloadDataFiles", status(404), f"is '{SLUG}' the right competition? download.comp"),
        ("DownloadDataFiles", status(429), "too many requests; run it again later"),
        ("DownloadDataFiles", status(500, "out of order"), "answered 500 (out of order): run it again"),
        ("DownloadDataFiles", cut, "the connection to localhost failed (ProxyError); check the network"),
        ("DownloadDataFiles", hang, "no answer from localhost within 0.5 s; run it again"),
        ("DownloadDataFiles", page, "a login or a captive portal?"),
        ("DownloadDataFiles", lambda handler: handler.answer(PAGE, 403, "text/html"),
         "403: received a web page instead of data"),
        ("storage", status(403), "storage.test answered 403 (so it is): run it again"),
        ("storage", page, "a login or a captive portal?"),
        ("storage", lambda handler: handler.answer(PAGE), "a login or a captive portal?"),
        ("storage", lambda handler: handler.answer(b"PK damaged"), ".zip: "),
    ],
)  # fmt: skip
def test_failed_download(user, kaggle, tmp_path, monkeypatch, call, fault, problem):
    monkeypatch.setattr(api, "TIMEOUT", 0.5)
    kaggle.faults[call] = [fault] * 9
    assert problem in refusal(api.download, COMPETITIONS[SLUG], tmp_path / "home")
    assert not list(user.glob("[!.]*")) and not list(user.glob(".kaggle-*"))


@pytest.mark.parametrize(
    "proxy", ["socks5://127.0.0.1:1080", "127.0.0.1:1x", "http://", "http://127.0.0.1:9"]
)
def test_wrong_proxy(user, monkeypatch, proxy):
    monkeypatch.setenv("http_proxy", proxy)
    line = refusal(api.submissions, SLUG)
    assert "the connection to " in line and "check the network and the proxy (https_proxy, http" in line


def test_tls_inspection(user, monkeypatch):
    def send(*_, **__):
        raise requests.exceptions.SSLError(request=requests.Request("POST", "https://api.kaggle.com"))

    monkeypatch.setattr(requests.Session, "send", send)
    line = refusal(api.submissions, SLUG)
    assert "api.kaggle.com has no trusted TLS certificate" in line and "REQUESTS_CA_BUNDLE" in line


def test_portal_in_place_of_json(user, kaggle):
    kaggle.faults["ListSubmissions"] = [page]
    assert "received a web page instead of data; does the network" in refusal(api.submissions, SLUG)


def test_credentials_in_kaggles_own_words(user, kaggle):
    def echo(handler):
        status(403, f"you are {handler.headers['Authorization']}, {KEY}")(handler)

    kaggle.faults["ListSubmissions"] = [echo]
    assert "403 (you are Basic ***, ***): accept the rules" in refusal(api.submissions, SLUG)


def test_rank(user, kaggle):
    assert api.rank(SLUG) == 7
    kaggle.rank = 0
    assert api.rank(SLUG) is None
    kaggle.faults["ListCompetitions"] = [status(500)]
    assert api.rank(SLUG) is None
