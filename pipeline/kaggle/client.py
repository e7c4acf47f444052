"""Calls to Kaggle, for the stages `download`, `submit` and `submissions`.

The only module that imports Kaggle's client, and only when it makes a call. Whatever goes wrong is a
PipelineError of one line that says what the user can do about it.
"""

import base64
import contextlib
import itertools
import re
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import requests
from rich.progress import DownloadColumn

from pipeline.competition import FILES, LARGEST_MEMBER, unpack
from pipeline.files import LONGEST_MESSAGE, PipelineError, one_line
from pipeline.kaggle import transport
from pipeline.kaggle.credentials import NO_CREDENTIALS, Credentials, find_credentials, refused_credentials
from pipeline.kaggle.progress import progress_bar
from pipeline.kaggle.submissions import PENDING, Submission

SITE = "https://www.kaggle.com"
ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?kaggle\.com/(?:competitions|c)/([^/?#]+)", re.I)
CHUNK = 1 << 20  # bytes


class OutcomeUnknown(PipelineError):
    """The submission was requested, but no answer says whether Kaggle has it."""


def slug(competition: str) -> str:
    """Get the competition's short name.

    Args:
        competition: that name, or the address of one of the competition's pages.

    Raises:
        PipelineError: it is neither.
    """
    address = ADDRESS.match(competition.strip())
    name = address[1] if address else competition.strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name):
        raise PipelineError(
            f"download.competition is {competition[:60]!r}, allowed: a competition's slug "
            f"or address, such as digit-recognizer or {SITE}/c/digit-recognizer"
        )
    return name


def download(competition: str, folder: Path) -> None:
    """Download the competition's files, `competition.FILES`, unpacked.

    Args:
        competition: its slug or address.
        folder: must exist.

    Raises:
        PipelineError: the reason; `folder` may hold some of the files then.
    """
    name = slug(competition)
    folder = Path(folder)
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=".kaggle-") as temporary,
        _connected(name, deadline="DOWNLOAD_DEADLINE") as kaggle,
    ):
        archive = Path(temporary, f"{name}.zip")
        try:
            _save(lambda: kaggle.download_data_files(_request("DownloadDataFiles", name)), archive)
        except requests.HTTPError as error:
            # These would refuse single files as well.
            if error.response is None or error.response.status_code in (401, 403, 429):
                raise
            _download_single_files(kaggle, name, Path(temporary), folder)
        else:
            unpack(archive, folder)


def _download_single_files(kaggle, name: str, temporary: Path, folder: Path) -> None:
    for file in FILES:
        request = _request("DownloadDataFile", name, file_name=file)
        _save(lambda request=request: kaggle.download_data_file(request), temporary / file)
        # Kaggle sends a large file as an archive, under either name.
        if zipfile.is_zipfile(temporary / file):
            unpack(temporary / file, folder, [file])
        else:
            (temporary / file).replace(folder / file)


def _save(call: Callable[[], requests.Response], path: Path) -> None:
    """Save what a call sends; if the connection breaks in the middle, start over."""
    for attempt in range(transport.RETRIES + 1):
        response = call()
        try:
            with response:
                _write(response, path)
            return
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            if attempt == transport.RETRIES:
                raise
            time.sleep(transport.timeout("NETWORK_BACKOFF") * 2**attempt)


def _write(response: requests.Response, path: Path) -> None:
    size = response.headers.get("Content-Length", "")
    with progress_bar(DownloadColumn()) as progress, open(path, "wb") as file:
        bar = progress.add_task(path.name, total=int(size) if size.isdecimal() else None)
        for chunk in response.iter_content(CHUNK):
            file.write(chunk)
            progress.update(bar, advance=len(chunk))
            if file.tell() > LARGEST_MEMBER:
                raise PipelineError(
                    f"{transport.host(response)} sends more than {LARGEST_MEMBER} bytes, "
                    "far more than the competition's files have"
                )


