"""Which jobs a service takes: what it reads lies below the configured roots, and it runs no code of
others unless the operator has listed it.

What its images are is known when they are listed; ``deconvoy.fence`` holds then.
"""

import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from deconvoy.errors import RequestError
from deconvoy.fence import below_any
from deconvoy.places import is_python, places_of
from deconvoy.spec import JobSpec
from service.settings import Settings

MOST_DEEP = 32


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


def require_storable(given: Mapping[str, Any]) -> None:
    """Refuse what no database or JSON reader takes, wherever it is in a request.

    Raises:
        RequestError: a number that is not finite, text that is no Unicode, or too much depth.
    """
    for value in _leaves(given, 0):
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestError(f"The spec has the number {value}: numbers must be finite.")
        if isinstance(value, str) and ("\0" in value or not _is_unicode(value)):
            raise RequestError(
                f"The spec has the text {ascii(value)[:80]}: text must be Unicode without NUL."
            )


def _leaves(value: Any, depth: int) -> Iterator[Any]:
    if depth > MOST_DEEP:
        raise RequestError(f"The spec is nested more than {MOST_DEEP} deep: make it flatter.")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, depth + 1)
    else:
        yield value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
