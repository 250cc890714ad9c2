"""A run at a service, ``http(s)://host/v1/runs/ID``: read only, and only what is asked for.

A file of the run is ``<url>/zarr/<path>``; a folder, with ``/`` behind it, is a JSON list of the
names in it.  Parts of a file come by range requests.
"""

import asyncio
import json
import os
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

import httpx
from httpx_retries import Retry, RetryTransport
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from deconvoy.errors import RequestError, RunNotFound, RunUnreachable
from deconvoy.store import RunStore
from deconvoy.token_transport import ShowingToken

RETRY = Retry(total=3, backoff_factor=0.2)
"""Reading may be asked again."""

SECONDS = 30.0
"""A service may take to answer."""


class ServedStore(RunStore):
    """A run that somebody serves.

    Raises:
        RequestError: the URL is none of a run.
    """

    def __init__(self, url: str | os.PathLike[str], token: str | None = None) -> None:
        self.url = os.fspath(url).rstrip("/")
        try:
            parts = urlsplit(self.url)
            sound = bool(parts.hostname) and (parts.port or True)
        except ValueError:
            sound = False
        if not sound or parts.query or parts.fragment or "@" in parts.netloc:
            raise RequestError(
                "The address of a run at a service is http(s)://host/v1/runs/ID, without ?, # or "
                "a password (a token is given as token=… or DECONVOY_TOKEN), but this is "
                f"{self.url.partition('://')[0]}://…{parts.path if sound else ''}."
            )
        self._client = _client(self.url, token)
        weakref.finalize(self, self._client.close)

    def address(self, path: str) -> str:
        return f"{self.url}/zarr/{quote(path)}"

    def read(self, path: str) -> bytes:
        content = self._get(path)
        if content is None:
            raise RunNotFound(f"The run {self.url!r} has no {path!r}.")
        return content

    def exists(self, path: str) -> bool:
        return self._get(path, {"Range": "bytes=0-0"}) is not None

    def names(self, folder: str) -> list[str]:
        return names_in(self.url, self._get(f"{folder}/" if folder else ""))

    def lines(self, path: str) -> list[str]:
        """Of a run on the service's disk."""
        content = self._get(path) or b""
        return content.decode().split("\n")[:-1]

    def paths(self) -> Iterator[str]:
        return self._below("")

    def zarr_store(self, read_only: bool = True) -> Store:
        if not read_only:
            self.require_writable()
        return _ZarrFiles(self)

    def require_writable(self) -> NoReturn:
        raise RequestError(
            f"The run {self.url!r} is at a service and can only be read there: submit jobs to the "
            "service, or give a folder or an s3:// URL."
        )

    def write(self, path: str, content: bytes) -> None:
        self.require_writable()

    def append(self, path: str, line: str) -> None:
        self.require_writable()

    def delete(self, *paths: str) -> None:
        self.require_writable()

    def sweep(self) -> None:
        self.require_writable()

    def remove(self) -> None:
        self.require_writable()

    def occupant(self) -> str | None:
        self.require_writable()

    def bytes_used(self) -> int:
        raise RequestError(f"How much room {self.url!r} takes is not told by a service.")

    def refused(self, error: OSError) -> RunUnreachable:
        return RunUnreachable(f"{self.url!r} could not be read: {error}")

    def driver_lock(self) -> NoReturn:
        self.require_writable()

    def ask(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        """Raises RunUnreachable."""
        try:
            return self._client.get(self.address(path), headers=headers)
        except httpx.HTTPError as error:
            told = str(error) or type(error).__name__
            raise RunUnreachable(
                f"No service answers at {self.url!r} ({told}): check the address and that it runs."
            ) from error

    def _get(self, path: str, headers: dict[str, str] | None = None) -> bytes | None:
        return content_of(self.url, self.ask(path, headers))

    def _below(self, folder: str) -> Iterator[str]:
        """Files, in folders by what the service lists: it has no list for a file."""
        for name in self.names(folder):
            path = f"{folder}/{name}" if folder else name
            if name == "zarr.json" or self._get(f"{path}/") is None:
                yield path
            else:
                yield from self._below(path)


class _ZarrFiles(Store):
    """The run for Zarr.  It asks in threads: an asynchronous client would belong to one event loop,
    and could not be closed when the store goes."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, run: ServedStore) -> None:
        super().__init__(read_only=True)
        self.url = run.url
        self._run = run

    def __reduce__(self) -> Any:
        return _ZarrFiles, (self._run,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ZarrFiles) and other.url == self.url

    def with_read_only(self, read_only: bool = False) -> "_ZarrFiles":
        if not read_only:
            self._run.require_writable()
        return _ZarrFiles(self._run)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        content = await self._get(key, byte_range)
        return None if content is None else prototype.buffer.from_bytes(content)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        asked = (self.get(key, prototype, byte_range) for key, byte_range in key_ranges)
        return await asyncio.gather(*asked)

    async def exists(self, key: str) -> bool:
        return await self._get(key, RangeByteRequest(0, 1)) is not None

    async def set(self, key: str, value: Buffer) -> None:
        self._run.require_writable()

    async def delete(self, key: str) -> None:
        self._run.require_writable()

    async def list(self) -> AsyncIterator[str]:
        async for path in self.list_prefix(""):
            yield path

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        folder = prefix.rstrip("/")
        for name in names_in(self.url, await self._get(f"{folder}/" if folder else "")):
            path = f"{folder}/{name}" if folder else name
            if name == "zarr.json" or await self._get(f"{path}/") is None:
                yield path
            else:
                async for below in self.list_prefix(path):
                    yield below

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        folder = prefix.rstrip("/")
        for name in names_in(self.url, await self._get(f"{folder}/" if folder else "")):
            yield name

    async def _get(self, path: str, byte_range: ByteRequest | None = None) -> bytes | None:
        headers = {"Range": _range(byte_range)} if byte_range is not None else None
        response = await asyncio.to_thread(self._run.ask, path, headers)
        content = content_of(self.url, response)
        if content is None or byte_range is None or response.status_code == 206:
            return content
        return _cut(content, byte_range)  # a service that knows no ranges


def _client(url: str, token: str | None) -> httpx.Client:
    encrypted = httpx.URL(url).scheme == "https"
    transport = RetryTransport(
        # Certificates take a while to load.
        transport=ShowingToken(token, httpx.HTTPTransport(verify=encrypted)),
        retry=RETRY,
    )
    return httpx.Client(transport=transport, timeout=SECONDS)


def content_of(url: str, response: httpx.Response) -> bytes | None:
    """What came; None where there is no such file.

    Raises:
        RequestError: the token is missing or not good for this.
        RunUnreachable: anything else went wrong.
    """
    status = response.status_code
    if status in (200, 206):
        return response.content
    if status == 404:
        return None
    if status == 416:  # the file is empty
        return b""
    if status in (401, 403):
        raise RequestError(
            f"The service refuses to show {url!r} ({status}): give a token that may read, by "
            "deconvoy.open(url, token=…) or DECONVOY_TOKEN; `deconvoy token create` makes one."
        )
    raise RunUnreachable(f"The service answers {status} for {url!r}: {_detail(response)}.")


def names_in(url: str, listed: bytes | None) -> list[str]:
    """Names in a folder, as the service lists them."""
    if listed is None:
        return []
    try:
        names = json.loads(listed)
        if not isinstance(names, list):
            raise ValueError("no list")
    except ValueError as error:
        raise RunUnreachable(
            f"What answers at {url!r} does not list folders as a service of Deconvoy does: give "
            "the address of a run, http(s)://host/v1/runs/ID."
        ) from error
    return sorted(map(str, names))


def _detail(response: httpx.Response) -> str:
    """Of a problem (RFC 9457), else the status in words."""
    try:
        return str(response.json()["detail"]).rstrip(".")
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase or "no reason is given"


def _range(byte_range: ByteRequest) -> str:
    match byte_range:
        case RangeByteRequest(start, end):
            return f"bytes={start}-{end - 1}"
        case OffsetByteRequest(offset):
            return f"bytes={offset}-"
        case SuffixByteRequest(suffix):
            return f"bytes=-{suffix}"


def _cut(content: bytes, byte_range: ByteRequest) -> bytes:
    match byte_range:
        case RangeByteRequest(start, end):
            return content[start:end]
        case OffsetByteRequest(offset):
            return content[offset:]
        case SuffixByteRequest(suffix):
            return content[-suffix:]
