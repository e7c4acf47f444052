"""What the tests of Kaggle share: a server, and a project folder that talks to it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kaggle_server import SECRETS, KaggleServer
from project import ROOT, SHORT_ROWS, SMALL, Project, archive


def competition_archive(train, test):
    """The competition's archive with these numbers of rows, which are all alike."""
    pixels = ",".join(f"pixel{i}" for i in range(784))
    row = ",".join(["7"] * 784)
    return archive(
        {
            "train.csv": f"label,{pixels}\n" + f"7,{row}\n" * train,
            "test.csv": f"{pixels}\n" + f"{row}\n" * test,
            "sample_submission.csv": "ImageId,Label\r\n" + "".join(f"{1 + i},0\r\n" for i in range(test)),
        }
    )


@pytest.fixture(scope="session")
def full_archive():
    return competition_archive(42_000, 28_000)


@pytest.fixture(scope="session")
def short_archive():
    """For stages that run after `project.SHORT`."""
    return competition_archive(*SHORT_ROWS)


@pytest.fixture(scope="session")
def forker():
    """What `forked.py` says it is for."""
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("forked.py")],
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def kaggle():
    with KaggleServer() as server:
        server.files["archive.zip"] = archive(SMALL)
        yield server
    assert server.strangers == []
    assert not [line for line in server.command_lines for secret in SECRETS if secret.encode() in line]


@pytest.fixture
def project(tmp_path, kaggle, forker):
    return Project(tmp_path, kaggle, forker)
