"""Kaggle through its own client, for the stages `download` and `submit`.

The only module that knows the client. It imports it when first needed, because that import signs
in: it prints, and may use the network.
"""

import base64
import contextlib
import io
import json
import math
import os
import re
import signal
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import rewind_body
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from pipeline.competition import FILES, LARGEST_MEMBER, unpack
from pipeline.files import PipelineError
from pipeline.submissions import PENDING, Submission

SITE = "https://www.kaggle.com"
ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?kaggle\.com/(?:competitions|c)/([^/?#]+)", re.I)
NO_CREDENTIALS = (
    "no Kaggle credentials; the client takes the first of: KAGGLE_API_TOKEN (a token or a file with "
    "one), ~/.kaggle/access_token, KAGGLE_USERNAME and KAGGLE_KEY, kaggle.json in KAGGLE_CONFIG_DIR "
    f"or ~/.kaggle or ~/.config/kaggle, `kaggle auth login`; make a token at {SITE}/settings/api")

# Seconds; the environment may set each of them.
WAITS = {
    "NETWORK_TIMEOUT": 30,      # for a connection, and for the next byte
    "NETWORK_BACKOFF": 1,       # before the first retry; doubles with each
    "CALL_DEADLINE": 300,       # for one call with its retries
    "DOWNLOAD_DEADLINE": 1800,  # for the whole download
    "SCORE_DEADLINE": 600,      # for the score of a submission
    "SCORE_POLL": 5,            # between two looks for it
}
RETRIES = 3
LONGEST_WAIT = 60  # a longer Retry-After is the user's to wait for
PASSING = (429, 500, 502, 503, 504)


class Unclear(PipelineError):
    """The submission was asked for, and no answer tells whether Kaggle has it."""


def seconds(name):
    """One of WAITS: the environment's value or the default."""
    value = os.environ.get(name) or WAITS[name]
    with contextlib.suppress(ValueError):
        if 0 < float(value) < math.inf:
            return float(value)
    raise PipelineError(f"{name} is {value!r}, allowed: a number of seconds above 0")


def slug(competition):
    """The competition's short name, from itself or from a pasted address."""
    address = ADDRESS.match(competition.strip())
    name = address[1] if address else competition.strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise PipelineError(f"download.competition is {competition!r}, allowed: a competition's slug "
                            f"or address, such as digit-recognizer or {SITE}/c/digit-recognizer")
    return name


def find_credentials():
    """Where the credentials lie that the client will use, in words; None without any.

    Offline and without the client, so it cannot tell whether they are valid.
    """
    return next((where for _, where in _credentials()), None)


def _credentials():
    """Yields (the client's name of the method, where), in the client's order."""
    home = Path.home() / ".kaggle"
    given = os.environ.get("KAGGLE_API_TOKEN")
    if given:
        if not os.path.exists(given) or _text(given):
            yield "ACCESS_TOKEN", "KAGGLE_API_TOKEN"
    else:
        for file in (home / "access_token", home / "access_token.txt"):
            if _text(file):
                yield "ACCESS_TOKEN", str(file)
                break
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR") or home)
    if not os.environ.get("KAGGLE_CONFIG_DIR") and sys.platform == "linux" and not home.exists():
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kaggle"
    file = folder / "kaggle.json"
    in_file = _json(file)
    in_environment = {name: os.environ.get(f"KAGGLE_{name.upper()}") for name in ("username", "key")}
    if all(in_environment.values()):
        yield "LEGACY_API_KEY", "KAGGLE_USERNAME and KAGGLE_KEY"
    elif all(in_environment[name] or in_file.get(name) for name in in_environment):
        yield "LEGACY_API_KEY", str(file)
    file = home / "credentials.json"
    if _json(file).get("refresh_token"):
        yield "OAUTH", str(file)


def _text(path):
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError):
        return ""


def _json(path):
    with contextlib.suppress(ValueError):
        content = json.loads(_text(path))
        if isinstance(content, dict):
            return content
    return {}


def download(competition, folder):
    """Download the competition's files into `folder`, unpacked: `competition.FILES`.

    Raises:
        PipelineError: what went wrong; `folder` may hold some of the files then.
    """
    name = slug(competition)
    folder = Path(folder)
    quiet = not sys.stderr.isatty()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".kaggle-") as temporary:
        temporary = Path(temporary)
        with _client(name, "DOWNLOAD_DEADLINE") as (api, _):
            try:
                api.competition_download_files(name, path=temporary, force=True, quiet=quiet)
            except requests.HTTPError as error:
                # What would refuse the single files too.
                if error.response is None or error.response.status_code in (401, 403, 429):
                    raise
                for file in FILES:
                    api.competition_download_file(name, file, path=temporary, force=True, quiet=quiet)
        archive = temporary / f"{name}.zip"
        if archive.exists():
            return unpack(archive, folder)
        for file in FILES:
            path = temporary / file
            if not path.exists():
                path = temporary / f"{file}.zip"
            if path.suffix == ".zip" or zipfile.is_zipfile(path):
                unpack(path, folder, [file])
            else:
                path.replace(folder / file)


