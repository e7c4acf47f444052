"""Calls to Kaggle through its own client, imported only when Kaggle is needed, because the import signs in.

A failure is a PipelineError of one line, without credentials or presigned URLs.
"""

import base64
import contextlib
import functools
import io
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests import exceptions

from pipeline.competition import Competition, is_html, unpack
from pipeline.files import PipelineError, one_line
from pipeline.kaggle.history import PENDING, Submission

TIMEOUT = 30  # seconds, to connect and to read
SITE = "https://www.kaggle.com"
NEW_TOKEN = f"make a new token at {SITE}/settings/api"
WEB_PAGE = "received a web page instead of data; does the network or a proxy require a login in the browser?"


class AnswerLost(PipelineError):
    """Kaggle may or may not have created the submission."""


@functools.cache
def sign_in():
    """Sign in with the credentials that Kaggle's client finds; returns the client, or None without any."""
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        if os.environ.get(name) == "":  # such as a CI's missing secret; the client would use it
            del os.environ[name]
    # requests would send a password of ~/.netrc to the storage host.
    os.environ["NETRC"] = os.devnull
    # The client sets no timeout.
    requests.Session.send = functools.partialmethod(requests.Session.send, timeout=TIMEOUT)
    # urllib3 logs the full address of a failed transfer, which includes its signature.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    with _one_line_errors():
        client = _make_client()
        places = _credentials()  # before the client deletes an expired login
        try:
            client.authenticate()
            return client
        except (Exception, SystemExit) as error:  # a damaged file can raise anything
            request_failed = isinstance(error, requests.RequestException)
            if request_failed and not isinstance(error, exceptions.InvalidHeader):  # of a damaged token
                raise
    if places:
        raise PipelineError(
            f"Kaggle's client cannot sign in with the credentials in {', '.join(places)}: they are damaged, "
            f"incomplete or expired; repair or remove them, or {NEW_TOKEN}"
        )


def _make_client():
    home = os.path.expanduser("~")
    if not (os.access(home, os.W_OK) or os.path.exists(f"{home}/.kaggle")):
        os.environ.setdefault("KAGGLE_CONFIG_DIR", os.devnull)  # the client would create ~/.config/kaggle
    from kaggle.api.kaggle_api_extended import KaggleApi, ResumableUploadResult

    class Client(KaggleApi):
        def upload_complete(self, path, url, quiet, resume=False):
            """Upload a file; the client's own method has no timeout and hides the reason of a failure."""
            requests.put(url, data=Path(path).read_bytes(), timeout=TIMEOUT).raise_for_status()
            self.uploaded = True
            return ResumableUploadResult.COMPLETE

    return Client()


def _credentials() -> list[str]:
    """List the variables and files with credentials, in the order in which the client looks for them."""
    from kaggle.api.kaggle_api_extended import KaggleApi

    token, login = (os.path.expanduser(f"~/.kaggle/{name}") for name in ("access_token", "credentials.json"))
    variables = "KAGGLE_USERNAME", "KAGGLE_KEY"
    places = ["KAGGLE_API_TOKEN", token, f"{token}.txt", *variables, KaggleApi.config, login]
    return [place for place in places if os.environ.get(place) or os.path.exists(place)]


def _signed_in():
    if client := sign_in():
        return client
    raise PipelineError(
        f"no Kaggle credentials: run `kaggle auth login`, or {NEW_TOKEN} and give it in KAGGLE_API_TOKEN or "
        "~/.kaggle/access_token"
    )


def download(competition: Competition, folder: Path) -> None:
    """Download the competition's files and unpack them into an existing folder."""
    client, quiet = _signed_in(), not sys.stderr.isatty()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".kaggle-") as temporary:
        with _one_line_errors(competition.slug):
            client.competition_download_files(competition.slug, temporary, force=True, quiet=quiet)
        archive = next(path for path in Path(temporary).rglob("*") if path.is_file())
        unpack(archive, folder, competition)


def submissions(slug: str) -> list[Submission]:
    """List the account's newest 100 submissions."""
    client = _signed_in()
    with _one_line_errors(slug):
        return [_submission(item) for item in client.competition_submissions(slug, page_size=100) or ()]