def submissions(competition: str) -> Iterator[Submission]:
    """Yield all submissions, newest first; asks for the next page only when it is needed.

    Args:
        competition: its slug.
    """
    seen, token = set(), ""
    for page in itertools.count(1):
        position = {"page_token": token} if token else {"page": page}
        with _connected(competition) as kaggle:
            answer = kaggle.list_submissions(
                _request("ListSubmissions", competition, page_size=100, **position)
            )
            new = [_submission(item) for item in answer.submissions or () if item.ref not in seen]
        yield from new
        seen.update(one.reference for one in new)
        # Without tokens, the last page is the one with nothing new.
        if not new or (token and not answer.next_page_token):
            return
        token = answer.next_page_token


def _submission(item) -> Submission:
    score = float(item.public_score) if item.public_score else None
    # Kaggle's score may come later than the status.
    status = PENDING if item.status.name == "COMPLETE" and score is None else item.status.name
    submitted = f"{item.date.isoformat(timespec='seconds')}Z" if item.date else ""
    message, error = one_line(item.description, 600), one_line(item.error_description, 150)
    return Submission(item.ref, submitted, message, status, score, error)


def submissions_left(competition: str) -> int | None:
    """Ask how many submissions Kaggle allows today; None before the first one ever.

    Raises:
        PipelineError: there is none left.
    """
    with _connected(competition) as kaggle:
        limits = kaggle.get_submission_limits(_request("GetSubmissionLimits", competition))
    if limits.num_allowed_now > 0:
        return limits.num_allowed_now
    if limits.limited_by_total:
        raise PipelineError(
            f"no submissions left: {limits.num_total} were made, as many as this competition allows"
        )
    if limits.num_today or limits.num_total:
        raise PipelineError(
            f"no submissions left today ({limits.num_today} were made); Kaggle's next day begins at 00:00 UTC"
        )
    # All are zero for a user without a team; Kaggle decides when the file is sent.
    return None


def submit(competition: str, file: Path, message: str) -> int:
    """Send a file to be scored.

    Args:
        competition: its slug.
        file: the submission.
        message: Kaggle shows it beside the score.

    Returns:
        The submission's reference number.

    Raises:
        OutcomeUnknown: Kaggle may have taken it.
        PipelineError: Kaggle has not taken it.
    """
    with _connected(competition) as kaggle:
        stat = file.stat()
        target = kaggle.start_submission_upload(
            _request(
                "StartSubmissionUpload",
                competition,
                file_name=file.name,
                content_length=stat.st_size,
                last_modified_epoch_seconds=int(stat.st_mtime),
            )
        )
        _upload(target.create_url, file)
    request = _request(
        "CreateSubmission", competition, blob_file_tokens=target.token, submission_description=message
    )
    # Every other call may be repeated; this one could make a second submission.
    with _connected(competition, retries=0, failure=OutcomeUnknown) as kaggle:
        answer = kaggle.create_submission(request)
    if not answer.ref:
        raise OutcomeUnknown(f"Kaggle gave no reference number ({one_line(answer.message, 100)})")
    return answer.ref


def _upload(url: str, file: Path) -> None:
    # A session of its own: the storage host gets no credentials.
    with requests.Session() as session:
        transport.mount(session)
        try:
            response = session.put(url, data=file.read_bytes())
            if response.status_code not in (200, 201):
                raise requests.HTTPError(response=response)
        except requests.RequestException as error:
            raise PipelineError(
                f"the upload failed: {transport.problem(error)}; nothing was submitted, run it again"
            ) from error


def _request(call: str, competition: str, **fields):
    """Build the client's request object of a call."""
    from kagglesdk.competitions.types import competition_api_service

    request = getattr(competition_api_service, f"Api{call}Request")()
    for name, value in {"competition_name": competition, **fields}.items():
        setattr(request, name, value)
    return request


