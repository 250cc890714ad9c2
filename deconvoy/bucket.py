"""A run in a bucket: ``s3://bucket/prefix``, and by the same code ``gs://`` and ``az://``.

Credentials, region and endpoint come from the usual environment variables, as in
``deconvoy.files``.  An object appears whole or not at all, so nothing half-written can be swept.
Objects cannot be added to, so a log is a row of segments, of which the last is written again as it
grows.  Clients are made where they are used and never pickled.  They do not survive a fork.
"""

import asyncio
import logging
import os
import re
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.util import find_spec
from typing import Any, TypeVar

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from deconvoy import tombstone
from deconvoy.errors import (
    DeconvoyError,
    MissingExtra,
    RequestError,
    RunBusy,
    RunNotFound,
    RunUnreachable,
)
from deconvoy.files import PAUSES, S3_HINT, asked_again, asked_once, retries
from deconvoy.holds import FOLDER, Hold
from deconvoy.store import METADATA, RunStore

T = TypeVar("T")

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 60
"""A store that does not answer is asked again for so long, by obstore, before a job fails."""

SHORT_PATIENCE_SECONDS = 10
"""The same of a heartbeat, so that one that fails leaves time for others."""

TEND_SECONDS = 5.0
"""So far a log in the bucket lags behind; what a driver that is killed logged since is lost."""

SEGMENT_BYTES = 2**16
"""A segment of a log that is larger is not written again."""

BULK = 1000
"""Objects deleted in one request, as S3 allows; before each it is seen that the run is ours yet."""

SWEEPS = 3
"""A worker that was ended with its driver may have had one more write under way."""

PLACE = re.compile(r"[a-z0-9]+://[^/@?#%\\\s]+(/[^/?#%\\]+)+")


