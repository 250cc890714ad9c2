"""Who drives a run that lies in a bucket, where no system lets go of a lock when a process ends.

A driver creates a numbered object, which the store does for one of all that try, and writes it
again every ``HEARTBEAT_SECONDS``.  The highest number counts.  One that was not written for
``EXPIRY_SECONDS``, by the store's own clock, is of a driver that was killed or cut off, and the
next number may be created; a driver of the same machine whose process is gone is known to be dead
at once.  A driver that finds a higher number has lost the run and writes nothing more.  Numbers
only rise, so that a driver which wakes after a long sleep disturbs nobody.
"""

import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from deconvoy.errors import RunBusy
from deconvoy.files import asked_again

HEARTBEAT_SECONDS = 15.0
"""A driver writes its object anew so often."""

EXPIRY_SECONDS = 60.0
"""Without a heartbeat for so long a driver has lost the run to whoever asks for it."""

FOLDER = "ledger/driver"

_given_up: set[str] = set()
"""Owners in this process whose drivers have ended without a way to say so to the store."""


@dataclass(frozen=True)
class Holder:
    """Who holds a run: what the object says."""

    owner: str
    """A random name of the hold."""
    pid: int
    host: str
    machine: str
    """Where ``pid`` means something: a boot of a machine, and a space of process numbers."""
    released: bool = False

    @staticmethod
    def here() -> "Holder":
        return Holder(secrets.token_hex(8), os.getpid(), socket.gethostname(), _machine())

    def gone(self) -> bool:
        """Whether it was a driver of this process that has ended, or a process of this machine that
        is no more."""
        if self.owner in _given_up:
            return True
        if not self.machine or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


def _now() -> float:
    """Seconds, of which none are left out while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _machine() -> str:
    """Empty where the system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


@dataclass(frozen=True)
class _Seen:
    """The hold that counts."""

    number: int
    holder: Holder
    written: datetime


