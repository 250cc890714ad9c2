"""Which jobs a service takes: what it reads lies below the configured roots, and it runs no code of
others unless the operator has listed it."""

import os
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from deconvoy.errors import RequestError
from deconvoy.places import is_python, places_of
from deconvoy.spec import JobSpec
from service.settings import Settings


def admit(spec: JobSpec, settings: Settings) -> None:
    """Refuse what this service may not do.

    Raises:
        RequestError: names the field and what to do.
    """
    if is_python(spec) and not any(
        fnmatchcase(spec.model.name, allowed) for allowed in settings.python_models
    ):
        raise RequestError(
            f"model.name is {spec.model.name!r}, which is Python code, and this service runs none "
            "but what its operator lists (DECONVOY_PYTHON_MODELS): name a torchvision or deconvoy "
            "model, or ask the operator to list it."
        )
    for field, place in places_of(spec):
        if not below_any(place, settings.data_roots):
            roots = ", ".join(settings.data_roots) or "none"
            raise RequestError(
                f"{field} is {place!r}, which is not below a root that this service reads from "
                f"(DECONVOY_DATA_ROOTS; there are: {roots}): copy it there, or ask the operator to "
                "add its place."
            )


def below_any(place: str, roots: Iterable[str]) -> bool:
    """Whether a folder, file or URL lies in one of these, through whatever links and dots."""
    return any(_below(place, root) for root in roots)


def _below(place: str, root: str) -> bool:
    if "://" in place or "://" in root:
        return _url_below(place, root)
    if not os.path.isabs(place):
        return False
    real, top = os.path.realpath(place), os.path.realpath(root)
    return real == top or real.startswith(top.rstrip(os.sep) + os.sep)


def _url_below(place: str, root: str) -> bool:
    here, there = urlsplit(place), urlsplit(root)
    if (here.scheme, here.netloc) != (there.scheme, there.netloc) or not here.scheme:
        return False
    path, top = PurePosixPath(here.path or "/"), PurePosixPath(there.path or "/")
    return ".." not in path.parts and "%" not in here.path and path.is_relative_to(top)
