"""A user's project folder, and stages run in it against `kaggle_server.py`."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from kaggle_server import KEY, SECRETS, USER

ROOT = Path(__file__).parents[2]
SUBMISSION = b"ImageId,Label\r\n" + b"".join(b"%d,%d\r\n" % (i, i % 10) for i in range(1, 28_001))
DIGEST = hashlib.sha256(SUBMISSION).hexdigest()
HASH = f"sha256:{DIGEST[:16]}"
SMALL = {
    name: f"{name}, small\n".encode() * 1000 for name in ("train.csv", "test.csv", "sample_submission.csv")
}
# Code that makes the pipeline expect fewer rows, for tests that read the files several times.
SHORT_ROWS = train, test = 420, 280
SHORT = f"""
from pipeline.competition import ROWS
ROWS.update({{"train.csv": {train}, "test.csv": {test}, "sample_submission.csv": {test}}})
"""
NO_KEY = {"KAGGLE_USERNAME": None, "KAGGLE_KEY": None}


def archive(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return packed.getvalue()


class Project:
    """A project folder with a submission, and the environment of a user with the legacy key."""

    def __init__(self, folder, server, forker):
        self.folder = folder / "project"
        self.forker = forker
        home = folder / "home"
        home.mkdir()
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("KAGGLE_") and not name.lower().endswith("_proxy")
        }
        self.environment = {
            **kept,
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / ".config"),
            "XDG_CACHE_HOME": str(home),
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "KAGGLE_CONFIG_DIR": str(home / "kaggle"),
            "http_proxy": server.address,
            "https_proxy": server.address,
            "no_proxy": "",
            "NO_PROXY": "",
            "KAGGLE_USERNAME": USER,
            "KAGGLE_KEY": KEY,
            "NETWORK_TIMEOUT": "10",
            "NETWORK_BACKOFF": "0.05",
            "SCORE_POLL": "0.1",
            "SCORE_DEADLINE": "20",
            "CALL_DEADLINE": "40",
            "DOWNLOAD_DEADLINE": "40",
        }
        for name in ("submissions", "metrics", "data/raw"):
            (self.folder / name).mkdir(parents=True)
        self.write("submissions/submission.csv", SUBMISSION)
        self.write("params.yaml", (ROOT / "params.yaml").read_bytes())
        self.write_json("data/raw/source.json", {"source": "kaggle", "competition": "digit-recognizer"})
        self.write_json("metrics/oof.json", {"accuracy": 0.99537})
        self.write_json("metrics/check.json", {"accuracy": 0.9961})
        self.write_json("metrics/ensemble.json", {"accuracy": 0.99537, "low": 0.9938, "high": 0.9968})

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
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.folder,
            text=True,
            env=self.variables(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *command, **environment):
        """Returns (exit status, stdout, stderr), after a look for what must not be there."""
        process = self.start(*command, **environment)
        out, err = process.communicate(timeout=300)
        self.check(out + err)
        return process.returncode, out, err

    def run_code(self, code, **environment):
        """As `run`, of Python code in a process of its own."""
        out, err = (self.folder.parent / name for name in ("out", "err"))
        job = {
            "code": code,
            "folder": str(self.folder),
            "environment": self.variables(environment),
            "out": str(out),
            "err": str(err),
        }
        print(json.dumps(job), file=self.forker.stdin, flush=True)
        status = int(self.forker.stdout.readline())
        self.check(out.read_text() + err.read_text())
        return status, out.read_text(), err.read_text()

    def check(self, output):
        assert "Traceback" not in output
        files = [path for path in self.folder.rglob("*") if path.is_file() and path.stat().st_size < 1 << 20]
        for text in [output.encode(), *(path.read_bytes() for path in files)]:
            assert not [secret for secret in SECRETS if secret.encode() in text]

    def stage(self, name, before="", **environment):
        """Run a stage, after the code `before`."""
        stage = f"import runpy; runpy.run_module('pipeline.stages.{name}', None, '__main__', alter_sys=True)"
        return self.run_code(before + stage, **environment)

    def succeeds(self, name, **environment):
        code, out, err = self.stage(name, **environment)
        assert code == 0, err
        return out

    def fails(self, name, **environment):
        """The one line that the stage ends with."""
        code, _, err = self.stage(name, **environment)
        *notices, line = err.splitlines()
        assert code == 1 and line.startswith(f"{name}: ")
        assert len(line.replace(str(self.folder.parent), "")) < 300
        assert all(re.search(r"next try in [\d.]+ s$", notice) for notice in notices)
        assert not list(self.folder.rglob(".*"))  # nothing half-written
        return line
