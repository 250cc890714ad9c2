"""The page that lists every field of a job spec, written from the spec's own classes."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from deconvoy.refusals import FORMS
from deconvoy.spec import DataSpec, JobSpec
from deconvoy.study_spec import StudySpec

_HEAD = """# The job spec

A job is one YAML or JSON file. This page is written from `deconvoy/spec.py` by `make docs`; a test
holds the two together. `deconvoy plan SPEC` tells what a spec would do, `--set key=value` overrides
a field (`--set data.limit=100`). Unknown fields are refused.

```yaml
model: {name: torchvision/squeezenet1_1, weights: squeezenet1_1.safetensors}
data: {uri: photographs, limit: 2000}
layers: [features.12.*, logits]               # default: all
analyses:
  - {kind: top, k: 9}
  - {kind: projection, layers: maps, units: {sample: 0.1}}
  - {kind: occlusion, images: {sample: 8}, patch: 16, stride: 8}
compute: {workers: 2}
```
"""


_STUDY = """
# The spec of a study

Several networks, each trained on the same images (`deconvoy/study_spec.py`): known by
`kind: study`. `run`, `plan`, `resume`, `submit` and `Client.submit` take it as they take a job.
`data` and `validation` have the fields of a job's `data`.

```yaml
kind: study
base: deconvoy/zfnet_small
data: {uri: photographs}              # class folders, or labels
validation: 0.2                       # or {uri: other/photographs}
edits:
  - {remove: [3, 4]}
  - {name: narrow, widths: {6: 128, 7: 128}}
training: {epochs: 30, batch_size: 32}
```
"""


def as_markdown() -> str:
    """The page ``docs/job-spec.md``."""
    job, study = _lines(JobSpec, "", _HEAD), _lines(StudySpec, "", _STUDY)
    return "\n".join((*job, *study)) + "\n"


def _lines(section: type[BaseModel], path: str, head: str = "") -> Iterator[str]:
    yield head if not path else f"\n## `{path}`\n"
    yield "| field | default | meaning |\n|---|---|---|"
    below: list[tuple[type[BaseModel], str]] = []
    for name, field in section.model_fields.items():
        if name == "kind":
            continue
        yield f"| `{name}` | {_default(field)} | {_meaning(field, f'{path}.{name}'.lstrip('.'))} |"
        inside = list(dict.fromkeys(_sections(field.annotation)))
        if section is StudySpec:
            inside = [part for part in inside if part is not DataSpec]
        for part in inside:
            kind = part.model_fields.get("kind")
            tag = f" of kind {get_args(kind.annotation)[0]}" if kind else ""
            few = len(part.model_fields) == 1  # {sample: 0.1}: its form says it all
            if not few:
                below.append((part, f"{f'{path}.{name}'.lstrip('.')}{tag}"))
    for part, place in below:
        yield from _lines(part, place)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        only = value.model_dump() if len(type(value).model_fields) == 1 else {}
        return "".join(f"`{{{key}: {one}}}`" for key, one in only.items()) or "see below"
    if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        return ", ".join(f"`{getattr(part, 'kind', '')}`" for part in value)
    shown = list(value) if isinstance(value, tuple) else value
    return (
        f"`{'null' if shown is None else str(shown).lower() if shown in (True, False) else shown}`"
    )


def _meaning(field: FieldInfo, path: str) -> str:
    told = " ".join((field.description or "").split()).replace("``", "`").replace("|", "\\|")
    known = dict(FORMS)
    form = known.get(path.replace(".", r"\."), "")
    return " ".join(part for part in (told, f"Takes {form}." if form else "") if part)
