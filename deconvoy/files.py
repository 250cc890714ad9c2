"""Read files wherever they lie: a local path, ``s3://bucket/…`` or ``http(s)://…``.

Remote ones go through obstore (the extra ``cloud``): credentials, region and endpoint come from the
usual environment variables (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, …).  A plain web server
cannot list a folder.  Clients are made where they are used, one a process: they do not survive a
fork, and a ``Files`` pickles as its URL alone.
"""

import hashlib
import io
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from deconvoy.errors import FilesUnreachable, MissingExtra, RequestError
from deconvoy.fence import require_inside

T = TypeVar("T")

REMOTE_SCHEMES = ("s3", "http", "https")

READ_AHEAD = 4 * 2**20
"""Bytes a reader of a remote file fetches at a time."""

PATIENCE_SECONDS = 60
"""A store that does not answer is asked again for so long, by obstore, before a job fails."""

_AWAY = re.compile(r"HTTP error|status code: (5\d\d|408|429)")
"""In what obstore tells of a store that does not answer, or stops half way: asked later, it may
have the file."""

_NO_CREDENTIALS = re.compile(
    "<Code>(InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|RequestTimeTooSkewed|"
    "InvalidToken|TokenRefreshRequired)</Code>"
)
"""In an answer that refuses whoever asks, and so says nothing of the file either."""


def refuse_in_the_way(path: Path) -> None:
    """Refuse a place below a file, where no folder can be made.

    Raises:
        RequestError: names the file.
    """
    above = next((place for place in path.absolute().parents if place.exists()), None)
    if above is not None and not above.is_dir():
        raise RequestError(
            f"{str(path)!r} cannot be written, since {str(above)!r} is a file and no folder: "
            "choose another place."
        )


def make_folder_of(path: Path) -> None:
    """Make the folder a new file lies in.

    Raises:
        RequestError: a file is in the way, or the place is a folder.
    """
    refuse_in_the_way(path)
    if path.is_dir():
        raise RequestError(f"{str(path)!r} is a folder: give the name of a file in it.")
    path.parent.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class FileEntry:
    """A file below a root."""

    path: str
    """Relative to the root, with ``/``."""
    size: int
    tag: str
    """Changes when the content does: the ETag, or the time of the last change."""

    def digest(self) -> str:
        return hashlib.sha256(f"{self.path}\0{self.size}\0{self.tag}".encode()).hexdigest()


