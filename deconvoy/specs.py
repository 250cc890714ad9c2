"""Whatever a person asks for: a job, or a study of architectures, told apart by its ``kind``."""

from pathlib import Path
from typing import Any

from deconvoy.errors import FieldInvalid
from deconvoy.spec import JobSpec
from deconvoy.spec_file import override_field, read_fields
from deconvoy.study_spec import StudySpec

Spec = JobSpec | StudySpec


def parse(fields: Any) -> Spec:
    """The spec these plain fields describe.

    Raises:
        RequestError: naming every wrong field, its value and the rule.
    """
    if not isinstance(fields, dict) or "kind" not in fields:
        if isinstance(fields, dict) and "base" in fields and "model" not in fields:
            raise FieldInvalid(
                "The field 'base' is of a study of architectures, which begins with `kind: study`: "
                "add it; or, for a job, give `model` in its place.",
                "base",
            )
        return JobSpec.parse(fields)
    if fields["kind"] != "study":
        raise FieldInvalid(
            f"The field 'kind' is {fields['kind']!r}, but that does not fit: it takes `study`, and "
            "a job has none.",
            "kind",
        )
    return StudySpec.parse(fields)


def from_file(path: str | Path, overrides: tuple[str, ...] = ()) -> Spec:
    """Read a YAML or JSON file; relative paths in it stay relative to the working directory.

    Args:
        overrides: ``key=value`` each, dots for depth (``data.limit=100``), the value as YAML.
    """
    fields = read_fields(path)
    for override in overrides:
        override_field(fields, override)
    return parse(fields)