class BucketStore(RunStore):
    """The objects of one run, below a prefix.

    Raises:
        MissingExtra: of the extra ``cloud``.
        RequestError: the URL names no place in a bucket.
    """

    def __init__(self, url: str | os.PathLike[str], token: str | None = None) -> None:
        self.url = os.fspath(url).rstrip("/")
        parts = self.url.split("/")
        if not PLACE.fullmatch(self.url) or "." in parts or ".." in parts:
            raise RequestError(
                f"The run URL {self.url!r} names no place in a bucket: write s3://bucket/prefix, "
                "without ?, #, %, empty parts or credentials; those are read from the environment."
            )
        if find_spec("obstore") is None:
            raise MissingExtra("cloud", f"The run {self.url!r}")
        self._hold: Hold | None = None
        self._logs: dict[str, _Log] = {}

    @cached_property
    def client(self) -> Any:
        """The obstore store."""
        with _telling(self.url):
            return _client(self.url, PATIENCE_SECONDS)

    def read(self, path: str) -> bytes:
        import obstore

        with _telling(self.url):
            try:
                return asked_again(lambda: bytes(obstore.get(self.client, path).bytes()))
            except FileNotFoundError:
                raise RunNotFound(f"The run {self.url!r} has no {path!r}.") from None

    def write(self, path: str, content: bytes) -> None:
        import obstore

        with _telling(self.url):
            self.require_hold()
            obstore.put(self.client, path, content, use_multipart=False)

    def append(self, path: str, line: str) -> None:
        """Under the driver's lock the line is written within ``TEND_SECONDS``, else at once."""
        log = self._logs.setdefault(path, _Log(self, path))
        log.add(line)
        if self._hold is None:
            log.flush()

    def lines(self, path: str) -> list[str]:
        content = b"".join(self.read(segment) for segment in self._segments(path))
        return content.decode().split("\n")[:-1]

    def exists(self, path: str) -> bool:
        import obstore

        with _telling(self.url):
            try:
                asked_again(lambda: obstore.head(self.client, path))
            except FileNotFoundError:
                return False
        return True

    def names(self, folder: str) -> list[str]:
        import obstore

        with _telling(self.url):
            found = asked_again(lambda: obstore.list_with_delimiter(self.client, prefix=folder))
        paths = [*found["common_prefixes"], *(str(each["path"]) for each in found["objects"])]
        return sorted(path.rpartition("/")[2] for path in paths)

    def paths(self) -> Iterator[str]:
        return (str(each["path"]) for each in self._listed())

    def delete(self, *paths: str) -> None:
        for first in range(0, len(paths), BULK):
            self._delete(list(paths[first : first + BULK]))

    def _delete(self, paths: list[str]) -> None:
        """So many as go in one request."""
        import obstore

        with _telling(self.url):
            self.require_hold()
            with suppress(FileNotFoundError):
                asked_again(lambda: obstore.delete(self.client, paths))

    def remove(self) -> None:
        if self._hold is None:
            with self.driver_lock():
                return self.remove()
        with suppress(RunNotFound):  # there is none where a driver began and got no further
            self.write(METADATA, tombstone.engraved(self.read(METADATA)))
        self._logs.clear()
        for _ in range(SWEEPS):
            # Arrays cannot be opened any more before their first chunk goes.
            rest = sorted(self._all_but_holds(), key=lambda path: not path.endswith(METADATA))
            if not rest:
                break
            self.delete(*rest)
        else:
            raise RunUnreachable(
                f"The store of {self.url!r} keeps objects that were deleted, as {rest[0]!r}: see "
                "who writes there, and delete the run again."
            )
        with _telling(self.url):
            self._hold.dissolve(METADATA)

    def _all_but_holds(self) -> Iterator[str]:
        """Every file of the run but its metadata, and who drives it."""
        for path in self.paths():
            if path != METADATA and not path.startswith(f"{FOLDER}/"):
                yield path

    def occupant(self) -> str | None:
        return "something" if next(self._listed(), None) is not None else None

    def bytes_used(self) -> int:
        return sum(int(each["size"]) for each in self._listed())

    def zarr_store(self, read_only: bool = True) -> Store:
        return _ZarrObjects(self, read_only)

    def refused(self, error: OSError) -> DeconvoyError:
        told = str(error).rstrip(".")
        return RunUnreachable(
            f"{told}. Everything committed is intact; mend it, then `deconvoy resume {self.url}`."
        )

    @contextmanager
    def driver_lock(self) -> Iterator[None]:
        """A hold with a heartbeat (``deconvoy.holds``)."""
        with _telling(self.url):
            hold = Hold(_client(self.url, SHORT_PATIENCE_SECONDS), self.url)
            hold.take()
        self._hold, ended = hold, threading.Event()
        tending = threading.Thread(target=self._tend, args=(hold, ended), daemon=True)
        tending.start()
        try:
            yield
        finally:
            ended.set()
            tending.join()
            self._hold = None
            hold.give_up()
            if hold.lost is None and not hold.dissolved:
                # A log is for people, and a hold expires: no reason to fail a job that is done.
                with suppress(RunUnreachable), _telling(self.url):
                    self._flush()
                    if self.exists(METADATA):
                        hold.release()
                    else:  # it was deleted before we had it, or never begun
                        hold.dissolve()

    def driver_died(self) -> bool:
        with _telling(self.url):
            return Hold(self.client, self.url).abandoned()

    def require_hold(self) -> None:
        """Raises RunBusy: this driver has lost the run to another."""
        if self._hold is not None:
            self._hold.require()

    def _tend(self, hold: Hold, ended: threading.Event) -> None:
        """Beat and write logs until the driver ends."""
        while not ended.wait(TEND_SECONDS) and hold.lost is None:
            try:
                with _telling(self.url):
                    if hold.due:
                        hold.confirm()
                    if hold.lost is None:
                        self._flush()
            except RunUnreachable as error:
                logger.warning("No sign of life could be given: %s", error)
            except RunBusy:  # lost; the driver is told at its next write
                return

    def _flush(self) -> None:
        for log in list(self._logs.values()):
            log.flush()

    def _segments(self, path: str) -> list[str]:
        """Of a log, in order."""
        stem, dot, suffix = path.rpartition(".")
        folder, _, name = stem.rpartition("/")
        own = re.compile(rf"{re.escape(name)}-\d{{6}}{re.escape(dot + suffix)}")
        return [f"{folder}/{each}" for each in self.names(folder) if own.fullmatch(each)]

    def _listed(self) -> Iterator[Any]:
        import obstore

        last: str | None = None

        def following() -> list[Any]:
            """The next objects, behind the last that was told of."""
            stream = obstore.list(self.client, offset=last, chunk_size=BULK)
            return list(next(iter(stream), ()))

        with _telling(self.url):
            while found := asked_again(following):
                yield from found
                last = str(found[-1]["path"])


