"""Fixtures: the mock of Kaggle, and a user whose client calls it."""

import importlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests
from helpers import ROOT
from kaggle_server import KEY, NETRC_PASSWORD, SECRETS, SUBMISSION, USER, KaggleServer

from pipeline.kaggle import api, sending


@pytest.fixture
def kaggle():
    with KaggleServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.closing.set()
        server.shutdown()
    assert set(server.storage_credentials) <= {None}  # though ~/.netrc has a default entry


@pytest.fixture
def environment(tmp_path, kaggle):
    """The variables of a user with a key, whose home has a `.netrc`."""
    home = tmp_path / "home"
    (home / ".kaggle").mkdir(parents=True)
    (home / ".netrc").write_text(f"default login x password {NETRC_PASSWORD}\n")
    (home / ".netrc").chmod(0o600)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KAGGLE_", "NETRC"))}
    return {
        **{name: value for name, value in kept.items() if not name.lower().endswith("_proxy")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "http_proxy": kaggle.address,
        "https_proxy": kaggle.address,
        "KAGGLE_USERNAME": USER,
        "KAGGLE_KEY": KEY,
    }


@pytest.fixture
def user(tmp_path, environment, monkeypatch, capfd):
    """The same in this process, in an empty folder; returns the user's home."""
    for name in list(os.environ):
        if name not in environment:
            monkeypatch.delenv(name)
    for name, value in {**environment, "NETRC": str(tmp_path / "home/.netrc")}.items():
        monkeypatch.setenv(name, value)
    from kaggle.api.kaggle_api_extended import KaggleApi

    # The client takes its value when it is imported, and `sign_in` changes `send`.
    monkeypatch.setattr(KaggleApi, "config", str(tmp_path / "home/.kaggle/kaggle.json"))
    monkeypatch.setattr(requests.Session, "send", requests.Session.send)
    monkeypatch.setattr(api, "TIMEOUT", 5)
    for name, seconds in {"POLL": 0.02, "LOST_DEADLINE": 0.1, "SCORE_DEADLINE": 0.3}.items():
        monkeypatch.setattr(sending, name, seconds)
    api.sign_in.cache_clear()
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "home"
    api.sign_in.cache_clear()
    check_secrets("".join(capfd.readouterr()), tmp_path)


@pytest.fixture
def project(user, tmp_path, environment, monkeypatch, capfd):
    project = Project(tmp_path / "project", environment, capfd)
    monkeypatch.chdir(project.folder)
    return project


class Project:
    """The folder of `user`'s project, with a submission."""

    def __init__(self, folder, environment, capfd):
        self.folder, self.environment, self.capfd = folder, environment, capfd
        for name in ("submissions", "metrics", "data/raw"):
            (folder / name).mkdir(parents=True)
        for name in ("submissions/submission.csv", "data/raw/sample_submission.csv"):
            (folder / name).write_bytes(SUBMISSION)
        (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
        self.write_json("data/raw/source.json", {"source": "kaggle", "competition": "digit-recognizer"})
        self.write_json("metrics/check.json", {"images": 10_000, "accuracy": 0.9961})
        self.write_json("metrics/ensemble.json", {"accuracy": 0.99537, "low": 0.9938, "high": 0.9968})

    def write_json(self, name, content):
        (self.folder / name).write_text(json.dumps(content))

    def start(self, *command, **environment):
        changed = {**self.environment, "PYTHONPATH": str(ROOT), **environment}
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.folder,
            text=True,
            env={name: value for name, value in changed.items() if value is not None},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *command, **environment):
        """Returns the exit status and the output, which must not contain credentials."""
        process = self.start(*command, **environment)
        output = "".join(process.communicate(timeout=100))
        assert "Traceback" not in output
        check_secrets(output, self.folder)
        return process.returncode, output

    def stage(self, name, **environment):
        """Run a stage in this process; returns its output, or raises its error."""
        api.sign_in.cache_clear()
        with pytest.MonkeyPatch.context() as variables:
            for variable, value in environment.items():
                variables.setenv(variable, value)
            importlib.import_module(f"pipeline.stages.{name}").main()
        output = "".join(self.capfd.readouterr())
        check_secrets(output, self.folder)
        return output


def check_secrets(output, folder):
    texts = [path.read_bytes() for path in folder.glob("[!h]*/**/*") if path.is_file()]
    assert not [secret for secret in SECRETS for text in [output.encode(), *texts] if secret.encode() in text]
