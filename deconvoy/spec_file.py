"""Read a job spec's fields from a YAML or JSON file, and override some of them."""

import json
from pathlib import Path
from typing import Any

import yaml

from deconvoy.errors import RequestError


def read_fields(path: str | Path) -> dict[str, Any]:
    """The mapping a YAML or JSON file holds.

    Raises:
        RequestError: no such file, or not YAML/JSON, or no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        fields = json.loads(text) if str(path).endswith(".json") else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(
            f"The job spec {str(path)!r} cannot be read: {reason}. Give the path of a YAML or "
            "JSON file; `deconvoy demo` writes an example."
        ) from None
    except (yaml.YAMLError, json.JSONDecodeError) as error:
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
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RequestError(f"--set {override!r}: the value is not valid YAML: {error}") from None
