"""The files, folders and URLs that a job spec names."""

import os
from collections.abc import Iterator
from typing import Any

from deconvoy.spec import JobSpec

WEIGHTS = (".safetensors", ".pt", ".pth")


def places_of(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Field and place of everything that is read: images, labels, boxes, parts, weights, class
    names and Python files.  Built-in images and weights that are known by name are no places."""
    data, model = spec.data, spec.model
    read = {"uri": data.uri, "labels": data.labels, "boxes": data.boxes, "parts": data.parts}
    for field, value in read.items():
        for place in value if isinstance(value, tuple) else (value,):
            drawn = field == "uri" and place is not None and _is_drawn(place)
            if place is not None and not drawn:
                yield f"data.{field}", place
    if model.weights is not None and _is_file(model.weights):
        yield "model.weights", model.weights
    for path in model.checkpoints:
        yield "model.checkpoints", path
    if isinstance(model.classes, str):
        yield "model.classes", model.classes
    file, colon, _ = model.name.rpartition(":")
    if colon and not model.name.startswith("python/"):
        yield "model.name", file


def is_python(spec: JobSpec) -> bool:
    """Whether the model is somebody's own code."""
    return ":" in spec.model.name


def anchored(spec: JobSpec) -> JobSpec:
    """The spec with absolute paths, so that it means the same from any folder."""

    def absolute(path: str | None) -> str | None:
        if path is None or "://" in path:
            return path
        several = "{" in path  # shard-{000..012}.tar
        return os.path.abspath(path) if several or os.path.exists(path) else path

    def each(paths: str | None | tuple[str | None, ...]) -> Any:
        return tuple(map(absolute, paths)) if isinstance(paths, tuple) else absolute(paths)

    file, colon, factory = spec.model.name.rpartition(":")
    classes = spec.model.classes
    model = spec.model.model_copy(
        update={
            "name": f"{absolute(file)}:{factory}" if colon else spec.model.name,
            "weights": absolute(spec.model.weights),
            "checkpoints": each(spec.model.checkpoints),
            "classes": absolute(classes) if isinstance(classes, str) else classes,
        }
    )
    places = {
        "uri": each(spec.data.uri),
        "labels": each(spec.data.labels),
        "boxes": absolute(spec.data.boxes),
        "parts": absolute(spec.data.parts),
    }
    return spec.model_copy(update={"model": model, "data": spec.data.model_copy(update=places)})


def _is_drawn(uri: str) -> bool:
    return uri == "shapes" or uri.startswith("shapes?")


def _is_file(weights: str) -> bool:
    return "/" in weights or os.sep in weights or weights.lower().endswith(WEIGHTS)
