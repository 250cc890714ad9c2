"""Analyse a model object over images at hand, in this process: for notebooks and scripts.

The same pipeline as ``deconvoy run`` with the inline executor; the run it leaves is a run like any
other.
"""

import copy
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import nn

from deconvoy.errors import RequestError
from deconvoy.run import Run
from deconvoy.spec import JobSpec, Transform
from workers import pipeline
from workers.datasets import Listing
from workers.executors.inline import InlineExecutor
from workers.images import Picture, from_pixels, upright_rgb
from workers.models import declared_transform, default_transform, pack_module

Images = str | os.PathLike[str] | Iterable[Any]


@dataclass(frozen=True)
class MemorySource:
    """Images held as RGB arrays."""

    pixels: Sequence[UInt8[np.ndarray, "row col rgb"]]

    def read(self, uri: str, transform: Transform) -> Picture:
        return from_pixels(self.pixels[int(uri)], transform)


def analyse(
    model: nn.Module,
    images: Images,
    *,
    transform: Transform | Mapping[str, Any] | None = None,
    layers: str | Sequence[str] = "all",
    analyses: Sequence[Mapping[str, Any]] = ({"kind": "top"}, {"kind": "projection"}),
    labels: Sequence[int | None] | None = None,
    classes: Sequence[str] = (),
    out: str | os.PathLike[str],
    overwrite: bool = False,
    observe: pipeline.Observe = lambda advance: None,
    **sections: Any,
) -> Run:
    """Find and project the strongest patches of a model's feature maps.

    Args:
        model: left untouched; evaluated in evaluation mode and float32.
        images: a folder, a ``shapes?…`` URI, or images: PIL pictures (turned as EXIF says, 16 bits
            scaled to 8, as in files) or uint8 arrays (row, col, rgb).
        transform: resize, crop, mean and std; default: what the model declares as ``transform``,
            else ImageNet's.
        labels: output index of each image given as a picture or array.
        classes: names of the outputs.
        out: folder of the run.
        observe: told how far it is.
        sections: further sections of the job spec: ``storage``, ``compute``, ``seed``, ``name``.

    Returns:
        The finished run.

    Raises:
        RequestError: what does not fit, in a sentence.
    """
    if not isinstance(model, nn.Module):
        raise RequestError(
            f"model is {type(model).__name__}, but workers.analyse takes a torch.nn.Module: build "
            "the model first; `deconvoy run` takes one by name."
        )
    if not isinstance(images, str | os.PathLike | Iterable):
        raise RequestError(
            f"images is {type(images).__name__}: give a folder, or a list of pictures or arrays."
        )
    kind = f"object/{type(model).__name__}"
    if isinstance(images, str | os.PathLike):
        if labels is not None:
            raise RequestError(
                "labels are for images given as pictures or arrays: a folder has its own; leave "
                "them out, or name a file in data.labels of a job spec."
            )
        listing = None
    else:
        listing = _in_memory(images, labels)
    spec = JobSpec.parse(
        {
            "model": {"name": kind},
            "data": {"uri": "memory" if listing else os.fspath(images)},  # type: ignore[arg-type]
            "layers": layers,
            "analyses": list(analyses),
            **sections,
        }
    )
    chosen, chosen_from = transform_of(model, transform)
    model = copy.deepcopy(model).float().eval()
    packed = pack_module(model, kind, {}, None, classes, chosen, chosen_from)
    packed = replace(packed, module=model)
    compute = spec.compute
    asked = None if compute.workers == "auto" else compute.workers
    executor = InlineExecutor(asked, compute.threads, compute.gpus_per_worker)
    executor.require_fast(compute.precision)
    job, store = pipeline.create(
        spec, os.fspath(out), overwrite=overwrite, packed=packed, listing=listing
    )
    pipeline.execute(job, store, executor, observe)
    return Run(out)


def transform_of(
    model: nn.Module, asked: Transform | Mapping[str, Any] | None
) -> tuple[Transform, str]:
    """The transform of a model at hand, and where it comes from, for people."""
    if isinstance(asked, Transform):
        return asked, "the call"
    if asked is not None:
        return declared_transform(asked), "the call"
    declared = getattr(model, "transform", None)
    if isinstance(declared, Mapping):
        return declared_transform(declared), "the model"
    return default_transform(model), "ImageNet's, since the model declares none"


def _in_memory(images: Iterable[Any], labels: Sequence[int | None] | None) -> Listing:
    pixels = [rgb_of(image, f"images[{number}]") for number, image in enumerate(images)]
    if not pixels:
        raise RequestError("images is empty: give at least one.")
    if labels is not None and len(labels) != len(pixels):
        raise RequestError(f"labels has {len(labels)} entries for {len(pixels)} images: one each.")
    digest = hashlib.sha256()
    for picture in pixels:
        digest.update(picture.tobytes())
    return Listing(
        MemorySource(pixels),
        [str(number) for number in range(len(pixels))],
        list(labels) if labels is not None else [None] * len(pixels),
        digest.hexdigest(),
        "the call" if labels is not None else "none: not given",
    )


def rgb_of(image: Any, what: str = "image") -> UInt8[np.ndarray, "row col rgb"]:
    """The pixels of a PIL picture or an array.

    Args:
        what: it is called in errors.
    """
    if isinstance(image, Image.Image):
        try:
            return np.array(upright_rgb(image))
        except Exception as error:  # one that Pillow has opened is only decoded now
            raise RequestError(
                f"{what} cannot be read: {error}; mend it or leave it out."
            ) from error
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,):
        return image
    shape = getattr(image, "shape", "")
    raise RequestError(
        f"{what} is {type(image).__name__} {shape}: give PIL pictures or uint8 arrays "
        "of (row, col, 3), before normalisation."
    )
