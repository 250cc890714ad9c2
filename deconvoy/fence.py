"""Places below which a process may read files, wherever a list, a link or a URL leads it.

A service reads on behalf of others: a list below its data may name any file or address.  Whoever
works for one puts the fence up; elsewhere there is none.
"""

import os
from collections.abc import Iterable
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from deconvoy.errors import OutsideRoots

_roots: tuple[str, ...] | None = None


def put_up(roots: Iterable[str] | None) -> None:
    """From now on this process reads files below these alone; None: below any."""
    global _roots
    _roots = None if roots is None else tuple(roots)


def roots() -> tuple[str, ...] | None:
    """Those of this process."""
    return _roots


def require_inside(place: str) -> None:
    """
    Raises:
        OutsideRoots: the fence is up, and the place lies outside of it.
    """
    if _roots is not None and not below_any(place, _roots):
        raise OutsideRoots(f"{place!r} is not below a root that this service reads from")


def below_any(place: str, roots: Iterable[str]) -> bool:
    """Whether a folder, file or URL lies in one of these, through whatever links and dots."""
    return any(_below(place, root) for root in roots)


def _below(place: str, root: str) -> bool:
    try:
        if "://" in place or "://" in root:
            return _url_below(place, root)
        if not os.path.isabs(place):
            return False
        real, top = os.path.realpath(place), os.path.realpath(root)
    except ValueError:  # a NUL, half a surrogate pair, an address with half a bracket
        return False
    return real == top or real.startswith(top.rstrip(os.sep) + os.sep)


def _url_below(place: str, root: str) -> bool:
    here, there = urlsplit(place), urlsplit(root)
    if (here.scheme, here.netloc) != (there.scheme, there.netloc) or not here.scheme:
        return False
    path, top = PurePosixPath(here.path or "/"), PurePosixPath(there.path or "/")
    # Clients take a backslash in an http address for a slash (the WHATWG's rule), ours among them.
    plain = not any(sign in here.path for sign in "%\\")
    return plain and ".." not in path.parts and path.is_relative_to(top)
