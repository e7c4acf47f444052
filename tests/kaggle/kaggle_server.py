"""Kaggle's service as the unmodified client sees it, on 127.0.0.1, for the tests beside it.

The client is told to call `http://localhost` through this server as its proxy, so no request can
leave the machine; requests for any other host are kept in `strangers`, for the tests to fail on.
"""

import base64
import json
import threading
import time
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from helpers import command_lines

USER, KEY, TOKEN = "digitfan", "made-up-key-0123456789", "made-up-token-9876543210"
SIGNATURE = "made-up-signature-of-an-address"
SECRETS = (KEY, TOKEN, SIGNATURE, base64.b64encode(f"{USER}:{KEY}".encode()).decode())


class KaggleServer:
    """Attributes may be set at any time; `calls` tells what was asked."""

    def __init__(self):
        self.accepted = [f"Basic {base64.b64encode(f'{USER}:{KEY}'.encode()).decode()}", f"Bearer {TOKEN}"]
        self.files = {}  # name -> bytes, by the name under which they lie; the archive's is "archive.zip"
        self.limits = {"numToday": 1, "numTotal": 7, "numAllowedNow": 9}
        self.submissions = []  # newest first, as Kaggle lists them
        self.new = {"status": "COMPLETE", "publicScore": "0.99532"}  # what becomes of a new one
        self.page_size, self.tokens = 20, True
        self.faults = {}  # call -> the next answers in place of the proper one, see below
        self.calls, self.times, self.uploads, self.strangers = [], [], [], []
        self.command_lines = set()  # of all processes, at any time that the client waits for an answer
        self.closing = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads, self.http.kaggle = True, self

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.http.server_port}"

    def count(self, call):
        return sum(name == call for name, _ in self.calls)

    def sent(self):
        """The descriptions of the submissions made, in order."""
        return [body["submissionDescription"] for name, body in self.calls if name == "CreateSubmission"]

    def add(self, description, **fields):
        reference = 1000 + len(self.submissions)
        date = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self.submissions.insert(
            0,
            {
                "ref": reference,
                "date": date,
                "fileName": "submission.csv",
                "description": description,
                **self.new,
                **fields,
            },
        )
        return reference


# Faults: functions of the handler that stand in for the proper answer to a call.


def status(code, message="so it is", headers=None):
    return lambda handler: handler.answer({"code": code, "message": message}, code, headers)


def no_fault(handler):
    """Give the proper answer, before a fault that comes later."""
    handler.answer(*handler.take())


def echo(handler):
    """Refuse with a message that holds the credentials."""
    status(403, f"you are {handler.headers['Authorization']}, {KEY}")(handler)


def hang(handler):
    """Take the request and never answer."""
    handler.server.kaggle.closing.wait(60)


def cut(handler):
    """Take the request and close the connection."""
    handler.close_connection = True


def half(handler):
    """Announce the whole answer, send half of it, close the connection."""
    handler.send_file(slice(0, len(handler.content()) // 2))
    handler.close_connection = True


def half_and_hang(handler):
    half(handler)
    hang(handler)


def drip(handler):
    """Announce an answer and send a byte of it every 0.1 s: no wait for a byte is ever long."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(1 << 20))
    handler.end_headers()
    while not handler.server.kaggle.closing.wait(0.1):
        handler.wfile.write(b" ")


def after(fault):
    """Do what is asked, and only then fail."""

    def both(handler):
        handler.take()
        fault(handler)

    return both


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_CONNECT(self):
        self.server.kaggle.strangers.append(self.path)
        self.send_error(403)

    def handle_request(self):
        kaggle = self.server.kaggle
        url = urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if url.netloc != "localhost":
            kaggle.strangers.append(self.path)
            return self.send_error(403)
        self.file = url.path.rpartition("/")[2]
        self.call = {"PUT": "upload", "GET": "storage"}.get(self.command, self.file)
        self.asked = json.loads(self.body) if self.command == "POST" else None
        kaggle.calls.append((self.call, self.asked))
        kaggle.times.append(time.monotonic())
        kaggle.command_lines |= command_lines()
        if self.command != "POST" and SIGNATURE not in url.query:
            return self.answer({"code": 403, "message": "no signature"}, 403)
        signing_in = self.call == "GenerateAccessToken"
        if self.command == "POST" and not signing_in and self.headers["Authorization"] not in kaggle.accepted:
            return self.answer({"code": 401, "message": "unknown"}, 401)
        faults = kaggle.faults.get(self.call)
        if faults:
            return faults.pop(0)(self)
        self.answer(*self.take())

    do_POST = do_PUT = do_GET = handle_request

    def take(self):
        """Do what the call asks; returns the arguments of `answer`."""
        kaggle = self.server.kaggle
        if self.call == "IntrospectToken":
            return ({"active": f"Bearer {self.asked['token']}" in kaggle.accepted, "username": USER},)
        if self.call == "GenerateAccessToken":
            return ({"token": TOKEN, "expiresIn": 3600},)
        if self.call in ("DownloadDataFiles", "DownloadDataFile"):
            wanted = self.asked.get("fileName", "archive.zip")
            name = next((name for name in kaggle.files if name in (wanted, f"{wanted}.zip")), None)
            if name is None or self.asked["competitionName"] != "digit-recognizer":
                return {"code": 404, "message": "Not found"}, 404
            return None, 302, {"Location": f"http://localhost/storage/{name}?{SIGNATURE}"}
        if self.call == "storage":
            return (self.content(),)
        if self.call == "StartSubmissionUpload":
            return ({"token": "blob", "createUrl": f"http://localhost/upload/blob?{SIGNATURE}"},)
        if self.call == "upload":
            kaggle.uploads.append(self.body)
            return ({},)
        if self.call == "CreateSubmission":
            reference = kaggle.add(self.asked["submissionDescription"])
            return ({"message": "Successfully submitted", "ref": reference},)
        if self.call == "GetSubmissionLimits":
            return (kaggle.limits,)
        if self.call == "ListSubmissions":
            return (self.page(),)
        return {"code": 404, "message": "no such call"}, 404

    def page(self):
        kaggle = self.server.kaggle
        start = int(self.asked.get("pageToken") or 0)
        if not kaggle.tokens:
            start = (self.asked.get("page", 1) - 1) * kaggle.page_size
        end = start + kaggle.page_size
        more = kaggle.tokens and end < len(kaggle.submissions)
        return {"submissions": kaggle.submissions[start:end], **({"nextPageToken": str(end)} if more else {})}

    def content(self):
        return self.server.kaggle.files[self.file]

    def answer(self, content, code=200, headers=None):
        if isinstance(content, bytes):
            return self.send_file(slice(0, None))
        content = b"" if content is None else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": len(content),
            **(headers or {}),
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def send_file(self, part):
        content = self.content()
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        for name, value in {
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "Content-Length": len(content) - start,
            "ETag": '"1"',
            "Last-Modified": formatdate(time.time() - 1e6, usegmt=True),
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content[start:][part])