class Hold:
    """One driver's hold of a run, or the wish for it.

    Args:
        client: an obstore store of the run.
        url: for people.
    """

    def __init__(self, client: Any, url: str) -> None:
        self._client, self._url = client, url
        self._own = Holder.here()
        self._number = 0
        self._confirmed = 0.0
        self._confirming = threading.Lock()
        self.lost: Holder | None = None
        """Who has the run now, if not we."""
        self.dissolved = False
        """Whether nothing is left of this hold, nor of the run."""

    def take(self) -> None:
        """Raises RunBusy."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        seen = self._seen()
        if seen is not None and not (seen.holder.released or self._dead(seen)):
            raise self._busy(seen.holder)
        self._number, asked = seen.number + 1 if seen else 1, _now()
        # Whoever was first, or we, where the answer to our request was lost and it was sent again.
        with suppress(AlreadyExistsError):
            place, content = self._path(self._number), self._content()
            asked_again(lambda: obstore.put(self._client, place, content, mode="create"))
        # Between our look and our create others may have come and gone, and swept our number; ours
        # then is a lower one, which counts for nothing.
        now = self._seen()
        if now is None or now.holder.owner != self._own.owner:
            raise self._busy(now.holder if now else self._own)
        self._confirmed = asked
        older = [self._path(number) for number in self._numbers() if number < self._number]
        asked_again(lambda: obstore.delete(self._client, older))

    def confirm(self) -> None:
        """The heartbeat."""
        import obstore

        with self._confirming:
            if self.dissolved or not self._is_ours():
                return
            asked = _now()  # and written a while after that
            obstore.put(self._client, self._path(self._number), self._content())
            self._confirmed = asked

    def dissolve(self, *with_it: str) -> None:
        """Leave nothing of this hold and of those before it.

        Args:
            with_it: goes in the same request, where the store deletes many objects in one, so that
                nobody takes the run in between.

        Raises:
            RunBusy: the run was lost to another driver.
        """
        import obstore

        with self._confirming:  # a heartbeat would put it back
            if not self._is_ours():
                self.require()
            paths = [*self._objects(), *with_it]
            with suppress(FileNotFoundError):
                asked_again(lambda: obstore.delete(self._client, paths))
            self.dissolved = True

    def _is_ours(self) -> bool:
        seen = self._seen()
        if seen is None or seen.holder.owner != self._own.owner:
            self.lost = seen.holder if seen else self._own
        return self.lost is None

    @property
    def due(self) -> bool:
        """Whether it is time for a heartbeat."""
        return _now() - self._confirmed >= HEARTBEAT_SECONDS

    def require(self) -> None:
        """Before anything is written.

        Raises:
            RunBusy: the run was lost to another driver.
        """
        if self.lost is None and _now() - self._confirmed > EXPIRY_SECONDS:
            self.confirm()  # this process slept, or the store did not answer
        if self.lost is not None:
            raise RunBusy(
                f"The run {self._url!r} was lost: the store heard nothing of this driver for "
                f"{EXPIRY_SECONDS:g} seconds, and process {self.lost.pid} on {self.lost.host} "
                "goes on with it, or it was deleted."
            )

    def give_up(self) -> None:
        """For a driver that ends, before it tries to say so: the store may not answer.  Its process
        may live on, as that of a notebook does, and nobody is to wait for it."""
        _given_up.add(self._own.owner)

    def release(self) -> None:
        import obstore

        if not self._is_ours():  # it slept, and numbers begin anew where a run was deleted
            return
        content = self._content(released=True)
        obstore.put(self._client, self._path(self._number), content)

    def abandoned(self) -> bool:
        """Whether a driver held the run and is no more.  Told by this machine's clock, so with
        twice the patience: clocks may differ, and nothing depends on the answer but a word."""
        seen = self._seen()
        if seen is None or seen.holder.released:
            return False
        age = (datetime.now(UTC) - seen.written).total_seconds()
        return seen.holder.gone() or age > 2 * EXPIRY_SECONDS

    def _dead(self, seen: _Seen) -> bool:
        if seen.holder.gone():
            return True
        return (self._store_time() - seen.written).total_seconds() > EXPIRY_SECONDS

    def _store_time(self) -> datetime:
        """What the store's clock shows."""
        import obstore

        path = f"{FOLDER}/clock-{self._own.owner}"
        obstore.put(self._client, path, b"")
        now: datetime = obstore.head(self._client, path)["last_modified"]
        asked_again(lambda: obstore.delete(self._client, path))
        return now

    def _objects(self) -> list[str]:
        """Paths of this hold, of those before it, and of clocks that were looked at."""
        import obstore

        listed = asked_again(lambda: obstore.list_with_delimiter(self._client, prefix=FOLDER))
        return [str(each["path"]) for each in listed["objects"]]

    def _numbers(self) -> list[int]:
        names = (path.rpartition("/")[2].removesuffix(".json") for path in self._objects())
        return sorted(int(name) for name in names if name.isdecimal())

    def _seen(self) -> _Seen | None:
        import obstore

        for number in reversed(self._numbers()):
            try:
                found = obstore.get(self._client, self._path(number))
            except FileNotFoundError:  # swept since we looked
                continue
            holder = Holder(**json.loads(bytes(found.bytes())))
            return _Seen(number, holder, found.meta["last_modified"])
        return None

    def _path(self, number: int) -> str:
        return f"{FOLDER}/{number:06d}.json"

    def _content(self, released: bool = False) -> bytes:
        return json.dumps({**asdict(self._own), "released": released}).encode()

    def _busy(self, holder: Holder) -> RunBusy:
        return RunBusy(
            f"The run {self._url!r} is being worked on by process {holder.pid} on {holder.host}: "
            "wait for it, or stop it first. A driver that was killed there lets go "
            f"{EXPIRY_SECONDS:g} seconds after its last sign of life."
        )
