"""What a list of runs says of each: read from its attributes alone, and kept while it is done."""

import datetime as dt
import json
from dataclasses import dataclass, replace
from pathlib import Path

from deconvoy.errors import DeconvoyError
from deconvoy.run import Run
from deconvoy.store import RunStore

LOG = "ledger/log.jsonl"
"""What workers say, line by line, each with its time."""


@dataclass(frozen=True)
class Facts:
    """Of one run."""

    status: str
    """As of ``Run.status``, or ``unreadable``, or ``deleting``."""
    kind: str
    """``job`` or ``study``."""
    name: str | None
    """As its spec says."""
    model: str
    images: int
    layers: int
    units: int | None
    """Of all layers; unknown until the scan is done."""
    top1: float | None
    created: dt.datetime | None
    commit: str


UNREADABLE = Facts("unreadable", "job", None, "", 0, 0, None, None, None, "")
DELETING = replace(UNREADABLE, status="deleting")


def of_run(run: Run) -> Facts:
    spec, provenance = run.attributes["spec"], run.attributes["provenance"]
    results = run.attributes.get("results") or {}
    return Facts(
        status=run.status,
        kind=run.kind,
        name=run.name,
        model=spec["base"] if run.kind == "study" else spec["model"]["name"],
        images=provenance["images"],
        layers=len(run.attributes["layers"]),
        units=results.get("units"),
        top1=results.get("top1"),
        created=_created(run.url),
        commit=run.commit,
    )


def seconds(url: str) -> float | None:
    """From the first to the last word of its workers; None where they have said nothing."""
    try:
        times = [json.loads(line)["time"] for line in RunStore(url).lines(LOG)]
        return float(times[-1] - times[0])
    except (DeconvoyError, OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _created(url: str) -> dt.datetime | None:
    """When its first worker was ready, of a run on a disk."""
    if "://" in url:
        return None
    try:
        with Path(url, LOG).open(encoding="utf-8") as log:
            first = json.loads(log.readline())
        return dt.datetime.fromtimestamp(first["time"], dt.UTC)
    except (OSError, ValueError, KeyError, TypeError):  # nothing has begun yet
        return None
