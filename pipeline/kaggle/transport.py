"""What Kaggle's client lacks in HTTP: timeouts, safe retries, and a deadline over a whole call."""

import contextlib
import logging
import math
import os
import signal
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import MaxRetryError, ReadTimeoutError, ResponseError
from urllib3.util import Retry

from pipeline.files import PipelineError

# Seconds; an environment variable of the same name replaces each of them.
TIMEOUTS = {
    "NETWORK_TIMEOUT": 30,  # to connect, and for the next byte
    "NETWORK_BACKOFF": 1,  # retries wait 0, 2 and 4 times this
    "CALL_DEADLINE": 300,  # for one call with its retries
    "DOWNLOAD_DEADLINE": 1800,  # for the whole download
    "SCORE_DEADLINE": 600,  # for the score of a submission
    "SCORE_POLL": 5,  # between two requests for it
}
RETRIES = 3
MAX_RETRY_AFTER = 60  # seconds; if the server asks for more, the call fails and says so
TRANSIENT = (429, 500, 502, 503, 504)


def timeout(name: str) -> float:
    """Look up one of TIMEOUTS.

    Returns:
        Seconds: the environment's value, else the default.

    Raises:
        PipelineError: the environment's value is not a positive number.
    """
    value = os.environ.get(name) or TIMEOUTS[name]
    with contextlib.suppress(ValueError):
        if 0 < float(value) < math.inf:
            return float(value)
    raise PipelineError(f"{name} is {str(value)[:40]!r}, allowed: a number of seconds above 0")


def mount(session: requests.Session, retries: int = RETRIES) -> None:
    """Give all requests of a session a timeout, and retries of transient failures.

    Args:
        session: the session to change.
        retries: 0 for a request that must not be sent twice.
    """
    # urllib3 would log the full address of a broken transfer, which carries its signature.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    adapter = _TimeoutAdapter(
        max_retries=_Retry(
            total=retries,
            allowed_methods=None,
            status_forcelist=TRANSIENT,
            backoff_factor=timeout("NETWORK_BACKOFF"),
            raise_on_status=False,
        )
    )
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter)


class _TimeoutAdapter(HTTPAdapter):
    def send(self, request, **options):
        return super().send(request, **{**options, "timeout": timeout("NETWORK_TIMEOUT")})


class _Retry(Retry):
    """Announces each retry; does not retry a request that timed out or must wait for long."""

    def increment(self, method=None, url=None, response=None, error=None, _pool=None, _stacktrace=None):
        if isinstance(error, ReadTimeoutError):
            raise error
        wait = self.get_retry_after(response) if response else None
        if wait and wait > MAX_RETRY_AFTER:
            raise MaxRetryError(_pool, url, ResponseError("Retry-After is too long"))
        following = super().increment(method, url, response, error, _pool, _stacktrace)
        problem = f"{_pool.host} answered {response.status}" if response else f"no connection to {_pool.host}"
        print(f"{problem}, next try in {wait or following.get_backoff_time():g} s", file=sys.stderr)
        return following


@contextlib.contextmanager
def deadline(limit: float, failure: type[PipelineError] = PipelineError) -> Iterator[None]:
    """Interrupt the block after `limit` seconds by raising `failure`, wherever it waits.

    A timeout alone does not stop a server that sends a byte now and then.
    """

    def expire(*_):
        raise failure(f"Kaggle: not finished within {limit:g} s; run it again")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def host(message: requests.PreparedRequest | requests.Response) -> str:
    """The host alone: the rest of an upload's or a download's address is as good as a password."""
    return urlsplit(message.url).hostname


def problem(error: requests.RequestException) -> str:
    """Describe a failed request in a few words."""
    if error.response is not None:
        return f"{host(error.response)} answered {error.response.status_code}"
    name = "Kaggle" if error.request is None else host(error.request)
    if isinstance(error, requests.Timeout):
        return f"no answer from {name} within {timeout('NETWORK_TIMEOUT'):g} s"
    return f"the connection to {name} failed"
