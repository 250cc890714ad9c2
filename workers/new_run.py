"""Where a run is made, and whether one that is there goes on as it began."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from deconvoy.errors import RequestError, RunExists, RunUnreachable
from deconvoy.schema import FORMAT
from deconvoy.spec import Transform
from deconvoy.store import RunStore

logger = logging.getLogger(__name__)


@contextmanager
def vacant(url: str, overwrite: bool) -> Iterator[RunStore]:
    """The place of a new run.  What may be replaced is there until the block ends without an error,
    so that a spec that does not fit costs nobody a run.

    Raises:
        RunExists: something is there already.
        RequestError: no place is named.
    """
    if not url.strip():
        raise RequestError("The place of the new run (--out) is empty: name a folder.")
    run = RunStore(url)
    occupant = run.occupant()
    if occupant and not _is_run(run):
        raise RunExists(
            f"{url!r} is {occupant} that is no run, and stays as it is: choose another --out."
        )
    if occupant and not overwrite:
        raise RunExists(
            f"{url!r} exists already: choose another --out, `deconvoy resume {url}` to go on with "
            "it, or --overwrite to replace it."
        )
    yield run
    if occupant:
        run.remove()  # raises if somebody works on it


def _is_run(run: RunStore) -> bool:
    """Of whatever version: other people's Zarr groups are not ours to delete."""
    try:
        content = json.loads(run.read("zarr.json"))
        return str(content["attributes"]["format"]).startswith(FORMAT.partition("/")[0])
    except RunUnreachable:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        return False


def require_same(
    url: str, began: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str]
) -> None:
    """A run goes on only with what it began with.

    Args:
        keys: of the provenance.

    Raises:
        RequestError: one of them differs.
    """
    for key in keys:
        then, today = began.get(key), now.get(key)
        # A run that is older than a field of the transform has its default: compared as read, not
        # as written.
        same = then == today
        if key == "transform":
            same = Transform.model_validate(then) == Transform.model_validate(today)
        if not same:
            raise RequestError(
                f"{url!r} began with another {key} ({then} then, {today} now): a run goes on only "
                "with the same weights, checkpoints, images, boxes and parts. Put them back, or "
                "start a new run."
            )


def warn_of_others(began: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Say on what else the last bits may depend that is not as it was."""
    for key in keys:
        if now[key] != began.get(key):
            logger.warning("The run began with %s %s, now %s.", key, began.get(key), now[key])
