"""What follows from an occlusion analysis: the squares, the images, and the work items.

Settled with the job, so that what does not fit is refused before anything is computed.  Which
images a sample or the hits of a unit are is known only after the scan.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
from jaxtyping import Int32, Int64

from deconvoy.errors import RequestError
from deconvoy.occlusion import square_starts
from deconvoy.spec import (
    CorrespondenceSpec,
    ImagesOfUnits,
    JobSpec,
    NamedImages,
    OcclusionSpec,
    Transform,
)
from workers.choice import choose
from workers.datasets import Listing
from workers.graph import Layer, Network
from workers.grids import Grid, grid_over_image
from workers.image_choice import places_of
from workers.independence import require_independent

PATCHES_A_SIDE = 14
"""An automatic patch is so much of the image's side: 16 pixels of 224."""

FIELD_SHARE = 4
"""Of a layer's nominal field, the side of the square that covers parts of it."""

UNITS_AN_ITEM = 16
"""Of a layer whose hits are covered; on one core an item takes seconds to minutes."""


@dataclass(frozen=True)
class Occluding:
    """An occlusion analysis with all that follows from it before the scan."""

    spec: OcclusionSpec
    grid: Grid
    """Over an image."""
    fill: tuple[float, ...]
    """Of the square, 0–255, a number a channel."""
    named: tuple[int, ...]
    """Images that the spec names itself, by their place in the listing."""
    layers: tuple[Layer, ...]
    """Whose hits are covered one by one."""

    def unit_squares(self, layer: Layer) -> "UnitSquares":
        """How the hits of a layer are covered."""
        rows, cols = layer.field.rows, layer.field.cols
        nominal = [
            length if axis.nominal is None else axis.nominal.size
            for axis, length in zip((rows, cols), layer.field.image, strict=True)
        ]
        patch = min(self.grid.patch[0], max(1, math.ceil(min(nominal) / FIELD_SHARE)))
        stride = max(1, patch // 2)
        longest = [int((axis.high - axis.low).max()) for axis in (rows, cols)]
        most = [len(square_starts(0, n, min(patch, n), stride)) for n in longest]
        return UnitSquares(patch, stride, (most[0], most[1]))


@dataclass(frozen=True)
class UnitSquares:
    """Squares over the receptive fields of one layer."""

    patch: int
    stride: int
    shape: tuple[int, int]
    """Most rows and columns that the grid of a hit has."""

    def positions(self, boxes: Int32[np.ndarray, "hit 4"]) -> Int64[np.ndarray, " hit"]:
        """How many positions the square has over each box; none over an empty one."""
        counts = np.ones(len(boxes), np.int64)
        for axis in (0, 1):
            length = (boxes[:, axis + 2] - boxes[:, axis]).astype(np.int64)
            moves = -(-(length - np.minimum(self.patch, length)) // self.stride)
            counts *= np.where(length > 0, moves + 1, 0)
        return counts


@dataclass(frozen=True)
class OcclusionItem:
    """One image to slide the square over."""

    name: str
    row: int
    """In the arrays."""
    image: int
    """Its id."""


@dataclass(frozen=True)
class UnitOcclusionItem:
    """One Zarr shard of a layer's units whose hits are covered."""

    name: str
    layer: Layer
    start: int
    stop: int


def occluding_of(
    spec: JobSpec,
    transform: Transform,
    network: Network,
    layers: Sequence[Layer],
    listing: Listing,
) -> Occluding | None:
    """What a spec's occlusion analysis comes down to; None where it has none.

    Args:
        layers: of the job.

    Raises:
        RequestError: the square, an image, a layer or a unit does not fit.
        ModelUnsupported: an image's activations depend on the other images of its batch.
    """
    asked = spec.occlusion
    if asked is None:
        return None
    require_independent(network, "occlusion")
    named: tuple[int, ...] = ()
    if isinstance(asked.images, NamedImages):
        named = places_of(asked.images.ids, listing, "occlusion")
    elif isinstance(asked.images, ImagesOfUnits):
        _require_units(asked, layers)
    return Occluding(
        asked,
        _grid(asked, transform.crop),
        fill_of(asked, transform),
        named,
        _chosen(asked, layers),
    )


def _grid(asked: OcclusionSpec, side: int) -> Grid:
    try:
        return grid_of(asked, side)
    except RequestError as error:
        raise RequestError(f"analyses.occlusion: {error}") from None


def grid_of(asked: OcclusionSpec, side: int) -> Grid:
    """The grid over an image of ``side`` pixels.

    Raises:
        RequestError: the square does not fit.
    """
    automatic = min(side, max(2, round(side / PATCHES_A_SIDE)))
    patch = automatic if asked.patch == "auto" else asked.patch
    stride = math.ceil(patch / 2) if asked.stride == "auto" else asked.stride
    return grid_over_image(side, side, patch, stride)


def fill_of(asked: OcclusionSpec | CorrespondenceSpec, transform: Transform) -> tuple[float, ...]:
    """A number a channel.

    Raises:
        RequestError: it has three, but the model takes grey images.
    """
    if asked.fill == "mean":
        return tuple(255 * mean for mean in transform.mean)
    if not isinstance(asked.fill, tuple):
        return (asked.fill,) * transform.channels
    if transform.channels == 1:
        raise RequestError(
            f"analyses.{asked.kind}.fill is {list(asked.fill)}, but the model takes grey images: "
            "give `mean` or one number."
        )
    return asked.fill


def _chosen(asked: OcclusionSpec, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    if asked.units is None:
        return ()
    if asked.units == "maps":
        return tuple(layer for layer in layers if layer.is_map)
    return choose(layers, asked.units, "analyses.occlusion.units")


def _require_units(asked: OcclusionSpec, layers: Sequence[Layer]) -> None:
    known = {layer.name: layer for layer in layers}
    assert isinstance(asked.images, ImagesOfUnits)
    for name in asked.images.top_of:
        if name.layer not in known:
            near = get_close_matches(name.layer, known, n=3, cutoff=0.3) or list(known)[:3]
            raise RequestError(
                f"analyses.occlusion.images.top_of has the layer {name.layer!r}, which the job has "
                f"not; nearest: {', '.join(near)}."
            )
        units = known[name.layer].units
        if name.unit >= units:
            raise RequestError(
                f"analyses.occlusion.images.top_of has unit {name.unit} of layer {name.layer!r}, "
                f"but that has units 0 to {units - 1}."
            )


def image_items(images: Sequence[int]) -> list[OcclusionItem]:
    """One for each image id."""
    return [
        OcclusionItem(f"occlusion/item-{row:06d}", row, image) for row, image in enumerate(images)
    ]


def unit_items(layers: Sequence[Layer]) -> list[UnitOcclusionItem]:
    """All units of the layers, cut from them alone."""
    return [
        UnitOcclusionItem(
            f"unit-occlusion/{layer.name}/item-{number:06d}",
            layer,
            start,
            min(start + UNITS_AN_ITEM, layer.units),
        )
        for layer in layers
        for number, start in enumerate(range(0, layer.units, UNITS_AN_ITEM))
    ]