class _Log:
    """A log that this process adds to, in segments of its own."""

    def __init__(self, store: BucketStore, path: str) -> None:
        self._store, self._path = store, path
        self._number = 0
        self._content = bytearray()
        """Of the segment at hand."""
        self._dirty = False
        self._adding = threading.Lock()

    def add(self, line: str) -> None:
        with self._adding:
            self._content += line.encode() + b"\n"
            self._dirty = True

    def flush(self) -> None:
        with self._adding:
            if not self._dirty:
                return
            stem, dot, suffix = self._path.rpartition(".")
            if not self._number:  # behind those of the drivers before
                last = self._store._segments(self._path)[-1:]
                self._number = 1 + (int(last[0].removesuffix(dot + suffix)[-6:]) if last else 0)
            place = f"{stem}-{self._number:06d}{dot}{suffix}"
            self._store.write(place, bytes(self._content))
            self._dirty = False
            if len(self._content) > SEGMENT_BYTES:
                self._number += 1
                self._content.clear()


class _ZarrObjects(ObjectStore[Any]):
    """The run for Zarr: errors told as ours, no write without the driver's hold, no secret in a
    pickle."""

    def __init__(self, run: BucketStore, read_only: bool) -> None:
        super().__init__(run.client, read_only=read_only)
        self.url = run.url
        self._run = run

    def __reduce__(self) -> Any:
        return _ZarrObjects, (self._run, self.read_only)

    def with_read_only(self, read_only: bool = False) -> "_ZarrObjects":
        return _ZarrObjects(self._run, read_only)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        with _telling(self.url):
            return await self._asked_again(super().get, key, prototype, byte_range)

    async def get_partial_values(self, prototype: BufferPrototype, key_ranges: Any) -> Any:
        with _telling(self.url):
            ranges = list(key_ranges)
            return await self._asked_again(super().get_partial_values, prototype, ranges)

    async def exists(self, key: str) -> bool:
        with _telling(self.url):
            return await self._asked_again(super().exists, key)

    async def set(self, key: str, value: Buffer) -> None:
        with _telling(self.url):
            self._run.require_hold()
            await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        with _telling(self.url):
            self._run.require_hold()
            await self._asked_again(super().set_if_not_exists, key, value)

    async def _asked_again(self, ask: Callable[..., Awaitable[T]], *about: Any) -> T:
        """As ``asked_again`` has it."""
        for pause in PAUSES:
            try:
                return await ask(*about)
            except Exception as error:
                if not asked_once(error):
                    raise
            await asyncio.sleep(pause)
        return await ask(*about)

    async def delete(self, key: str) -> None:
        with _telling(self.url):
            self._run.require_hold()
            await self._asked_again(super().delete, key)

    async def delete_dir(self, prefix: str) -> None:
        with _telling(self.url):
            await self._asked_again(super().delete_dir, prefix)

    def list(self) -> AsyncGenerator[str, None]:
        return self._told(super().list)

    def list_prefix(self, prefix: str) -> AsyncGenerator[str, None]:
        return self._told(super().list_prefix, prefix)

    def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        return self._told(super().list_dir, prefix)

    async def _told(
        self, listing: Callable[..., AsyncGenerator[str, None]], *prefix: str
    ) -> AsyncGenerator[str, None]:
        async def whole() -> Sequence[str]:
            return [key async for key in listing(*prefix)]

        with _telling(self.url):
            for key in await self._asked_again(whole):
                yield key


def _client(url: str, patience: int) -> Any:
    from obstore.store import from_url

    # Plain http is for servers on the local network.
    return from_url(
        url,
        client_options={"allow_http": True},
        retry_config=retries(patience),
    )


@contextmanager
def _telling(url: str) -> Iterator[None]:
    """The store's errors in a sentence."""
    from obstore.exceptions import BaseError

    try:
        yield
    except DeconvoyError:
        raise
    except (BaseError, OSError) as error:  # of missing objects and rights it raises the builtins
        hint = S3_HINT if url.startswith("s3:") else " (its usual environment variables are read)"
        raise RunUnreachable(f"The store of {url!r} refuses: {_reason(error)}{hint}.") from error


def _reason(error: Exception) -> str:
    """What is left of an answer in XML for people."""
    found = re.search(r"<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", str(error), re.DOTALL)
    if found:
        return f"{found[2].strip().rstrip('.')} ({found[1]})"
    return str(error).strip().splitlines()[0].rstrip(".")
