"""Mock of Kaggle's service on 127.0.0.1, for the unmodified client.

The client calls `http://localhost` with this server as its proxy, so no request leaves the machine. The
storage host is `storage.test`.
"""

import base64
import hashlib
import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

USER, KEY, TOKEN = "digitfan", "made-up-key-0123456789", "made-up-token-9876543210"
SIGNATURE = "made-up-signature-of-an-address"
NETRC_PASSWORD = "made-up-password-of-netrc"
BASIC = base64.b64encode(f"{USER}:{KEY}".encode()).decode()
SECRETS = (KEY, TOKEN, SIGNATURE, NETRC_PASSWORD, BASIC)
SUBMISSION = b"ImageId,Label\r\n" + b"".join(b"%d,%d\r\n" % (i, i % 10) for i in range(1, 28_001))
DIGEST = hashlib.sha256(SUBMISSION).hexdigest()
PAGE = b"<!DOCTYPE html><title>Welcome to the hotel</title>"


class KaggleServer(ThreadingHTTPServer):
    """Attributes may be set at any time."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.accepted = [f"Basic {BASIC}", f"Bearer {TOKEN}"]
        self.archive = b""
        self.submissions = []  # newest first, as Kaggle lists them
        self.new = {"status": "COMPLETE", "publicScore": "0.99532"}  # fields of a new submission
        self.rank = 7
        self.faults = {}  # call -> functions of the handler, in place of the next proper answers
        self.calls, self.uploads, self.storage_credentials = [], [], []
        self.closing = threading.Event()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, call):
        return sum(name == call for name, _ in self.calls)

    def sent(self):
        """The descriptions of the submissions, in order."""
        return [body["submissionDescription"] for name, body in self.calls if name == "CreateSubmission"]

    def add(self, description):
        reference = 1000 + len(self.submissions)
        date = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        submission = {"ref": reference, "date": date, "description": description, **self.new}
        self.submissions.insert(0, submission)
        return {"message": "Successfully submitted", "ref": reference}


def status(code, message="so it is"):
    return lambda handler: handler.answer({"code": code, "message": message}, code)


def page(handler):
    """Answer as a captive portal."""
    handler.answer(PAGE, kind="text/html")


def hang(handler):
    handler.server.closing.wait(60)


def cut(handler):
    handler.close_connection = True


def half(handler):
    """Announce the whole archive, send half of it, close the connection."""
    content = handler.server.archive
    handler.answer(content[: len(content) // 2], length=len(content))
    handler.close_connection = True


def after(fault):
    """Perform the call, then fail."""

    def both(handler):
        handler.take()
        fault(handler)

    return both


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle_request(self):
        kaggle, url = self.server, urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.call = {"PUT": "upload", "GET": "storage"}.get(self.command, url.path.rpartition("/")[2])
        self.asked = json.loads(self.body) if self.command == "POST" else {}
        kaggle.calls.append((self.call, self.asked))
        if url.hostname == "storage.test":
            kaggle.storage_credentials.append(self.headers["Authorization"])
        elif self.call != "GenerateAccessToken" and self.headers["Authorization"] not in kaggle.accepted:
            return self.answer({"code": 401, "message": "unknown"}, 401)
        if faults := kaggle.faults.get(self.call):
            return faults.pop(0)(self)
        self.answer(self.take())

    do_POST = do_PUT = do_GET = handle_request

    def take(self):
        """Perform the call; returns the proper answer."""
        kaggle = self.server
        match self.call:
            case "IntrospectToken":
                return {"active": f"Bearer {self.asked['token']}" in kaggle.accepted, "username": USER}
            case "GenerateAccessToken":
                return {"token": TOKEN, "expiresIn": 3600}
            case "DownloadDataFiles":
                return f"http://storage.test/data.zip?{SIGNATURE}"
            case "storage":
                return kaggle.archive
            case "StartSubmissionUpload":
                return {"token": "blob", "createUrl": f"http://storage.test/blob?{SIGNATURE}"}
            case "upload":
                return kaggle.uploads.append(self.body) or {}
            case "CreateSubmission":
                return kaggle.add(self.asked["submissionDescription"])
            case "ListSubmissions":
                return {"submissions": kaggle.submissions[: self.asked["pageSize"]]}
            case "ListCompetitions":
                ref = f"https://www.kaggle.com/competitions/{self.asked['search']}"
                other = {"ref": f"{ref}-2", "userRank": 1}
                return {"competitions": [other, {"ref": ref, "userRank": kaggle.rank}]}

    def answer(self, content, code=200, kind="application/json", length=None):
        """Send bytes, JSON, or a redirection to an address."""
        self.send_response(302 if isinstance(content, str) else code)
        if isinstance(content, str):
            self.send_header("Location", content)
            content = b""
        elif not isinstance(content, bytes):
            content = json.dumps(content).encode()
        elif kind == "application/json":
            kind = "application/octet-stream"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)
