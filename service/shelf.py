"""Which runs there are, and the ones being read: id → place → ``deconvoy.Run``.

A run is known by the id of the job that made it, by its folder's name below the runs root, or by
the last part of a place the operator names.  Only ids that were listed are ever opened, so that no
text of a request becomes a path.
"""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from deconvoy.errors import DeconvoyError, RequestError, RunBeingDeleted, RunNotFound
from deconvoy.likeness import nearest
from deconvoy.run import Run
from deconvoy.store import RunStore
from service import facts
from service.facts import Facts
from service.hits import LayerCache
from service.settings import Settings

OPENED_RUNS = 32
"""Kept open at most; the ones longest unused go first."""

LISTED_SECONDS, LISTED_REMOTE_SECONDS = 1.0, 10.0
"""A list of runs is good for so long, of folders and of remote places."""

SETTLING_SECONDS = 0.25
"""An unknown id makes the shelf look again, but not more often than this."""

FRESH_SECONDS, FRESH_REMOTE_SECONDS = 2.0, 10.0
"""A run that is not done is opened anew after so long; so is a remote one."""

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Shelved:
    """A run that is open."""

    id: str
    url: str
    run: Run
    commit: str
    """Changes when the run does: of its attributes, which hold its state and results."""
    done: bool
    """Whether nothing of it will change any more."""
    stamp: Stamp | None
    """Of its ``zarr.json``; none of a remote one."""
    opened: float
    """By the monotonic clock."""
    layers: LayerCache

    @property
    def stale(self) -> bool:
        """Whether it must be opened anew."""
        age = time.monotonic() - self.opened
        if self.stamp is None:
            return age > FRESH_REMOTE_SECONDS
        return self.stamp != _stamp(self.url) or (not self.done and age > FRESH_SECONDS)


class Shelf:
    """All runs of a service.

    Args:
        job_urls: id → place of the runs that jobs made, or will.
    """

    def __init__(self, settings: Settings, job_urls: Callable[[], Mapping[str, str]]) -> None:
        self._settings = settings
        self._job_urls = job_urls
        self._lock = threading.Lock()
        self._urls: dict[str, str] = {}
        self._listed = float("-inf")
        self._opened: OrderedDict[str, Shelved] = OrderedDict()
        self._facts: dict[str, tuple[Stamp, Facts]] = {}

    def urls(self) -> dict[str, str]:
        """Id → place of every run there is, sorted by id."""
        remote = "://" in self._settings.runs_root
        return self._list(LISTED_REMOTE_SECONDS if remote else LISTED_SECONDS)

    def url(self, run_id: str) -> str:
        """The place of a run.

        Raises:
            RunNotFound: none of that id; names the nearest.
        """
        found = self.urls().get(run_id) or self._list(SETTLING_SECONDS).get(run_id)
        if found is None:
            near = nearest(run_id, list(self.urls()))
            raise RunNotFound(f"There is no run {run_id!r}; {near}.")
        return found

    def place(self, run_id: str) -> str:
        """Where a run was when the shelf last looked; empty where it was not."""
        return self._urls.get(run_id, "")

    def at_hand(self, run_id: str) -> Shelved | None:
        """A run that is open and as it is now: no waiting."""
        with self._lock:
            found = self._opened.get(run_id)
            if found is not None:
                self._opened.move_to_end(run_id)
        return None if found is None or found.stale else found

    def open(self, run_id: str) -> Shelved:
        """A run, open; as it is now, or was a few seconds ago.

        Raises:
            RunNotFound: none of that id.
            RunUnreadable: it is broken.
        """
        found = self.at_hand(run_id)
        if found is not None:
            return found
        opened = _open(run_id, self.url(run_id))
        with self._lock:
            known = self._opened.get(run_id)
            if known is not None and known.opened >= opened.opened:
                return known  # another thread was quicker, and may have read tables since
            self._opened[run_id] = opened
            self._opened.move_to_end(run_id)
            while len(self._opened) > OPENED_RUNS:
                self._opened.popitem(last=False)
        return opened

    def facts(self, run_id: str, url: str | None = None) -> Facts:
        """What a list says of a run.

        Args:
            url: its place, where that is known already.

        Raises:
            RunNotFound: none of that id.
        """
        url = url or self.url(run_id)
        stamp = _stamp(url)
        known = self._facts.get(run_id)
        if known is not None and known[0] == stamp and known[1].status == "done":
            return known[1]
        opened = self.at_hand(run_id)
        try:  # of thousands none is kept open for it
            found = facts.of_run(Run(url) if opened is None else opened.run)
        except RunBeingDeleted:
            found = facts.DELETING
        except RunNotFound:
            raise _gone(run_id) from None
        except (DeconvoyError, KeyError, TypeError):
            found = facts.UNREADABLE
        if stamp is not None:
            self._facts[run_id] = (stamp, found)
        return found

    def look_through(self) -> None:
        """Know what a list says of all runs on disks, before anybody waits for one.  Which there
        are is looked up again when somebody asks."""
        for run_id, url in self._found().items():
            if "://" not in url:
                with suppress(RunNotFound):
                    self.facts(run_id, url)

    def owns(self, run_id: str) -> bool:
        """Whether a run is the service's to delete: below the runs root, or a job's."""
        return self.url(run_id) not in self._settings.browse

    def forget(self, run_id: str) -> None:
        """Of a run that is no more."""
        with self._lock:
            self._opened.pop(run_id, None)
            self._facts.pop(run_id, None)
            self._listed = float("-inf")

    def _list(self, good_for: float) -> dict[str, str]:
        with self._lock:
            if time.monotonic() - self._listed <= good_for:
                return self._urls
        urls = self._found()
        with self._lock:
            self._urls, self._listed = urls, time.monotonic()
        return urls

    def _found(self) -> dict[str, str]:
        """Now, sorted by id."""
        found = dict(self._job_runs())
        below = set(found.values())
        for name, url in _folders(self._settings.runs_root):
            if url not in below and _is_run(url):
                found.setdefault(name, url)
        known = set(map(_place, found.values())) if self._settings.browse else set()
        for url in self._settings.browse:
            if _place(url) not in known and _is_run(url):
                found[_free(_name_of(url), found)] = url
        return dict(sorted(found.items()))

    def _job_runs(self) -> Iterator[tuple[str, str]]:
        """Of jobs whose run has begun."""
        for job_id, url in self._job_urls().items():
            if _is_run(url):
                yield job_id, url


