"""The files, folders and URLs that a job spec names."""

import os
from collections.abc import Iterator
from typing import Any, TypeVar

from deconvoy.spec import DataSpec, JobSpec, ProbeSpec
from deconvoy.specs import Spec
from deconvoy.study_spec import StudySpec

WEIGHTS = (".safetensors", ".pt", ".pth")


def places_of(spec: Spec) -> Iterator[tuple[str, str]]:
    """Field and place of everything that is read: images, labels, boxes, parts, weights, class
    names and Python files.  Built-in images and weights that are known by name are no places."""
    if isinstance(spec, StudySpec):
        yield from _places_of_data(spec.data, "data")
        if isinstance(spec.validation, DataSpec):
            yield from _places_of_data(spec.validation, "validation")
        return
    model = spec.model
    yield from _places_of_data(spec.data, "data")
    if spec.probe is not None:
        yield from _places_of_data(spec.probe.data, "analyses.probe.data")
    if model.weights is not None and _is_file(model.weights):
        yield "model.weights", model.weights
    for path in model.checkpoints:
        yield "model.checkpoints", path
    if isinstance(model.classes, str):
        yield "model.classes", model.classes
    file, colon, _ = model.name.rpartition(":")
    if colon and not model.name.startswith("python/"):
        yield "model.name", file


def _places_of_data(data: DataSpec, section: str) -> Iterator[tuple[str, str]]:
    read = {"uri": data.uri, "labels": data.labels, "boxes": data.boxes, "parts": data.parts}
    for field, value in read.items():
        for place in value if isinstance(value, tuple) else (value,):
            drawn = field == "uri" and place is not None and is_drawn(place)
            if place is not None and not drawn:
                yield f"{section}.{field}", place


def is_python(spec: Spec) -> bool:
    """Whether the model is somebody's own code."""
    return isinstance(spec, JobSpec) and ":" in spec.model.name


S = TypeVar("S", bound=Spec)


def anchored(spec: S) -> S:
    """The spec with absolute paths, so that it means the same from any folder."""
    made: Any = _anchored_study(spec) if isinstance(spec, StudySpec) else _anchored_job(spec)
    return made  # type: ignore[no-any-return]


def _anchored_job(spec: JobSpec) -> JobSpec:
    file, colon, factory = spec.model.name.rpartition(":")
    classes = spec.model.classes
    model = spec.model.model_copy(
        update={
            "name": f"{_absolute(file)}:{factory}" if colon else spec.model.name,
            "weights": _absolute(spec.model.weights),
            "checkpoints": _each(spec.model.checkpoints),
            "classes": _absolute(classes) if isinstance(classes, str) else classes,
        }
    )
    analyses = tuple(
        one.model_copy(update={"data": _anchored(one.data)}) if isinstance(one, ProbeSpec) else one
        for one in spec.analyses
    )
    return spec.model_copy(
        update={"model": model, "data": _anchored(spec.data), "analyses": analyses}
    )


def _anchored_study(spec: StudySpec) -> StudySpec:
    other = spec.validation
    validation = _anchored(other) if isinstance(other, DataSpec) else other
    return spec.model_copy(update={"data": _anchored(spec.data), "validation": validation})


def _anchored(data: DataSpec) -> DataSpec:
    places = {
        "uri": _each(data.uri),
        "labels": _each(data.labels),
        "boxes": _absolute(data.boxes),
        "parts": _absolute(data.parts),
    }
    return data.model_copy(update=places)


def _absolute(path: str | None) -> str | None:
    if path is None or "://" in path:
        return path
    several = "{" in path  # shard-{000..012}.tar
    return os.path.abspath(path) if several or os.path.exists(path) else path


def _each(paths: str | None | tuple[str | None, ...]) -> Any:
    return tuple(map(_absolute, paths)) if isinstance(paths, tuple) else _absolute(paths)


def is_drawn(uri: str) -> bool:
    """Whether these are the built-in images."""
    return uri == "shapes" or uri.startswith("shapes?")


def _is_file(weights: str) -> bool:
    return "/" in weights or os.sep in weights or weights.lower().endswith(WEIGHTS)
