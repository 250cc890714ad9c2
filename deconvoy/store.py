"""Where a run lies: small files written whole, and the Zarr group beside them.

``RunStore(url)`` is a ``FolderStore`` on a local disk, a ``BucketStore`` (``deconvoy.bucket``), or
a ``ServedStore`` (``deconvoy.served``), which is at a service and can only be read.  A file is
there entirely or not at all.  Paths are relative to the run and use ``/``.
"""

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.storage import LocalStore

from deconvoy import tombstone
from deconvoy.errors import DeconvoyError, DiskTooSmall, RequestError, RunBusy, RunNotFound
from deconvoy.files import refuse_in_the_way

OBJECT_SCHEMES = ("s3", "gs", "az")
SERVED_SCHEMES = ("http", "https")

METADATA = "zarr.json"
"""What makes a place a run: its attributes."""


class RunStore:
    """What a run is kept in.  It pickles as its URL alone: secrets stay in the environment.

    Args:
        url: a folder, ``s3://bucket/prefix`` (or ``gs://``, ``az://``), or
            ``http(s)://host/v1/runs/ID``.
        token: for a service.

    Raises:
        RequestError: a URL of a kind that is not supported, or that names no place for a run.
    """

    url: str

    def __new__(cls, url: str | os.PathLike[str], token: str | None = None) -> "RunStore":
        return super().__new__(_kind_of(os.fspath(url)) if cls is RunStore else cls)

    def __init__(self, url: str | os.PathLike[str], token: str | None = None) -> None:
        raise NotImplementedError

    def __reduce__(self) -> Any:
        return RunStore, (self.url,)

    @property
    def absolute(self) -> str:
        """The URL for processes that began in another folder."""
        return self.url

    def read(self, path: str) -> bytes:
        """Raises RunNotFound."""
        raise NotImplementedError

    def write(self, path: str, content: bytes) -> None:
        """Put a whole file in place, over an older one if there is one."""
        raise NotImplementedError

    def append(self, path: str, line: str) -> None:
        """Add a line to a log, which ``lines`` reads."""
        raise NotImplementedError

    def lines(self, path: str) -> list[str]:
        """Lines of a log; one that was cut short is left out."""
        raise NotImplementedError

    def exists(self, path: str) -> bool:
        """Whether a file is there."""
        raise NotImplementedError

    def names(self, folder: str) -> list[str]:
        """Names of the files and folders in a folder, sorted; empty where there is none."""
        raise NotImplementedError

    def paths(self) -> Iterator[str]:
        """Every file of the run, in no particular order."""
        raise NotImplementedError

    def delete(self, *paths: str) -> None:
        """Remove files, those that are there."""
        raise NotImplementedError

    def sweep(self) -> None:
        """Remove what writers that were killed left half-written."""

    def remove(self) -> None:
        """Delete the whole run, as its only driver: under ``driver_lock``, which is taken where it
        is not held, and ends with the run.

        First ``zarr.json`` becomes a tombstone (``deconvoy.tombstone``), so that nobody opens what
        is half gone; it goes last, so that a deletion that was cut off is seen, and another one
        finishes it.

        Raises:
            RunBusy: another driver is at work.
        """
        raise NotImplementedError

    def occupant(self) -> str | None:
        """What is there already, for people; None where a new run can be made.

        Raises:
            RequestError: no run can be made there.
        """
        raise NotImplementedError

    def bytes_used(self) -> int:
        raise NotImplementedError

    def bytes_free(self) -> int | None:
        """Room for more; None where nobody can know."""
        return None

    def create(self, attributes: dict[str, Any]) -> zarr.Group:
        """A new group with its attributes, in one write.  Raises where there is one."""
        return zarr.create_group(self.zarr_store(read_only=False), attributes=attributes)

    def zarr(self, mode: str = "r") -> zarr.Group:
        """The run's Zarr group, never through consolidated metadata: arrays come while it runs."""
        store = self.zarr_store(read_only=mode == "r")
        if mode == "w-":
            return self.create({})
        chosen: Any = "r" if mode == "r" else "r+"
        return zarr.open_group(store, mode=chosen, zarr_format=3, use_consolidated=False)

    def zarr_store(self, read_only: bool = True) -> Store:
        """The run for Zarr and xarray."""
        raise NotImplementedError

    def refused(self, error: OSError) -> DeconvoyError:
        """What to raise where a write fails for good."""
        raise NotImplementedError

    def require_writable(self) -> None:
        """Raises RequestError where runs can only be read."""

    def driver_lock(self) -> AbstractContextManager[None]:
        """Hold the run as its only driver.

        Raises:
            RunBusy: another driver is at work.
        """
        raise NotImplementedError

    def driver_died(self) -> bool:
        """Whether the last driver is known to be no more, and did not end the run itself."""
        return False


