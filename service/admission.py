"""Which jobs a service takes: what it reads lies below the configured roots, and it runs no code of
others unless the operator has listed it.

What its images are is known when they are listed; ``deconvoy.fence`` holds then.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from deconvoy.errors import FieldInvalid
from deconvoy.fence import below_any
from deconvoy.places import is_python, places_of
from deconvoy.specs import Spec
from service.settings import Settings

MOST_DEEP = 32


def admit(spec: Spec, settings: Settings) -> None:
    """Refuse what this service may not do.

    Raises:
        RequestError: names the field and what to do.
    """
    if is_python(spec) and not _listed(spec.network, settings.python_models):
        raise FieldInvalid(
            f"model.name is {spec.network!r}, which is Python code, and this service runs none "
            "but what its operator lists (DECONVOY_PYTHON_MODELS): name a torchvision or deconvoy "
            "model, or ask the operator to list it.",
            "model.name",
        )
    for field, place in places_of(spec):
        if not below_any(place, settings.readable):
            roots = ", ".join(settings.data_roots) or "none"
            raise FieldInvalid(
                f"{field} is {place!r}, which is not below a root that this service reads from "
                f"(DECONVOY_DATA_ROOTS; there are: {roots}): copy it there, or ask the operator to "
                "add its place.",
                field,
            )


def _listed(name: str, allowed: Sequence[str]) -> bool:
    """Whether a name of Python code matches what the operator lists; ``..`` leads nowhere."""
    return ".." not in name.split("/") and any(fnmatchcase(name, one) for one in allowed)


def require_storable(given: Mapping[str, Any]) -> None:
    """Refuse what no database or JSON reader takes, wherever it is in a request.

    Raises:
        RequestError: a number that is not finite, text that is no Unicode, or too much depth.
    """
    for place, value in _leaves(given, ()):
        field = _spelled(place)
        if isinstance(value, float) and not math.isfinite(value):
            raise FieldInvalid(
                f"The field '{field}' is {value}, but numbers must be finite: give one that is.",
                field,
            )
        if isinstance(value, str) and ("\0" in value or not _is_unicode(value)):
            raise FieldInvalid(
                f"The field '{field}' has the text {ascii(value)[:80]}, but text must be Unicode "
                "without NUL: write it anew.",
                field,
            )


Place = tuple[str, ...]


def _spelled(place: Place) -> str:
    """With dots; escaped, since a name may be what is wrong."""
    return ascii(".".join(place))[1:-1]


def _leaves(value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
    """Names and values, and where they are."""
    if len(place) > MOST_DEEP:
        field = _spelled(place[:1])
        raise FieldInvalid(
            f"The field '{field}' is nested more than {MOST_DEEP} deep: make it flatter.", field
        )
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield (*place, str(key)), key
            yield from _leaves(inner, (*place, str(key)))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _leaves(inner, (*place, str(number)))
    else:
        yield place, value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
