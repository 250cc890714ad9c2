"""Fig. 7 of a picture that nobody scanned: a finished run's model, or one at hand, looks at it now.

The same sweep and the same panels as the analysis of a run makes; nothing is written.
"""

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from torch import nn

from deconvoy.errors import ImageUnreadable, RequestError, RunNotFound
from deconvoy.occlusion import Occlusion
from deconvoy.run import Run
from deconvoy.spec import Transform
from workers import pipeline
from workers.boxes import in_input
from workers.graph import Layer, Network
from workers.images import Picture, from_pixels
from workers.job import Job, choose, trace
from workers.models import PackedModel, pack, pack_module
from workers.notebook import rgb_of, transform_of
from workers.panels import Projector, Square, Subject, no_boxes, occluded
from workers.sources import FileSource

Layers = str | Sequence[str] | None
Fill = str | float | Sequence[float]


@dataclass(frozen=True)
class _Opened:
    """A model that can look, and the layers that are watched."""

    network: Network
    transform: Transform
    classes: tuple[str, ...]
    layers: Sequence[Layer]


def occlude(
    model: nn.Module | str | os.PathLike[str],
    image: Any,
    *,
    patch: int | None = None,
    stride: int | None = None,
    fill: Fill = "mean",
    label: int | str | None = None,
    top5: bool = False,
    layers: Layers = None,
    transform: Transform | Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
) -> Occlusion:
    """Slide a grey square over one picture and see what the model still makes of it.

    Args:
        model: a model, which is left untouched; or the folder of a finished run, whose model is
            then loaded as `deconvoy verify` does.
        image: path or URL of a file, a PIL picture, or a uint8 array (row, col, rgb); with a run
            also the id of one of its images, as a number.
        patch: side of the square in input pixels; default: a fourteenth of the input's side.
        stride: pixels from one position to the next; default: half the square.
        fill: colour of the square, 0–255: ``mean`` (the transform's, which is the data set's), one
            number, or one a channel.
        label: output whose probability is watched, or its name; default: the label of an image of
            the run, else the class that is predicted.
        top5: keep the five most probable classes of every position.
        layers: names or globs of layers whose strongest map is watched; default: the run's; of a
            model, all.
        transform: of a model: resize, crop, mean and std; default: what it declares as
            ``transform``, else ImageNet's.
        classes: of a model: names of its outputs.

    Returns:
        The panels; picture and projections at full size.

    Raises:
        RequestError: what does not fit, in a sentence.
        ImageUnreadable: the picture cannot be read.
        RunNotFound: no such run, or it has no such image.
    """
    if isinstance(model, nn.Module):
        opened = _of_model(model, transform, classes, layers)
        subject = _subject(image, opened.transform)
    elif transform is not None or classes:
        raise RequestError(
            "transform and classes are for a model at hand: a run has its own; leave them out."
        )
    else:
        opened, subject = _of_run(os.fspath(model), image, layers)
    subject = _labelled(subject, label, opened)
    square = Square.of(opened.transform, patch, stride, fill)
    return occluded(
        opened.network,
        Projector(opened.network),
        opened.transform,
        subject,
        square,
        layers=opened.layers,
        classes=opened.classes,
        top5=top5,
    )


def _of_model(
    model: nn.Module,
    transform: Transform | Mapping[str, Any] | None,
    classes: Sequence[str],
    layers: Layers,
) -> _Opened:
    name = f"object/{type(model).__name__}"
    chosen, chosen_from = transform_of(model, transform)
    model = copy.deepcopy(model).float().eval()
    packed = pack_module(model, name, {}, None, classes, chosen, chosen_from)
    return _opened(replace(packed, module=model), tuple(classes), layers)


def _of_run(url: str, image: Any, layers: Layers) -> tuple[_Opened, Subject]:
    """The model of a run, and the picture as it sees it."""
    run = Run(url)
    if run.spec.model.name.startswith("object/"):
        raise RequestError(
            f"{url!r} was made from a model object, which no file holds: give the model itself, as "
            "in workers.occlude(model, image)."
        )
    watched = run.layer_names if layers is None else layers
    if isinstance(image, int):
        job, _ = pipeline.reopen(url)
        return _opened(job.packed, run.classes, watched), _of_image(run, job, image)
    opened = _opened(_packed(run), run.classes, watched)
    return opened, _subject(image, opened.transform)


def _packed(run: Run) -> PackedModel:
    """The model alone, without a look at the run's images: there may be a million."""
    spec, began = run.spec, run.attributes["provenance"]
    packed = pack(spec.model, spec.seed, spec.data.transform)
    if packed.sha256 != began["model_sha256"]:
        raise RequestError(
            f"{run.url!r} began with other weights (sha256 {began['model_sha256'][:12]}… then, "
            f"{packed.sha256[:12]}… now), so this would not be its model: put them back."
        )
    return replace(packed, transform=Transform.model_validate(began["transform"]))


def _opened(packed: PackedModel, classes: tuple[str, ...], layers: Layers) -> _Opened:
    network = trace(packed)
    patterns = (layers,) if isinstance(layers, str) else layers
    chosen = network.layers if patterns is None else choose(network.layers, patterns, "layers")
    return _Opened(network, packed.transform, classes, chosen)


def _of_image(run: Run, job: Job, image: int) -> Subject:
    if image not in run.images()["id"].to_pylist():
        raise RunNotFound(f"The run {run.url!r} has no image {image}: `run.images()` lists them.")
    place = job.place_of(image)
    uri, transform = job.listing.uris[place], job.packed.transform
    picture = _readable(lambda: job.listing.source.read(uri, transform), uri)
    found = no_boxes()
    if job.boxes is not None:
        found = in_input(job.boxes.of(uri), (picture.height, picture.width), transform)
    return Subject(picture.pixels, image, uri, job.listing.labels[place], found)


def _subject(image: Any, transform: Transform) -> Subject:
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        source = FileSource(os.getcwd())
        return Subject(_readable(lambda: source.read(path, transform), path).pixels, uri=path)
    return Subject(_readable(lambda: from_pixels(rgb_of(image), transform), "image").pixels)


def _readable(read: Callable[[], Picture], what: str) -> Picture:
    try:
        return read()
    except ImageUnreadable as error:
        raise ImageUnreadable(f"{what!r}: {error}.") from error


def _labelled(subject: Subject, label: int | str | None, opened: _Opened) -> Subject:
    if label is None:
        return subject
    outputs = opened.network.layers[-1].units
    index = opened.classes.index(label) if label in opened.classes else label
    if isinstance(index, str) and index.isdecimal():
        index = int(index)
    if isinstance(index, str) or not 0 <= index < outputs:
        near = get_close_matches(str(label), opened.classes, n=3, cutoff=0.4)
        raise RequestError(
            f"label is {label!r}, but it must be an output index from 0 to {outputs - 1}"
            f"{', or a class name: nearest ' + ', '.join(near) if near else ''}."
        )
    return replace(subject, label=index)
