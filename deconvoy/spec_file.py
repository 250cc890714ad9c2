"""Read a job spec's fields from a YAML or JSON file, and override some of them."""

import json
from pathlib import Path
from typing import Any

import yaml

from deconvoy.errors import RequestError

MAX_NODES = 1_000_000
"""Values and keys of a spec, each counted wherever an alias repeats it: a few lines of them can
stand for more than any memory holds."""

MAX_DEPTH = 100
"""Of sections within sections; ours are six deep."""


def plain_fields(text: str) -> Any:
    """What a text of YAML holds.

    Raises:
        ValueError, yaml.YAMLError: it is none, or stands for more than a spec can be.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _size_of(root, 1, {})
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


_TOO_DEEP = f"sections lie within each other more than {MAX_DEPTH} deep"


def _size_of(node: yaml.Node, depth: int, known: dict[int, int]) -> int:
    """Nodes below one and itself; ``known``: of those seen before, 0 while they are counted."""
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("an alias stands for a section that it lies in")
        return known[id(node)]
    if depth > MAX_DEPTH:
        raise ValueError(_TOO_DEEP)
    known[id(node)], size = 0, 1
    if isinstance(node, yaml.CollectionNode):
        for item in node.value:
            for part in item if isinstance(item, tuple) else (item,):
                size += _size_of(part, depth + 1, known)
    if size > MAX_NODES:
        raise ValueError(f"its aliases stand for more than {MAX_NODES:,} values")
    known[id(node)] = size
    return size


def read_fields(path: str | Path) -> dict[str, Any]:
    """The mapping a YAML or JSON file holds.

    Raises:
        RequestError: no such file, or not YAML/JSON, or no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        fields = json.loads(text) if str(path).endswith(".json") else plain_fields(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(
            f"The job spec {str(path)!r} cannot be read: {reason}. Give the path of a YAML or "
            "JSON file; `deconvoy demo` writes an example."
        ) from None
    # ValueError: a number of too many digits, a day that no month has, aliases of aliases.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RequestError(f"The job spec {str(path)!r} is not valid YAML/JSON: {error}") from None
    if not isinstance(fields, dict):
        what = "nothing" if fields is None else f"a {type(fields).__name__}, not fields"
        raise RequestError(
            f"The job spec {str(path)!r} holds {what}: it needs at least `model: {{name: …}}` and "
            "`data: {uri: …}`."
        )
    return fields


def override_field(fields: dict[str, Any], override: str) -> None:
    """Set one field from ``a.b=value``; parents are made, the value is read as YAML.

    Raises:
        RequestError: no ``=``, or a parent that is no mapping.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RequestError(f"--set takes key=value, not {override!r}: for example data.limit=100.")
    *parents, last = key.split(".")
    place = fields
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise RequestError(f"--set {override!r}: {parent!r} is a value, not a section.")
    try:
        place[last] = plain_fields(text)
    except (yaml.YAMLError, ValueError) as error:
        raise RequestError(f"--set {override!r}: the value is not valid YAML: {error}") from None
