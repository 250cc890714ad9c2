"""Watch a job at a service until it ends, through whatever happens to the service meanwhile."""

import json
import math
import time
from collections.abc import Iterator
from typing import Any

from deconvoy.connection import Connection
from deconvoy.errors import ServiceUnreachable, WaitTimedOut

ENDED = ("done", "failed", "stopped", "interrupted")
"""States in which nothing more happens by itself."""

LOOK_SECONDS = 1.0
"""Between two looks where there is no stream of events."""

SILENCE_SECONDS = 20.0
"""A stream counts as broken after so long; a service gives a sign of life every 15 s."""

AWAY_SECONDS = 300.0
"""A service may be away, as for an upgrade."""

DEAF = 3
"""After so many streams of which nothing was heard (a proxy may hold them back) only looks."""

Fields = dict[str, Any]
"""A job, as the service tells it."""


def watch(connection: Connection, path: str, timeout: float | None = None) -> Iterator[Fields]:
    """The job at ``path`` whenever it has changed, at last when it has ended.

    Raises:
        WaitTimedOut: it has not ended after so many seconds.
        ServiceUnreachable: the service was away for too long.
    """
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    deaf = 0
    while True:
        job = _look(connection, path, deadline)
        yield job
        if job["state"] in ENDED:
            return
        left = deadline - time.monotonic()
        if left <= 0:
            raise WaitTimedOut(
                f"The job {job['id']!r} is {job['state']} after {timeout:g} s: it goes on, and can "
                "be waited for again."
            )
        if deaf < DEAF and left > SILENCE_SECONDS:
            heard = False
            for told in _streamed(connection, path):
                heard = True
                if told is not None:
                    yield told
                    if told["state"] in ENDED:
                        return
                if deadline - time.monotonic() < SILENCE_SECONDS:
                    break  # looks keep the time better
            deaf = 0 if heard else deaf + 1
        time.sleep(max(0.0, min(LOOK_SECONDS, deadline - time.monotonic())))


def _look(connection: Connection, path: str, deadline: float) -> Fields:
    """The job as it is; one who waits bears that the service is away for a while."""
    begin = time.monotonic()
    while True:
        try:
            found: Fields = connection.get(path)
            return found
        except ServiceUnreachable:
            now = time.monotonic()
            if now - begin > AWAY_SECONDS or now > deadline:
                raise
        time.sleep(LOOK_SECONDS)


def _streamed(connection: Connection, path: str) -> Iterator[Fields | None]:
    """The job at each event until the stream ends or breaks; None: nothing has changed."""
    try:
        for name, content in connection.events(f"{path}/events", SILENCE_SECONDS):
            yield json.loads(content) if name == "job" else None
    except ServiceUnreachable:
        return
