"""The seal of a finished run: the sha256 of every file that has no checksum of its own.

Chunks carry checksums, and so do the members of a scan's markers and the pages of images parts.
Attributes (``zarr.json``), markers in JSON and weights do not; the driver reads them once more when
all is done, and writes what it read into one file.  That the run is done is written last of all, so
a run that is done has its seal.  One that goes on again is not done until it is sealed anew.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from deconvoy.errors import RunNotFound
from deconvoy.store import METADATA, RunStore
from workers.checksums import Fault

SEAL = "ledger/seal.json"

STATUSES = ("running", "done", "failed", "stopped")

READERS = 16
"""Small files that are read at once: in a bucket, one by one would take minutes."""

_APART = ("ledger/driver/", SEAL)
"""Not of the results: who drives the run, and the seal itself."""


def finish(run: RunStore) -> None:
    """Seal a run, then say that it is done."""
    metadata = json.loads(run.read(METADATA))
    metadata["attributes"]["state"] = {"status": "done", "sealed": True}
    content = json.dumps(metadata, indent=2).encode()
    rest = [path for path in _without_checksum(run.paths()) if path != METADATA]
    digests = {METADATA: _digest(content), **_digests(run, rest)}
    sealed = {"files": digests, "sha256": _digest_of(digests)}
    run.write(SEAL, json.dumps(sealed, indent=0).encode())
    run.write(METADATA, content)


class Sealed:
    """What a run's seal says, and whether its files are still what it says."""

    def __init__(self, run: RunStore, attributes: dict[str, Any]) -> None:
        self._run, self._state = run, attributes["state"]
        self.files = 0
        """Read for their digests alone."""

    def faults(self) -> Iterator[Fault]:
        status = self._state["status"]
        if status not in STATUSES:
            yield Fault(METADATA, f"has the status {status!r}, which is none")
        # A flipped bit may hide that there is a seal, but not the seal.
        if status != "done" or not (self._state.get("sealed") or self._run.exists(SEAL)):
            return
        self.files += 1
        try:
            sealed = json.loads(self._run.read(SEAL))
            digests = dict[str, str](sealed["files"])
            whole = sealed["sha256"] == _digest_of(digests)
        except RunNotFound:
            yield Fault(SEAL, "is missing, but the run says that it was sealed")
            return
        except (ValueError, KeyError, TypeError) as error:
            yield Fault(SEAL, f"cannot be read: {error}")
            return
        if not whole:
            yield Fault(SEAL, "is not what was written: its own checksum differs")
            return
        there = _digests(self._run, list(digests))
        self.files += sum(not path.endswith(".json") for path in digests)
        for path, digest in digests.items():
            if there[path] is None:
                yield Fault(path, "is missing, but the run was finished with it")
            elif there[path] != digest:
                yield Fault(path, "its bytes are not those the run was finished with")


def _without_checksum(paths: Iterable[str]) -> list[str]:
    return sorted(
        path for path in paths
        if (path.endswith(".json") or path.startswith("networks/")) and not path.startswith(_APART)
    )  # fmt: skip


def _digests(run: RunStore, paths: Sequence[str]) -> dict[str, str | None]:
    """Of every file; None where it is not there."""
    with ThreadPoolExecutor(READERS, "seal") as readers:
        found = readers.map(partial(_digest_in, run), paths)
        return dict(zip(paths, found, strict=True))


def _digest_in(run: RunStore, path: str) -> str | None:
    try:
        return _digest(run.read(path))
    except RunNotFound:
        return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of(digests: dict[str, str | None]) -> str:
    return _digest(json.dumps(digests, sort_keys=True).encode())
