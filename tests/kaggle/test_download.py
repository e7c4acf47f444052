"""Promises about the download, kept by the unmodified client against `kaggle_server.py`."""

import os
import shutil

import pytest
from kaggle_server import cut, drip, half, half_and_hang, hang, status
from project import NO_KEY, SHORT, SMALL, archive


@pytest.mark.slow
def test_download_of_the_archive(project, kaggle, full_archive):
    kaggle.files["archive.zip"] = full_archive
    shutil.rmtree(project.folder / "data/raw")
    project.set_download(competition="https://www.kaggle.com/c/digit-recognizer/data")
    project.succeeds("download")
    raw = project.folder / "data/raw"
    assert sorted(path.name for path in raw.iterdir()) == [
        "sample_submission.csv",
        "source.json",
        "test.csv",
        "train.csv",
    ]
    origin = project.read_json("data/raw/source.json")
    assert (origin["source"], origin["competition"]) == ("kaggle", "digit-recognizer")
    assert [name for name, _ in kaggle.calls] == ["DownloadDataFiles", "storage"]


def test_files_downloaded_in_a_browser(project, kaggle, short_archive, tmp_path):
    (tmp_path / "my downloads").mkdir()
    project.set_download(source="folder", folder="../my downloads # ")
    line = project.fails("download", **NO_KEY)
    assert "download.folder is '../my downloads': it holds neither digit-recognizer.zip nor train.csv" in line

    (tmp_path / "my downloads/digit-recognizer.zip").write_bytes(short_archive)
    project.succeeds("download", before=SHORT, **NO_KEY)
    raw = project.folder / "data/raw"
    first = {path.name: path.read_bytes() for path in raw.iterdir()}
    assert sorted(first) == ["sample_submission.csv", "source.json", "test.csv", "train.csv"]
    assert project.read_json("data/raw/source.json")["source"] == "folder"

    (tmp_path / "my downloads/digit-recognizer.zip").unlink()
    for name, content in first.items():
        (tmp_path / "my downloads" / name).write_bytes(content.replace(b"7,7", b"8,7"))
    project.succeeds("download", before=SHORT, **NO_KEY)
    assert (raw / "train.csv").read_bytes() == first["train.csv"].replace(b"7,7", b"8,7")
    assert kaggle.calls == []


@pytest.mark.parametrize("with_record", [True, False])
def test_files_put_by_hand_into_the_stages_own_folder_are_not_lost(
    project, kaggle, short_archive, with_record
):
    kaggle.files["archive.zip"] = short_archive
    (project.folder / "data/raw/source.json").unlink()
    project.succeeds("download", before=SHORT)
    raw = project.folder / "data/raw"
    project.succeeds("download", before=SHORT)
    if not with_record:
        (raw / "source.json").unlink()
        # The same bytes, as after a kill of DVC that brought them back.
        project.succeeds("download", before=SHORT)
    (raw / "test.csv").write_bytes(b"mine")
    before = {path: path.read_bytes() for path in raw.iterdir()}
    line = project.fails("download", before=SHORT)
    assert "data/raw/test.csv: the stage 'download' has not written this" in line and "source: folder" in line
    assert {path: path.read_bytes() for path in raw.iterdir()} == before


def download(project, before="", **environment):
    """`client.download` alone, with an error as a stage prints it; the files it leaves."""
    (project.folder / "new").mkdir()
    code, _, err = project.run_code(
        f"""
import sys
from pipeline.kaggle import client
from pipeline.files import PipelineError
{before}
try:
    client.download("digit-recognizer", "new")
except PipelineError as error:
    sys.exit(f"download: {{error}}")""",
        **environment,
    )
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, problem",
    [
        (half, "the connection to Kaggle failed"),
        (half_and_hang, "not finished within 2 s"),
        (drip, "not finished within 2 s"),
    ],
)
def test_download_that_never_ends_is_given_up(project, kaggle, fault, problem):
    kaggle.faults["storage"] = [fault] * 9
    before = sorted(project.folder.rglob("*"))
    project.set_download(source="kaggle")
    line = project.fails("download", NETWORK_TIMEOUT="1", DOWNLOAD_DEADLINE="2")
    assert problem in line
    assert sorted(project.folder.rglob("*")) == before


def test_download_from_a_slow_server(project, kaggle):
    kaggle.faults["DownloadDataFiles"] = [hang]
    err, files = download(project, NETWORK_TIMEOUT="0.5")
    assert err == "download: no answer from localhost within 0.5 s; run it again\n" and not files


@pytest.mark.parametrize(
    "name, problem",
    [
        ("../outside.csv", "would be written outside of the folder"),
        ("/outside.csv", "would be written outside of the folder"),
    ],
)
def test_archive_that_would_leave_the_folder(project, kaggle, name, problem):
    kaggle.files["archive.zip"] = archive({**SMALL, name: b"x"})
    err, files = download(project)
    assert problem in err and not files


def test_download_beyond_all_bounds(project, kaggle):
    kaggle.files["archive.zip"] = os.urandom(5000)
    err, files = download(project, "client.LARGEST_MEMBER = 4000")
    assert "localhost sends more than 4000 bytes" in err and not files


@pytest.mark.parametrize(
    "fault, problem",
    [
        (status(401), "refuses the credentials of KAGGLE_USERNAME and KAGGLE_KEY: "),
        (
            status(403, "Permission 'competitions.get' was denied. " * 9),
            "accept the rules at https://www.kaggle.com/"
            "competitions/digit-recognizer/rules, then run it again; or is the competition misspelt? "
            "download.competition in params.yaml names it",
        ),
        (status(404), "is 'digit-recognizer' the right competition? download.competition in params.yaml"),
        (status(429, headers={"Retry-After": "3600"}), "too many requests; run it again in 3600 s"),
        (status(500, "out of order"), "answered 500 (out of order): the trouble is there"),
        (cut, "the connection to localhost failed"),
    ],
    ids=["401", "403", "404", "429", "500", "cut"],
)
def test_download_refused(project, kaggle, fault, problem):
    kaggle.faults = {"DownloadDataFiles": [fault] * 4, "DownloadDataFile": [fault] * 4}
    err, files = download(project)
    line = err.splitlines()[-1]
    assert problem in line and len(line) < 300 and not files


def test_damaged_archive(project, kaggle):
    kaggle.files["archive.zip"] = archive(SMALL)[:-100]
    err, files = download(project)
    assert "is not a whole zip archive" in err and not files
