"""Where a run lies: small files written whole, and the Zarr group beside them.

A file is there entirely or not at all: it is written beside its place and renamed.  Paths are
relative to the run and use ``/``.
"""

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zarr
from zarr.storage import LocalStore

from deconvoy.errors import DiskTooSmall, RequestError, RunBusy, RunNotFound


class RunStore:
    """The folder of one run.

    Raises:
        RequestError: a URL of a kind that is not supported.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.url = os.fspath(url)
        if "://" in self.url:
            raise RequestError(
                f"The run URL {self.url!r} is not on a local disk: give a path; copy the run "
                "there and back with your store's own tools."
            )
        self.root = Path(self.url)

    def read(self, path: str) -> bytes:
        """Raises RunNotFound."""
        try:
            return (self.root / path).read_bytes()
        except FileNotFoundError:
            raise RunNotFound(f"The run {self.url!r} has no {path!r}.") from None

    def write(self, path: str, content: bytes) -> None:
        """Put a whole file in place, over an older one if there is one."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f"{place.name}.{os.getpid()}.partial")
        try:
            draft.write_bytes(content)
            os.replace(draft, place)
        finally:
            draft.unlink(missing_ok=True)

    def append(self, path: str, line: str) -> None:
        """Add a line to a log; readers must bear a last line cut short."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, sorted; empty where there is none."""
        place = self.root / folder
        if not place.is_dir():
            return []
        return sorted(p.name for p in place.iterdir() if not p.name.endswith(".partial"))

    def delete(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what writers that were killed left half-written."""
        for draft in self.root.rglob("*.partial"):
            draft.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the whole run."""
        shutil.rmtree(self.root, ignore_errors=False)

    def bytes_used(self) -> int:
        return sum(p.stat().st_size for p in self.root.rglob("*") if p.is_file())

    def bytes_free(self) -> int:
        """Free space of the disk the run is or will be on."""
        place = self.root.absolute()
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    def zarr(self, mode: str = "r") -> zarr.Group:
        """The run's Zarr group, never through consolidated metadata: arrays come while it runs."""
        store = LocalStore(self.root, read_only=mode == "r")
        if mode == "w-":
            return zarr.create_group(store)
        return zarr.open_group(store, mode="r" if mode == "r" else "r+", use_consolidated=False)

    def refused(self, error: OSError) -> DiskTooSmall:
        """What to raise where the disk takes no more."""
        return DiskTooSmall(
            f"Writing to {self.url!r} failed: {error.strerror or error}. Everything committed is "
            f"intact; make room or mend it, then `deconvoy resume {self.url}`."
        )

    @contextmanager
    def driver_lock(self) -> Iterator[None]:
        """Hold the run as its only driver; the system lets go when the process ends, however.

        Raises:
            RunBusy: another driver is at work.
        """
        place = self.root / "ledger" / "driver.lock"
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("a+") as file:
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
            yield

    def driver_died(self) -> bool:
        """Whether the last driver was a process of this machine that is no more."""
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
