"""Fig. 7 of a picture that nobody scanned: a finished run's model, or one at hand, looks at it now.

The same sweep and the same panels as the analysis of a run makes; nothing is written.
"""

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32
from torch import nn

from deconvoy.errors import ImageUnreadable, RequestError, RunNotFound
from deconvoy.occlusion import Occlusion, maps_among
from deconvoy.run import Run
from deconvoy.spec import JobSpec, OcclusionSpec, StorageSpec, Transform
from workers import pipeline
from workers.actor import TorchSettings
from workers.boxes import in_input
from workers.choice import choose
from workers.cones import Cone
from workers.deconvnet import Deconvnet
from workers.graph import Layer, Network
from workers.grids import Grid
from workers.images import Picture, from_pixels
from workers.independence import require_independent
from workers.job import Job, trace
from workers.machine import cores
from workers.models import PackedModel, pack, pack_module
from workers.notebook import rgb_of, transform_of
from workers.occluding import Arrays, Occluder
from workers.occlusion_items import fill_of, grid_of
from workers.sources import FileSource

WHOLE = StorageSpec(max_side=1024, projection="float16")
"""Nothing is written, so pictures need not be small."""

Layers = str | Sequence[str] | None
Fill = str | int | float | Sequence[int | float]


@dataclass(frozen=True)
class _Opened:
    """A model that can look, and the layers that are watched."""

    network: Network
    deconvnet: Deconvnet
    transform: Transform
    classes: tuple[str, ...]
    layers: Sequence[Layer]


@dataclass(frozen=True)
class _Subject:
    """A picture, with what is known of it."""

    picture: Picture
    image: int = -1
    """Its id in a run; −1 where it has none."""
    uri: str = ""
    label: int | None = None
    boxes: Int32[np.ndarray, "box y0x0y1x1"] | None = None
    """In preprocessed pixels."""


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
        opened, read = _of_run(os.fspath(model), layers, listed=_is_id(image))
        subject = read(image)
    asked = _asked({"patch": patch, "stride": stride, "fill": fill, "top5": top5})
    return _looked(opened, _labelled(subject, label, opened), asked)


def occlude_each(
    url: str | os.PathLike[str],
    images: Sequence[int | str],
    *,
    patch: int | None = None,
    stride: int | None = None,
    layers: Layers = None,
) -> Iterator[Occlusion]:
    """``occlude`` of several images with a run's model, which is loaded, traced and tried once.

    Args:
        images: ids of images of the run, and paths or URLs of files.

    Yields:
        The panels of each, in order, when they are asked for.
    """
    asked = _asked({"patch": patch, "stride": stride})
    opened, read = _of_run(os.fspath(url), layers, listed=any(map(_is_id, images)))
    for image in images:
        yield _looked(opened, read(image), asked)


def _is_id(image: Any) -> bool:
    return isinstance(image, int | np.integer)


def _asked(fields: Mapping[str, Any]) -> OcclusionSpec:
    given = {name: value for name, value in fields.items() if value is not None}
    # As part of a whole spec, so that a wrong value gets the same sentence as there.
    least = {"model": {"name": "x"}, "data": {"uri": "x"}}
    parsed = JobSpec.parse({**least, "analyses": [{"kind": "top"}, {"kind": "occlusion", **given}]})
    assert parsed.occlusion is not None
    return parsed.occlusion