def _place(url: str) -> str:
    """Where it is, however it is written."""
    return url.rstrip("/") if "://" in url else os.path.realpath(url)


def _folders(root: str) -> Iterator[tuple[str, str]]:
    """Name and place of each folder below a root; the only way runs are listed."""
    for name in RunStore(root).names(""):
        if not name.startswith("."):
            yield name, f"{root.rstrip('/')}/{name}"


def _is_run(url: str) -> bool:
    if "://" not in url:  # asked of every folder whenever runs are listed
        return os.path.exists(f"{url}/zarr.json")
    try:
        return RunStore(url).exists("zarr.json")
    except (OSError, RequestError):  # a place nobody may look at, or that is none
        return False


def _name_of(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2] or "run"


def _free(name: str, taken: Mapping[str, str]) -> str:
    """A name, with a number if it is taken."""
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def _open(run_id: str, url: str) -> Shelved:
    stamp, opened = _stamp(url), time.monotonic()
    try:
        run = Run(url)
    except RunBeingDeleted:
        raise RunBeingDeleted(
            f"The run {run_id!r} is being deleted, or its deletion was cut off: delete it again to "
            f"finish (`deconvoy delete {run_id}`, or DELETE /v1/runs/{run_id})."
        ) from None
    except RunNotFound:
        raise _gone(run_id) from None
    done = run.status == "done"
    return Shelved(run_id, url, run, run.commit, done, stamp, opened, LayerCache(run))


def _gone(run_id: str) -> RunNotFound:
    """Without the place: ids are what callers know."""
    return RunNotFound(
        f"The run {run_id!r} is not there any more: GET /v1/runs lists those that are."
    )


def _stamp(url: str) -> Stamp | None:
    """What changes with the attributes of a run on a disk."""
    if "://" in url:
        return None
    try:
        status = os.stat(f"{url}/zarr.json")
    except OSError:
        return (0, 0, 0)
    return status.st_mtime_ns, status.st_size, status.st_ino
