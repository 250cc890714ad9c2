"""Ask a service: again where that is safe, and with its problems as errors of ours.

A request is repeated when nothing can come of it twice: reading, cancelling, saying something of a
run, and submitting under an Idempotency-Key.  Any other is repeated only if it did not arrive or
was put off (429).
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import httpx
from httpx_retries import Retry, RetryTransport

from deconvoy.errors import (
    DeconvoyError,
    JobConflict,
    JobNotFound,
    KeyReused,
    NotAllowed,
    RequestError,
    RunNotFound,
    ServiceError,
    ServiceUnreachable,
)
from deconvoy.token_file import given, missing
from deconvoy.token_transport import ShowingToken

KEY = "Idempotency-Key"

NOT_NOW = (429, 502, 503, 504)
"""Statuses of a service, or of a proxy before it, that asking again may change."""

SAFE = Retry(
    total=3,
    allowed_methods=("GET", "HEAD", "PATCH", "DELETE"),
    status_forcelist=NOT_NOW,
    backoff_factor=0.2,
    max_backoff_wait=30.0,
)
KEYED = SAFE.copy_with(allowed_methods=("POST",))
ONCE = KEYED.copy_with(
    status_forcelist=(429,), retry_on_exceptions=(httpx.ConnectError, httpx.ConnectTimeout)
)

GOING = ONCE.copy_with(allowed_methods=("DELETE",))
"""What is deleted is not there the second time."""

REMOVING_SECONDS = 600.0
"""A run of many files may take to go."""

Given = Mapping[str, str | int | None]
"""Parameters of a request; None is left out."""


class Connection:
    """To one service.

    Raises:
        RequestError: the URL is none of a service.
    """

    def __init__(self, url: str, token: str | None, timeout: float) -> None:
        self.url = _checked(url)
        self.token = given(token)
        """Besides which the local one is shown where its service is."""
        self.timeout = timeout
        self._client = httpx.Client(
            base_url=self.url,
            timeout=timeout,
            transport=RetryTransport(
                transport=ShowingToken(self.token, httpx.HTTPTransport()), retry=SAFE
            ),
        )
        self.close = weakref.finalize(self, self._client.close)
        """Let go of it; it is called by itself when nobody holds it any more."""

    def get(self, path: str, given: Given | None = None) -> Any:
        """What is there, read from JSON."""
        return self._plain(self._ask("GET", path, params=_present(given)))

    def text(self, path: str, given: Given | None = None) -> str:
        return self._ask("GET", path, params=_present(given)).text

    def content(self, path: str, given: Given | None = None) -> bytes:
        return self._ask("GET", path, params=_present(given)).content

    def delete(self, path: str) -> Any:
        return self._plain(self._ask("DELETE", path))

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """Change what is there; the same change twice is one."""
        return self._plain(self._ask("PATCH", path, json=body))

    def remove(self, path: str) -> None:
        """Delete what is there, for good."""
        timeout = httpx.Timeout(self.timeout, read=REMOVING_SECONDS)
        self._ask("DELETE", path, timeout=timeout, extensions={"retry": GOING})

    def post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        key: str | None = None,
        seconds: float | None = None,
    ) -> Any:
        """Do something.

        Args:
            key: the service does what comes under one key once, so it may be sent again.
            seconds: the answer may take; default: the timeout of the connection.
        """
        return self._plain(
            self._ask(
                "POST",
                path,
                json=body,
                headers={} if key is None else {KEY: key},
                timeout=httpx.Timeout(self.timeout, read=seconds or self.timeout),
                extensions={"retry": ONCE if key is None else KEYED},
            )
        )

    def hand_in(self, path: str, content: bytes) -> Any:
        """A file; the same file twice is one."""
        headers = {"Content-Type": "application/octet-stream"}
        extensions = {"retry": KEYED}
        return self._plain(
            self._ask("POST", path, content=content, headers=headers, extensions=extensions)
        )

    def events(self, path: str, seconds: float) -> Iterator[tuple[str, str]]:
        """Server-sent events: their names and data.  A sign of life without data is ("", "").

        Args:
            seconds: of silence after which the stream counts as broken.

        Raises:
            ServiceUnreachable: it is broken.
        """
        timeout = httpx.Timeout(self.timeout, read=seconds)
        headers = {"Accept": "text/event-stream"}
        try:
            with self._client.stream("GET", path, headers=headers, timeout=timeout) as response:
                self._require_good(response)
                if response.headers.get("content-type", "").startswith("text/event-stream"):
                    yield from events_in(lines_of(response.iter_text()))
        except httpx.HTTPError as error:
            raise self._away(error) from error

    def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = self._client.request(method, path, **request)
        except httpx.HTTPError as error:
            raise self._away(error) from error
        self._require_good(response)
        return response

    def _plain(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise self._stranger(response) from error

    def _require_good(self, response: httpx.Response) -> None:
        if not response.is_success:
            response.read()
            raise self._error(response)

    def _error(self, response: httpx.Response) -> DeconvoyError:
        """The problem (RFC 9457) that was answered."""
        status, problem = response.status_code, _problem(response)
        if problem is None:
            return self._stranger(response)
        told = str(problem["detail"])
        if status == 401 and "Authorization" not in response.request.headers:
            told = f"{told} {missing(self.url)}"
        return kind_of(status, response.request.url.path, problem.get("field"))(told)

    def _stranger(self, response: httpx.Response) -> DeconvoyError:
        kind = ServiceUnreachable if response.status_code in NOT_NOW else ServiceError
        return kind(
            f"What answers at {self.url} ({response.status_code} {response.reason_phrase}) does "
            "not do so as a service of Deconvoy does: check the address."
        )

    def _away(self, error: httpx.HTTPError) -> ServiceUnreachable:
        told = str(error) or type(error).__name__
        return ServiceUnreachable(
            f"No service answers at {self.url} ({told}): start one with `deconvoy up`, or give the "
            "address of yours (--url, DECONVOY_URL)."
        )


def kind_of(status: int, path: str, field: str | None) -> type[DeconvoyError]:
    """Our error for a problem, by what was asked for and the part of it that is wrong."""
    of_jobs, of_runs = "/v1/jobs" in path, "/v1/runs" in path
    match status:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return NotAllowed
        case HTTPStatus.NOT_FOUND if of_jobs or of_runs:
            return JobNotFound if of_jobs else RunNotFound
        case HTTPStatus.CONFLICT if of_jobs:
            return KeyReused if field == KEY else JobConflict
    if status in NOT_NOW:
        return ServiceUnreachable
    return RequestError if status < 500 else ServiceError


def lines_of(pieces: Iterable[str]) -> Iterator[str]:
    """Lines as they come, ended by line feeds alone: names of people may hold what Python takes for
    the end of a line, too."""
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        yield from (line.removesuffix("\r") for line in whole)
    if rest:
        yield rest


def events_in(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Events of a stream, as https://html.spec.whatwg.org/multipage/server-sent-events.html says;
    comments, which keep a connection alive, are ("", "")."""
    name, content = "message", list[str]()
    for line in lines:
        if not line:
            if content:
                yield name, "\n".join(content)
            name, content = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not field:
            yield "", ""
        elif field == "event":
            name = value
        elif field == "data":
            content.append(value)


def _problem(response: httpx.Response) -> dict[str, Any] | None:
    """A problem with its sentence; None where the answer is none."""
    try:
        found = response.json()
    except ValueError:
        return None
    return found if isinstance(found, dict) and "detail" in found else None


def _present(given: Given | None) -> dict[str, str | int]:
    return {key: value for key, value in (given or {}).items() if value is not None}


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname)
        sound = sound and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment or "@" in parts.netloc:
        raise RequestError(
            "The address of a service is http(s)://host[:port], without ?, # or a password, but "
            f"this is {url.rpartition('@')[2]!r}: `deconvoy up` prints that of yours."
        )
    return url.rstrip("/")
