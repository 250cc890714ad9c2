"""How long an answer is good for: entity tags, and what caches may keep.

A picture's address carries the commit of its run (``?v=``); what it shows under that address never
changes once the run is done.  All else is asked for anew, which costs little where the tag still
fits.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request, Response

from service.shelf import Shelved

YEAR = 31_536_000
"""Seconds; what "for ever" is to a cache."""


@dataclass(frozen=True)
class Freshness:
    """Of one answer."""

    tag: str
    """With its quotes."""
    headers: Mapping[str, str]

    def fits(self, request: Request) -> bool:
        """Whether the caller has this answer already."""
        known = request.headers.get("if-none-match", "")
        tags = {tag.strip().removeprefix("W/") for tag in known.split(",")}
        return self.tag in tags or "*" in tags

    def unchanged(self) -> Response:
        return Response(status_code=304, headers=dict(self.headers))


def of_run(request: Request, shelved: Shelved, version: str | None = None) -> Freshness:
    """Of an answer that follows from a run and the address alone.

    Args:
        version: the ``v`` of the address.
    """
    # While a run is being made, the same commit may show more from one second to the next.
    moment = "" if shelved.done else f"{shelved.opened}"
    address = f"{shelved.commit} {moment} {request.url.path}?{request.url.query}"
    tag = f'"{hashlib.sha256(address.encode()).hexdigest()[:24]}"'
    for_ever = shelved.done and version == shelved.commit
    return Freshness(tag, {"ETag": tag, "Cache-Control": control(request, for_ever)})


def control(request: Request, for_ever: bool) -> str:
    """The header Cache-Control; what takes a token is for its caller's cache alone."""
    whose = "private" if request.app.state.settings.tokens else "public"
    return f"{whose}, max-age={YEAR}, immutable" if for_ever else f"{whose}, no-cache"