def submissions(competition):
    """Yields all submissions, as Kaggle lists them: newest first; asks for a page when it is needed."""
    from kagglesdk.competitions.types.competition_api_service import ApiListSubmissionsRequest
    seen, token, page = set(), "", 0
    while True:
        page += 1
        with _client(competition) as (api, _), api.build_kaggle_client() as client:
            request = ApiListSubmissionsRequest()
            request.competition_name = competition
            request.page_size = 100
            if token:
                request.page_token = token
            else:
                request.page = page
            answer = client.competitions.competition_api_client.list_submissions(request)
            new = [_submission(item) for item in answer.submissions or [] if item.ref not in seen]
        yield from new
        seen.update(item.reference for item in new)
        # Where no token leads on, page numbers might: the last page is the one with nothing new.
        if not new or token and not answer.next_page_token:
            return
        token = answer.next_page_token


def _submission(item):
    score = float(item.public_score) if item.public_score else None
    status = PENDING if item.status.name == "COMPLETE" and score is None else item.status.name
    submitted = f"{item.date.isoformat(timespec='seconds')}Z" if item.date else ""
    return Submission(item.ref, submitted, item.description, status, score, _one_line(item.error_description))


def submissions_left(competition):
    """How many submissions Kaggle allows today; None before the first one ever.

    Raises:
        PipelineError: there is none left.
    """
    with _client(competition) as (api, _):
        limits = api.competition_get_submission_limits(competition)
    if limits.num_allowed_now > 0:
        return limits.num_allowed_now
    if limits.limited_by_total:
        raise PipelineError(f"no submissions left: {limits.num_total} were made, as many as this "
                            "competition allows")
    if limits.num_today or limits.num_total:
        raise PipelineError(f"no submissions left today ({limits.num_today} were made); Kaggle's next "
                            "day begins at 00:00 UTC")
    # All zero is what Kaggle says of a user who has no team yet; it decides on the upload itself.
    return None


def submit(competition, file, message):
    """Send a file to be scored.

    Returns:
        the submission's reference number.

    Raises:
        Unclear: Kaggle may have taken it.
        PipelineError: Kaggle has not taken it.
    """
    with _client(competition) as (api, transport):
        answer = api.competition_submit(str(file), message, competition, quiet=True)
    # The client reports a failed upload in this way alone.
    if answer.message == api.COMPETITION_SUBMIT_UPLOAD_FAILED_MESSAGE:
        raise PipelineError(f"the upload failed: {transport.problem}; nothing was submitted, run it again")
    if not answer.ref:
        raise Unclear(f"Kaggle gave no reference number ({_one_line(answer.message)})")
    return answer.ref


@contextlib.contextmanager
def _client(competition, deadline="CALL_DEADLINE"):
    """The client, signed in and silent, and what carries its calls; errors leave it as PipelineError."""
    found = list(_credentials())
    if not found:
        raise PipelineError(NO_CREDENTIALS)
    transport = _Transport(seconds(deadline))
    try:
        with transport, contextlib.redirect_stdout(io.StringIO()):
            yield _signed_in(found), transport
    except PipelineError:
        raise
    except SystemExit:  # how the client says that it could not sign in
        raise PipelineError(_refused(found))
    except Exception as error:  # it lets out whatever its parsing meets
        text, refused = _explained(error, competition, found)
        raise (Unclear if transport.submitting and not refused else PipelineError)(text)


def _signed_in(found):
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        # An empty one (a secret that is not set) would hide what stands in a file.
        if not os.environ.get(name):
            os.environ.pop(name, None)
    for name in ("VERBOSE", "VERBOSE_OUTPUT"):
        # With one of these the client prints and logs its requests, credentials and all.
        os.environ.pop(name, None)
    from kaggle import api
    if api.CONFIG_NAME_AUTH_METHOD not in api.config_values:
        api.authenticate()  # the import has tried it, and kept to itself what went wrong
    if found[0][0] == "ACCESS_TOKEN" != api.config_values[api.CONFIG_NAME_AUTH_METHOD]:
        # It has passed over an invalid token, and yet would send it with every call.
        raise PipelineError(_refused(found))
    return api