def _submission(item) -> Submission:
    score = float(item.public_score) if item.public_score else None
    # The score may come later than the status.
    status = PENDING if item.status.name == "COMPLETE" and score is None else item.status.name
    submitted = f"{item.date.isoformat(timespec='seconds')}Z" if item.date else ""
    message, error = one_line(item.description or ""), one_line(item.error_description or "")
    return Submission(item.ref, submitted, message, status, score, error)


def send(slug: str, file: Path, message: str) -> int:
    """Send a file to be scored; returns the submission's reference, or raises AnswerLost."""
    client = _signed_in()
    client.uploaded = False
    try:
        with _one_line_errors(slug):
            answer = client.competition_submit(str(file), message, slug, quiet=True)
    except PipelineError as error:
        response = getattr(error.__cause__, "response", None)
        if client.uploaded and (response is None or response.status_code >= 500):
            raise AnswerLost(str(error)) from error
        raise PipelineError(f"nothing was submitted: {error}") from error
    if not answer.ref:
        raise AnswerLost(f"Kaggle returned no number for the submission ({answer.message})")
    return answer.ref


def rank(slug: str) -> int | None:
    """Ask for the account's rank on the public leaderboard; None if Kaggle does not tell."""
    client = _signed_in()
    with contextlib.suppress(PipelineError), _one_line_errors(slug):
        entered = client.competitions_list(group="entered", search=slug).competitions or ()
        return next((item.user_rank or None for item in entered if item.ref.split("/")[-1] == slug), None)


@contextlib.contextmanager
def _one_line_errors(slug: str = ""):
    """Silence the client, and turn its errors into PipelineErrors with advice about the competition."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except Exception as error:  # the client does not wrap what its parsing raises
        response = getattr(error, "response", None)  # false if its status is an error
        text = _explain(error) if response is None else _explain_answer(response, slug)
        raise PipelineError(text) from error


def _explain_answer(response: requests.Response, slug: str) -> str:
    """Explain an HTTP error (status 400 or above), and say what to do about it."""
    status, reason = response.status_code, ""
    with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):
        reason = f" ({one_line(_without_secrets(response.json()['message'], response.request))[:200]})"
        status = int(response.json()["code"])  # Kaggle may send an error with status 200
    text = f"{urlsplit(response.url).hostname} answered {status}{reason}"
    if status >= 500 or response.request.method != "POST":  # of the storage host, whose addresses expire
        return f"{text}: run it again later"
    if is_html(response.content):
        return f"{text}: {WEB_PAGE}"
    advice = {
        401: f": the credentials in {', '.join(_credentials())} are wrong or expired; {NEW_TOKEN}",
        403: f": accept the rules at {SITE}/competitions/{slug}/rules, then run it again; or is "
        "download.competition in params.yaml the wrong one?",
        404: f": is {slug!r} the right competition? download.competition in params.yaml names it",
        429: ": too many requests; run it again later",
    }
    return text + advice.get(status, "")


def _without_secrets(text: str, request: requests.PreparedRequest) -> str:
    sent = request.headers.get("Authorization", "").rpartition(" ")[2] or "-"
    with contextlib.suppress(ValueError):
        text = text.replace(base64.b64decode(sent).decode().partition(":")[2] or sent, "***")
    return text.replace(sent, "***")


def _explain(error: Exception) -> str:
    """Explain an error without a response; the text of a request's error may contain secrets."""
    host = urlsplit(error.request.url).hostname if getattr(error, "request", None) else "Kaggle"
    name = type(error).__name__
    texts = {
        exceptions.SSLError: f"{host} has no trusted TLS certificate; if a proxy or firewall inspects TLS, "
        "name the file of its CA certificate in REQUESTS_CA_BUNDLE",
        exceptions.Timeout: f"no answer from {host} within {TIMEOUT} s; run it again",
        json.JSONDecodeError: f"Kaggle: {WEB_PAGE}",
        requests.RequestException: f"the connection to {host} failed ({name}); check the network and the "
        "proxy (https_proxy, http_proxy or all_proxy: http://NAME:PASSWORD@HOST:PORT), then run it again",
        OSError: str(error),
        Exception: f"unexpected response from Kaggle ({name})",
    }
    return next(text for kind, text in texts.items() if isinstance(error, kind))