def _kind_of(url: str) -> type[RunStore]:
    """Modules are loaded only for URLs that need them."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        return FolderStore
    if scheme in OBJECT_SCHEMES:
        from deconvoy.bucket import BucketStore

        return BucketStore
    if scheme in SERVED_SCHEMES:
        from deconvoy.served import ServedStore

        return ServedStore
    raise RequestError(
        f"The run URL {url!r} is of no kind that is supported: give a folder, s3://bucket/… (or "
        "gs://…, az://…), or the address of a run at a service, http://host/v1/runs/ID."
    )


class FolderStore(RunStore):
    """The folder of one run on a local disk."""

    def __init__(self, url: str | os.PathLike[str], token: str | None = None) -> None:
        self.url = os.fspath(url)
        self.root = Path(self.url)
        self._held = False

    @property
    def absolute(self) -> str:
        return os.path.abspath(self.root)

    def read(self, path: str) -> bytes:
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise RunNotFound(f"The run {self.url!r} has no {path!r}.") from None

    def write(self, path: str, content: bytes) -> None:
        """Written beside its place and renamed."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f"{place.name}.{os.getpid()}.partial")
        try:
            draft.write_bytes(content)
            os.replace(draft, place)
        finally:
            draft.unlink(missing_ok=True)

    def append(self, path: str, line: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("ab", buffering=0) as file:
            before = os.fstat(file.fileno()).st_size
            left = memoryview(f"{line}\n".encode())
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:  # of a full disk some of it may be there, and the next would follow it
                file.truncate(before)
                raise

    def lines(self, path: str) -> list[str]:
        place = self.root / path
        if not place.exists():
            return []
        return place.read_text(encoding="utf-8").split("\n")[:-1]

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def names(self, folder: str) -> list[str]:
        place = self.root / folder
        if not place.is_dir():
            return []
        return sorted(name for name in os.listdir(place) if not name.endswith(".partial"))

    def paths(self) -> Iterator[str]:
        for place in self.root.rglob("*"):
            if place.is_file():
                yield place.relative_to(self.root).as_posix()

    def delete(self, *paths: str) -> None:
        for path in paths:
            (self.root / path).unlink(missing_ok=True)

    def sweep(self) -> None:
        for draft in self.root.rglob("*.partial"):
            draft.unlink(missing_ok=True)

    def remove(self) -> None:
        if not self.root.exists():
            return
        if not self._held:
            with self.driver_lock():
                return self.remove()
        with suppress(RunNotFound):  # there is none where a driver began and got no further
            self.write(METADATA, tombstone.engraved(self.read(METADATA)))
        for place in self.root.iterdir():
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            elif place.name != METADATA:
                place.unlink()
        self.delete(METADATA)
        (self.root.unlink if self.root.is_symlink() else self.root.rmdir)()

    def occupant(self) -> str | None:
        refuse_in_the_way(self.root)
        if not self.root.exists():
            return None
        if not self.root.is_dir():
            return "a file"
        return "a folder" if any(self.root.iterdir()) else None

    def bytes_used(self) -> int:
        return sum(p.stat().st_size for p in self.root.rglob("*") if p.is_file())

    def bytes_free(self) -> int:
        """Free space of the disk the run is or will be on."""
        place = self.root.absolute()
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    def zarr_store(self, read_only: bool = True) -> Store:
        return LocalStore(self.root, read_only=read_only)

    def refused(self, error: OSError) -> DeconvoyError:
        return DiskTooSmall(
            f"Writing to {self.url!r} failed: {error.strerror or error}. Everything committed is "
            f"intact; make room or mend it, then `deconvoy resume {self.url}`."
        )

    @contextmanager
    def driver_lock(self) -> Iterator[None]:
        """The system lets go when the process ends, however."""
        place = self.root / "ledger" / "driver.lock"
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            opened = place.open("a+")
        except OSError as error:
            raise self.refused(error) from error
        with opened as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise RunBusy(
                    f"The run {self.url!r} is being worked on by process {file.read().strip()}: "
                    "wait for it, or stop it first."
                ) from None
            file.truncate(0)
            file.write(f"{os.getpid()} on {socket.gethostname()}")
            file.flush()
            self._held = True
            try:
                yield
            finally:
                self._held = False

    def driver_died(self) -> bool:
        """Whether it was a process of this machine that is no more."""
        place = self.root / "ledger" / "driver.lock"
        try:
            pid, _, host = place.read_text(encoding="utf-8").partition(" on ")
            if host != socket.gethostname():
                return False
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except (OSError, ValueError):
            return False
        return False