@dataclass(frozen=True)
class Files:
    """The files below ``root``, a local folder or a URL."""

    root: str

    @property
    def remote(self) -> bool:
        return is_remote(self.root)

    def entries(self) -> Iterator[FileEntry]:
        """All of them, hidden ones left out, in no particular order.

        Raises:
            OSError: the place cannot be listed.
            RequestError: a web server.
        """
        require_inside(self.root)
        return self._remote_entries() if self.remote else _walk(Path(self.root))

    def entry(self, path: str) -> FileEntry:
        """Raises OSError."""
        self._require_inside(path)
        if self.remote:
            found = _answer(lambda: _obstore().head(_store(self.root), path), self.url(path))
            return FileEntry(path, found["size"], _tag(found))
        return _entry(Path(self.root), path)

    def read(self, path: str, at_most: int | None = None) -> bytes:
        """All of a file.  Raises OSError; TooLong, before anything is read, of more bytes."""
        self._require_inside(path)
        if self.remote:
            return _answer(lambda: self._remote_read(path, at_most), self.url(path))
        with _opened(Path(self.root, path)) as file:
            _refuse_longer(os.fstat(file.fileno()).st_size, at_most)
            return file.read()

    def _remote_read(self, path: str, at_most: int | None) -> bytes:
        found = _obstore().get(_store(self.root), path)
        _refuse_longer(found.meta["size"], at_most)
        return bytes(found.bytes())

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``.  Raises OSError, also where the file is too short."""
        self._require_inside(path)
        if self.remote:
            content = _answer(
                lambda: bytes(
                    _obstore().get_range(_store(self.root), path, start=start, length=length)
                ),
                self.url(path),
            )
        else:
            with _opened(Path(self.root, path)) as file:
                # Room for as many bytes as are asked for is made before it is known that there are.
                here = max(0, min(length, os.fstat(file.fileno()).st_size - start))
                file.seek(start)
                content = file.read(here)
        if len(content) != length:
            raise OSError(f"{self.url(path)} ends before byte {start + length}")
        return content

    def open(self, path: str) -> io.BufferedReader:
        """A seekable reader.  Raises OSError."""
        self._require_inside(path)
        if not self.remote:
            return _opened(Path(self.root, path))
        return io.BufferedReader(_RemoteFile(self, path), READ_AHEAD)

    def url(self, path: str) -> str:
        """For people."""
        return f"{self.root.rstrip('/')}/{path}"

    def _require_inside(self, path: str) -> None:
        require_inside(self.url(path) if self.remote else str(Path(self.root, path).absolute()))

    def _remote_entries(self) -> Iterator[FileEntry]:
        if not self.root.startswith("s3:"):
            raise RequestError(
                f"{self.root!r} is a web address, and web servers do not list folders: give a "
                ".parquet, .tar or .csv file there."
            )

        def listed() -> list[Any]:
            return [row for chunk in _obstore().list(_store(self.root)) for row in chunk]

        for found in _answer(listed, self.root):
            path = str(found["path"])
            if not any(part.startswith(".") for part in path.split("/")):
                yield FileEntry(path, found["size"], _tag(found))


class TooLong(OSError):
    """A file of more bytes than its reader takes."""


def _refuse_longer(size: int, at_most: int | None) -> None:
    if at_most is not None and size > at_most:
        raise TooLong(f"{size:,} bytes are more than {at_most:,}")


def _opened(path: Path) -> io.BufferedReader:
    """Of a pipe nothing may ever come, and of a device, or a link to one, no end."""
    kind = path.stat().st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):  # opening a folder tells what it is
        raise OSError(f"{path} is a pipe, a socket or a device, and no file")
    return path.open("rb")


class _RemoteFile(io.RawIOBase):
    """Reads ranges of a remote file; what it lacks in buffering ``BufferedReader`` has."""

    def __init__(self, files: Files, path: str) -> None:
        super().__init__()
        self._files, self._path = files, path
        self._size = files.entry(path).size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._place)
        if length <= 0:
            return 0
        buffer[:length] = self._files.read_range(self._path, self._place, length)
        self._place += length
        return length


def is_remote(place: str) -> bool:
    """Whether a path is a URL of a supported scheme.

    Raises:
        RequestError: a scheme that is not supported.
    """
    scheme, separator, _ = place.partition("://")
    if not separator:
        return False
    if scheme not in REMOTE_SCHEMES:
        raise RequestError(
            f"{place!r}: {scheme}:// is not supported; give a local path, s3://bucket/… or "
            "https://…."
        )
    return True


def split(place: str) -> tuple[Files, str]:
    """The folder a file lies in, and its name there."""
    root, slash, name = place.rpartition("/")
    return Files(root if slash and root else "." if not slash else "/"), name


def _walk(root: Path) -> Iterator[FileEntry]:
    seen: set[str] = set()  # links may lead back up
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith("."):
                yield _entry(root, Path(folder, name).relative_to(root).as_posix())


def _entry(root: Path, path: str) -> FileEntry:
    try:
        status = os.stat(root / path)
    except OSError:  # a dangling link; reading it will say so
        return FileEntry(path, 0, "unreadable")
    return FileEntry(path, status.st_size, str(status.st_mtime_ns))


def _tag(found: Any) -> str:
    return str(found.get("e_tag") or found["last_modified"])


def _obstore() -> Any:
    try:
        import obstore
    except ImportError:
        raise MissingExtra("cloud", "Reading from s3:// and https://") from None
    return obstore


@lru_cache(maxsize=64)
def _store(root: str) -> Any:
    """One client a root; plain http is for servers on the local network, such as MinIO."""
    _obstore()
    from obstore.store import from_url

    return from_url(
        root,
        client_options={"allow_http": True},
        retry_config=retries(PATIENCE_SECONDS),
    )


def retries(seconds: int | float) -> Any:
    """How obstore asks again: time alone ends it.  Its pauses are drawn between the shortest and
    twice the one before, so ten of them were once over within two seconds."""
    return {"max_retries": 1000, "retry_timeout": timedelta(seconds=seconds)}


def asked_again(ask: Callable[[], T]) -> T:
    """What a store answers to what may safely be asked twice.  obstore asks again of its own where
    most requests fail, and where a file ends half way; not where a list or the word that nothing is
    there does, nor where a file is created that must not be there, or many are deleted at once."""
    for pause in PAUSES:
        try:
            return ask()
        except Exception as error:
            if not asked_once(error):
                raise
        time.sleep(pause)
    return ask()


def asked_once(error: Exception) -> bool:
    """Whether a store fell silent and obstore has not asked again."""
    told = str(error).strip().partition("\n")[0]
    return bool(_SILENT.search(told)) and not _RETRIED.search(told)


PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds before asking again."""

_SILENT = re.compile("Error performing .*(body error|error sending request)|list response body")
_RETRIED = re.compile(r"after \d+ retries")


def _answer(ask: Callable[[], T], url: str) -> T:
    """What a store answers; its errors as the builtin ones a local file would raise.

    Raises:
        FilesUnreachable: it does not answer, or not to us; which says nothing of the file.
    """
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    hint = S3_HINT if url.startswith("s3:") else ""
    try:
        return asked_again(ask)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url} is not there") from error
    except TooLong:
        raise
    except Exception as error:  # obstore's own classes
        told = str(error).strip()
        reason = told.splitlines()[0].partition("<?xml")[0].rstrip(" :.")
        if _AWAY.search(told) or _NO_CREDENTIALS.search(told):
            raise FilesUnreachable(
                f"{url} cannot be fetched now: {reason}{hint}. That says nothing of the file, so "
                "it was not skipped; see that its store answers, then go on with `deconvoy resume`."
            ) from error
        if isinstance(error, (PermissionError, PermissionDeniedError, UnauthenticatedError)):
            raise PermissionError(f"{url} may not be read{hint}") from error
        raise OSError(f"{url}: {reason}{hint}") from error


S3_HINT = (
    " (credentials, region and endpoint come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
    "AWS_REGION and AWS_ENDPOINT_URL; AWS_SKIP_SIGNATURE=true reads public buckets)"
)