def _looked(opened: _Opened, subject: _Subject, asked: OcclusionSpec) -> Occlusion:
    network, transform = opened.network, opened.transform
    grid, fill = grid_of(asked, transform.crop), fill_of(asked, transform)
    settings = TorchSettings.now()
    torch.set_num_threads(1)  # as in a run: the bits depend on it, and lanes are faster
    try:
        with ThreadPoolExecutor(cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            occluder = Occluder(
                network, opened.deconvnet, lambda layer: Cone(network, layer), opened.layers,
                transform, WHOLE, pool.map, lambda count: None,
            )  # fmt: skip
            arrays = occluder.panels(subject.picture, grid, fill, subject.label, asked.top5)
    finally:
        settings.restore()
    return _gathered(opened, subject, arrays, grid, fill)


def _gathered(
    opened: _Opened, subject: _Subject, arrays: Arrays, grid: Grid, fill: tuple[float, ...]
) -> Occlusion:
    """The arrays of a run's row as what a run's reader makes of them."""
    names = [layer.name for layer in opened.layers]
    scale, stored = arrays["scale"], arrays["projection"].astype(np.float32)
    top5 = arrays.get("top5"), arrays.get("top5_probability")
    sizes = {layer.name: (layer.units, layer.height, layer.width) for layer in opened.layers}
    boxes = np.zeros((0, 4), np.int32) if subject.boxes is None else subject.boxes
    return Occlusion(
        image=subject.image,
        uri=subject.uri,
        size=(opened.transform.crop, opened.transform.crop),
        y=grid.y.astype(np.int32),
        x=grid.x.astype(np.int32),
        patch=grid.patch[0],
        stride=grid.stride,
        fill=fill,
        target=int(arrays["target"]),
        probability=arrays["probability"].astype(np.float32),
        clean_probability=float(arrays["clean_probability"]),
        label=arrays["label"].astype(np.int64),
        clean_label=int(arrays["clean_label"]),
        top5=None if top5[0] is None else top5[0].astype(np.int64),
        top5_probability=None if top5[1] is None else top5[1].astype(np.float32),
        unit=dict(zip(names, arrays["unit"].tolist(), strict=True)),
        activity=dict(zip(names, arrays["activity"].astype(np.float32), strict=True)),
        clean_activity=dict(zip(names, arrays["clean_activity"].tolist(), strict=True)),
        picture=np.ascontiguousarray(arrays["picture"]),
        projection={name: stored[n] * scale[n] for n, name in enumerate(names) if scale[n] > 0},
        boxes=boxes,
        classes=opened.classes,
        maps=maps_among(sizes, opened.network.layers[-1].units),
        predicted=subject.label is None,
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


def _of_run(url: str, layers: Layers, *, listed: bool) -> tuple[_Opened, Callable[[Any], _Subject]]:
    """The model of a run, and what reads a picture as it sees it.

    Args:
        listed: whether images will be named by their ids, so that the run's images are listed anew.
    """
    run = Run(url)
    if run.spec.model.name.startswith("object/"):
        raise RequestError(
            f"{url!r} was made from a model object, which no file holds: give the model itself, as "
            "in workers.occlude(model, image)."
        )
    watched = run.layer_names if layers is None else layers
    job = pipeline.reopen(url)[0] if listed else None
    opened = _opened(job.packed if job else _packed(run), run.classes, watched)

    def read(image: Any) -> _Subject:
        if job is not None and _is_id(image):
            return _of_image(run, job, int(image))
        return _subject(image, opened.transform)

    return opened, read


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
    """Trace a model and try that it treats images one by one."""
    network = trace(packed)
    patterns = (layers,) if isinstance(layers, str) else layers
    if patterns is not None and not len(patterns):
        raise RequestError("layers is empty: name layers whose strongest map is watched, or none.")
    chosen = network.layers if patterns is None else choose(network.layers, patterns, "layers")
    require_independent(network, "occlusion")
    return _Opened(network, Deconvnet(network), packed.transform, classes, chosen)


def _of_image(run: Run, job: Job, image: int) -> _Subject:
    if image not in run.images()["id"].to_pylist():
        raise RunNotFound(f"The run {run.url!r} has no image {image}: `run.images()` lists them.")
    place = job.place_of(image)
    uri, transform = job.listing.uris[place], job.packed.transform
    picture = _readable(lambda: job.listing.source.read(uri, transform), uri)
    found = None
    if job.boxes is not None:
        found = in_input(job.boxes.of(uri), (picture.height, picture.width), transform)
    return _Subject(picture, image, uri, job.listing.labels[place], found)


def _subject(image: Any, transform: Transform) -> _Subject:
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        source = FileSource(os.getcwd())
        return _Subject(_readable(lambda: source.read(path, transform), path), uri=path)
    return _Subject(_readable(lambda: from_pixels(rgb_of(image), transform), "image"))


def _readable(read: Callable[[], Picture], what: str) -> Picture:
    try:
        return read()
    except ImageUnreadable as error:
        raise ImageUnreadable(f"{what!r}: {error}.") from error


def _labelled(subject: _Subject, label: int | str | None, opened: _Opened) -> _Subject:
    if label is None:
        return subject
    if isinstance(label, bool) or not isinstance(label, str | int | np.integer):
        raise RequestError(
            f"label is {label!r} ({type(label).__name__}), but it is an output index or a name."
        )
    label = label if isinstance(label, str) else int(label)
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
