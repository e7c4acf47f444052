"""Promises about credentials: which are used, and what is said when they cannot be."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, run_python
from kaggle_server import KEY, TOKEN, USER, drip, status
from project import NO_KEY

from pipeline.files import PipelineError
from pipeline.kaggle.client import slug
from pipeline.kaggle.credentials import find_credentials


@pytest.mark.parametrize(
    "given",
    [
        "digit-recognizer",
        " digit-recognizer ",
        "https://www.kaggle.com/competitions/digit-recognizer",
        "https://www.kaggle.com/competitions/digit-recognizer/data?select=train.csv",
        "http://kaggle.com/c/digit-recognizer/",
        "www.kaggle.com/c/digit-recognizer#rules",
    ],
)
def test_slug_of_an_address(given):
    assert slug(given) == "digit-recognizer"


@pytest.mark.parametrize("given", ["", "../x", "https://example.com/c/x", "two words", "a/b"])
def test_what_is_no_slug(given):
    with pytest.raises(PipelineError, match="allowed: a competition's slug or address"):
        slug(given)


def test_credentials_are_found_in_the_order_of_the_client(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("KAGGLE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert find_credentials() is None
    key = json.dumps({"username": USER, "key": KEY})

    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    file = write("config/kaggle/kaggle.json", key)
    assert find_credentials().where == file
    oauth = write(".kaggle/credentials.json", json.dumps({"refresh_token": TOKEN}))
    assert find_credentials().where == oauth  # now ~/.kaggle is there, and hides ~/.config/kaggle
    file = write(".kaggle/kaggle.json", key)
    assert find_credentials().where == file
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "elsewhere"))
    assert find_credentials().where == oauth
    file = write("elsewhere/kaggle.json", key)
    monkeypatch.setenv("KAGGLE_USERNAME", "")  # a secret that is not set counts as none
    assert find_credentials().where == file
    monkeypatch.setenv("KAGGLE_USERNAME", USER)
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    assert find_credentials().where == "KAGGLE_USERNAME and KAGGLE_KEY"
    token = write(".kaggle/access_token.txt", TOKEN)
    assert find_credentials().where == token
    token = write(".kaggle/access_token", TOKEN)
    assert find_credentials().where == token
    monkeypatch.setenv("KAGGLE_API_TOKEN", write("empty", ""))
    assert find_credentials().where == "KAGGLE_USERNAME and KAGGLE_KEY"
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    assert find_credentials().where == "KAGGLE_API_TOKEN"
    assert "kagglesdk" not in sys.modules  # the client is imported only for a call


@pytest.mark.parametrize(
    "where",
    [
        "KAGGLE_API_TOKEN",
        "a file it names",
        ".kaggle/access_token",
        "kaggle/kaggle.json",
        ".kaggle/credentials.json",
        "an expired login",
    ],
)
def test_each_kind_of_credentials_signs_in(project, kaggle, where):
    home = Path(project.environment["HOME"])
    environment = dict(NO_KEY)
    year = 1999 if where == "an expired login" else 2999
    if where == "KAGGLE_API_TOKEN":
        environment[where] = TOKEN
    else:
        names = {"a file it names": "token", "an expired login": ".kaggle/credentials.json"}
        file = home / names.get(where, where)
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            {
                "kaggle.json": json.dumps({"username": USER, "key": KEY}),
                "credentials.json": json.dumps(
                    {
                        "refresh_token": "x",
                        "access_token": TOKEN,
                        "access_token_expiration": f"{year}-01-01T00:00:00+00:00",
                    }
                ),
            }.get(file.name, TOKEN)
        )
        if file.name == "token":
            environment["KAGGLE_API_TOKEN"] = str(file)
        elif file.name == "kaggle.json":
            environment.update({"KAGGLE_USERNAME": "", "KAGGLE_KEY": ""})
    kaggle.add("the first")
    assert "the first" in project.succeeds("submissions", **environment)
    assert kaggle.count("GenerateAccessToken") == (where == "an expired login")


def test_without_credentials_all_ways_to_give_them_are_named(project, kaggle):
    line = project.fails("submit", **NO_KEY)
    for way in ("KAGGLE_API_TOKEN", "access_token", "KAGGLE_KEY", "kaggle.json", "kaggle auth login"):
        assert way in line
    assert kaggle.calls == []


def test_make_submit_asks_for_credentials_before_it_runs_the_pipeline(tmp_path, monkeypatch):
    for name in filter(lambda name: name.startswith("KAGGLE_"), list(os.environ)):
        monkeypatch.delenv(name)
    for name in ("Makefile", "requirements.lock"):  # make would delete an environment that has moved
        shutil.copy(ROOT / name, tmp_path)
    commands = subprocess.run(["make", "-n", "submit"], cwd=tmp_path, text=True, capture_output=True).stdout
    assert 0 < commands.find("python -m pipeline.kaggle.credentials") < commands.find("dvc repro")
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    without, given = (
        run_python("-m", "pipeline.kaggle.credentials", **home, **variables)
        for variables in ({}, {"KAGGLE_API_TOKEN": TOKEN})
    )
    assert without.returncode == 1 and without.stderr.startswith("submit: no Kaggle credentials; give one of")
    assert given.returncode == 0 and given.stdout == given.stderr == ""


def test_stale_token_that_beats_a_good_key(project, kaggle):
    line = project.fails("submit", KAGGLE_API_TOKEN="stale-" + TOKEN)
    assert "of KAGGLE_API_TOKEN, which come before those of KAGGLE_USERNAME and KAGGLE_KEY" in line
    assert kaggle.sent() == []


def test_expired_login(project, kaggle):
    file = Path(project.environment["HOME"]) / ".kaggle/credentials.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"refresh_token": "made-up"}))
    kaggle.faults["GenerateAccessToken"] = [status(401)]
    assert f"Kaggle refuses the credentials of {file}: " in project.fails("submit", **NO_KEY)


@pytest.mark.parametrize("call", ["GenerateAccessToken", "ListSubmissions"])
def test_call_that_never_ends_is_given_up(project, kaggle, call):
    file = Path(project.environment["HOME"]) / ".kaggle/credentials.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"refresh_token": "made-up"}))
    kaggle.faults[call] = [drip] * 9
    environment = NO_KEY if call == "GenerateAccessToken" else {}
    line = project.fails("submit", CALL_DEADLINE="1", **environment)
    assert line == "submit: Kaggle: not finished within 1 s; run it again"


BROKEN = [
    ("kaggle/kaggle.json", b"\xef\xbb\xbf{}", "is there but is not JSON (Unexpected UTF-8 BOM"),
    ("kaggle/kaggle.json", '{"username": "x"}'.encode("utf-16"), "is there but is not JSON ('utf-8' codec"),
    ("kaggle/kaggle.json", b"{'username': 'x'}", "is there but is not JSON (Expecting property name"),
    ("kaggle/kaggle.json", b"[]", "is there but is not JSON (an object)"),
    ("kaggle/kaggle.json", b'{"username": "x"}', "Kaggle credentials without a key: give KAGGLE_KEY, or"),
    (".kaggle/credentials.json", b"", "is there but is not JSON (Expecting value"),
    (".kaggle/access_token", b"\xef\xbb\xbftoken", "is there but is not one line of plain text"),
    (".kaggle/access_token", b"one\ntwo", "is there but is not one line of plain text"),
]


@pytest.mark.parametrize("source", ["auto", "kaggle"])
@pytest.mark.parametrize("name, content, problem", BROKEN)
def test_credentials_that_cannot_be_read(project, kaggle, source, name, content, problem):
    file = Path(project.environment["HOME"]) / name
    file.parent.mkdir()
    file.write_bytes(content)
    project.set_download(source=source)
    line = project.fails("download", **NO_KEY)
    assert problem in line and str(file) in line
    assert kaggle.calls == [] and (project.folder / "data/raw").is_dir()


@pytest.mark.parametrize("token", ["one\ntwo", "größer"])
def test_token_that_is_no_token(project, kaggle, token):
    line = project.fails("download", KAGGLE_API_TOKEN=token)
    assert "KAGGLE_API_TOKEN: is there but is not one line of plain text" in line


def test_file_that_is_a_folder_cannot_be_read(project, kaggle):
    folder = Path(project.environment["HOME"]) / "kaggle/kaggle.json"
    folder.mkdir(parents=True)
    assert f"{folder}: is there but cannot be read (Is a directory)" in project.fails("download", **NO_KEY)


def test_unreadable_file_does_not_matter_where_others_come_first(project, kaggle):
    file = Path(project.environment["HOME"]) / "kaggle/kaggle.json"
    file.parent.mkdir()
    file.write_text("{")
    kaggle.add("the first")
    assert "the first" in project.succeeds("submissions")


def test_file_of_settings_alone_is_no_credentials(project, tmp_path, monkeypatch):
    (tmp_path / "kaggle.json").write_text(json.dumps({"competition": "digit-recognizer"}))
    for name, value in project.variables({**NO_KEY, "KAGGLE_CONFIG_DIR": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("KAGGLE_USERNAME", raising=False)
    monkeypatch.delenv("KAGGLE_KEY", raising=False)
    assert find_credentials() is None