class _Transport:
    """All that the client sends passes here, through the adapter below its sessions.

    It adds what the client lacks: time-outs, retries where they are safe, a deadline over all, a
    bound on what comes, and what it does not tell: why an upload failed (`problem`), and whether the
    submission itself was asked for (`submitting`).
    """

    def __init__(self, deadline):
        self.deadline = deadline
        self.received = 0
        self.problem = None
        self.submitting = False

    def __enter__(self):
        self.plain_send = HTTPAdapter.send
        HTTPAdapter.send = lambda adapter, *args, **options: self.send(adapter, *args, **options)
        self.plain_handler = signal.signal(signal.SIGALRM, self._ring)
        # Every second again, because the client's import swallows what is raised in it.
        signal.setitimer(signal.ITIMER_REAL, self.deadline, 1)
        return self

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.plain_handler)
        HTTPAdapter.send = self.plain_send

    def _ring(self, *_):
        self.problem = f"not finished within {self.deadline:g} s"
        raise (Unclear if self.submitting else PipelineError)(f"Kaggle: {self.problem}; run it again")

    def send(self, adapter, request, *args, **options):
        # The upload's adapter would retry for six minutes, and log the address it was given.
        adapter.max_retries = Retry(0, read=False)
        options["timeout"] = seconds("NETWORK_TIMEOUT")
        # Sent again, this call could make a second submission; all others are safe.
        self.submitting = request.url.endswith("/CreateSubmission")
        for attempt in range(RETRIES + 1):
            last = attempt == RETRIES or self.submitting
            wait = seconds("NETWORK_BACKOFF") * 2**attempt
            if attempt and hasattr(request.body, "seek"):
                rewind_body(request)
            try:
                response = self.plain_send(adapter, request, *args, **options)
            except requests.RequestException as error:
                self.problem = _problem(error)
                if last or not isinstance(error, requests.ConnectionError):
                    raise
            else:
                self.problem = f"{_host(request)} answered {response.status_code}"
                wait = max(wait, _retry_after(response))
                if last or response.status_code not in PASSING or wait > LONGEST_WAIT:
                    return self._bounded(response)
                response.close()
            print(f"{self.problem}, next try in {wait:g} s", file=sys.stderr)
            time.sleep(wait)

    def _bounded(self, response):
        chunks = response.iter_content

        def bounded(*args, **options):
            for chunk in chunks(*args, **options):
                self.received += len(chunk)
                if self.received > LARGEST_MEMBER:
                    raise PipelineError(f"{_host(response)} sends more than {LARGEST_MEMBER} bytes, "
                                        "far more than the competition's files have")
                yield chunk

        response.iter_content = bounded
        return response


def _retry_after(response):
    """Seconds that the server asks to wait; 0 if it does not."""
    try:
        return Retry().get_retry_after(response.raw) or 0
    except InvalidHeader:
        return 0


def _host(message):
    # Nothing but the host: addresses of uploads and downloads carry their permission with them.
    return urlsplit(message.url).hostname


def _problem(error):
    host = _host(error.request) if error.request is not None else "Kaggle"
    if isinstance(error, requests.Timeout):
        return f"no answer from {host} within {seconds('NETWORK_TIMEOUT'):g} s"
    return f"the connection to {host} failed"


def _one_line(text, request=None):
    """What Kaggle says, short, printable and without the credentials it was asked with."""
    secrets = (request.headers.get("Authorization") or "" if request else "").split()[1:]
    with contextlib.suppress(ValueError):
        secrets += [base64.b64decode(secret).decode().partition(":")[2] for secret in secrets]
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return "".join(filter(str.isprintable, " ".join(text.split())))[:300]


def _refused(found):
    before = f", which come before those of {found[1][1]}" if found[1:] else ""
    return (f"Kaggle refuses the credentials of {found[0][1]}{before}: they are wrong or have expired; "
            f"remove them, or make new ones at {SITE}/settings/api")


def _explained(error, competition, found):
    """An error of the client in one line, and whether it says that Kaggle refused what was asked."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _explained_answer(error.response, competition, found)
    if isinstance(error, requests.RequestException) and not isinstance(error, ValueError):
        return f"{_problem(error)}; run it again", False
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        return f"{error.filename or 'the download'}: {error.strerror or error}", False
    return f"what Kaggle sent cannot be used ({type(error).__name__}); run it again", False


def _explained_answer(response, competition, found):
    status, said = response.status_code, ""
    with contextlib.suppress(Exception):  # there need not be a reason, nor a readable one
        answer = response.json()
        said = f" ({_one_line(answer['message'], response.request)})"
        if status < 400:
            status = answer["code"]
    text = f"{_host(response)} answered {status}{said}"
    about_competition = "/competitions." in response.request.url
    if status >= 500:
        return f"{text}: the trouble is there; run it again later", False
    if status == 429:
        wait = _retry_after(response)
        text += ": too many requests; run it again " + (f"in {wait:.0f} s" if wait else "later")
    elif status == 401 or response.request.method == "POST" and not about_competition:
        text = _refused(found)
    elif status == 403 and about_competition:
        text += f": accept the rules at {SITE}/competitions/{competition}/rules, then run it again"
    elif status == 404 and about_competition:
        text += f": is {competition!r} the right competition? download.competition in params.yaml names it"
    return text, True