@contextlib.contextmanager
def _connected(
    competition: str,
    deadline: str = "CALL_DEADLINE",
    retries: int = transport.RETRIES,
    failure: type[PipelineError] = PipelineError,
):
    """Yield Kaggle's competition service, signed in.

    Args:
        competition: its slug, for messages.
        deadline: which of TIMEOUTS the block as a whole has.
        retries: of each call.
        failure: raised for what may have happened all the same; a refusal is always a PipelineError.
    """
    credentials = find_credentials()
    if credentials is None:
        raise PipelineError(NO_CREDENTIALS)
    limit = transport.timeout(deadline)
    try:
        with transport.deadline(limit, failure), _signed_in(credentials, retries) as client:
            yield client.competitions.competition_api_client
    except PipelineError:
        raise
    except Exception as error:  # the client does not wrap what its parsing raises
        if not isinstance(error, requests.HTTPError) or error.response is None:
            raise failure(_explain(error)) from error
        status = _status(error.response)
        refused = status < 500  # so nothing happened
        text = _explain_answer(error.response, status, competition)
        raise (PipelineError if refused else failure)(text) from error


def _signed_in(credentials: Credentials, retries: int):
    """Make a `KaggleClient`, which is a context manager that closes its connections."""
    from kagglesdk.kaggle_client import KaggleClient

    def connect(**arguments):
        client = KaggleClient(**arguments).__enter__()  # makes the session that the adapter is mounted on
        transport.mount(client.http_client()._session, retries)
        return client

    if credentials.arguments:
        return connect(**credentials.arguments)
    from kagglesdk.kaggle_creds import KaggleCredentials

    with connect() as client:
        return connect(api_token=KaggleCredentials.load(client).get_access_token())


def _status(response: requests.Response) -> int:
    """The HTTP status, or the one that Kaggle gives in the body of a 200."""
    if response.status_code < 400:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(response.json()["code"])
    return response.status_code


def _explain_answer(response: requests.Response, status: int, competition: str) -> str:
    """Say in one line what Kaggle answered and what to do about it."""
    about_competition = "/competitions." in response.request.url
    if status == 401 or (status < 500 and response.request.method == "POST" and not about_competition):
        return refused_credentials()
    named = "download.competition in params.yaml names it"
    advice = ""
    if status >= 500:
        advice = ": the trouble is there; run it again later"
    elif status == 429:
        wait = response.headers.get("Retry-After", "")
        when = f"in {wait} s" if re.fullmatch("[0-9]{1,6}", wait) else "later"
        advice = f": too many requests; run it again {when}"
    elif status == 403 and about_competition:
        advice = (
            f": accept the rules at {SITE}/competitions/{competition}/rules, then run it again; "
            f"or is the competition misspelt? {named}"
        )
    elif status == 404 and about_competition:
        advice = f": is {competition!r} the right competition? {named}"
    text = f"{transport.host(response)} answered {status}"
    said = _reason(response, min(100, LONGEST_MESSAGE - len(f"{text} (){advice}")))
    return f"{text} ({said}){advice}" if said else f"{text}{advice}"


def _reason(response: requests.Response, limit: int) -> str:
    """Kaggle's own words, without the credentials it was sent; empty if it gave none, or there is no room."""
    try:
        text = str(response.json()["message"])
    except (ValueError, KeyError, TypeError, requests.RequestException):
        return ""
    secrets = (response.request.headers.get("Authorization") or "").split()[1:]
    with contextlib.suppress(ValueError):
        secrets += [base64.b64decode(secret).decode().partition(":")[2] for secret in secrets]
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return one_line(text, limit) if limit > 20 else ""


def _explain(error: Exception) -> str:
    """Say in one line what went wrong, other than an answer of Kaggle's."""
    # Some of requests' errors are ValueErrors: those are about what was received.
    if isinstance(error, requests.RequestException) and not isinstance(error, ValueError):
        return f"{transport.problem(error)}; run it again"
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        return f"{error.filename or 'the download'}: {error.strerror or error}"
    return f"what Kaggle sent cannot be used ({type(error).__name__}); run it again"
