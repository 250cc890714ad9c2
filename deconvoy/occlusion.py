"""What a grey square hides from a model: the panels of one image's Fig. 7, as arrays.

Zeiler & Fergus (2013, arXiv:1311.2901) section 4.2: a grey square slides over the image, and for
every position of it one sees what the model still makes of the picture.  A run's sweep and one of a
picture that nobody scanned are the same thing here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import zarr
from jaxtyping import Float32, Int32, Int64, UInt8
from numpy import ndarray

from deconvoy.arrays import array_of, read
from deconvoy.errors import RunNotFound
from deconvoy.schema import MISSING_IMAGE

if TYPE_CHECKING:
    from deconvoy.run import Run
    from deconvoy.unit import Unit


def square_starts(begin: int, end: int, side: int, stride: int) -> Int64[ndarray, " start"]:
    """Where a square of ``side`` pixels stands along an axis from ``begin`` to ``end``: every
    ``stride`` pixels, and once more flush with the end."""
    last = end - side
    starts = np.arange(begin, last + 1, stride, dtype=np.int64)
    return starts if starts[-1] == last else np.append(starts, last)


@dataclass(frozen=True)
class Occlusion:
    """One image under a grey square at every position of a grid."""

    image: int
    """Its id; −1 of a picture that the run has not scanned."""
    uri: str
    size: tuple[int, int]
    """Height and width of the preprocessed image, in whose pixels all places are."""
    y: Int32[ndarray, " gy"]
    """Top rows of the square."""
    x: Int32[ndarray, " gx"]
    """Left columns of the square."""
    patch: int
    """Side of the square."""
    stride: int
    fill: tuple[float, ...]
    """Colour of the square, 0–255, a number a channel."""
    target: int
    """Class whose probability is watched: the image's label, or the predicted one where it has
    none."""
    probability: Float32[ndarray, "gy gx"]
    """Of the target: the softmax output, 0–1.  Fig. 7 (d)."""
    clean_probability: float
    label: Int64[ndarray, "gy gx"]
    """The most probable class.  Fig. 7 (e)."""
    clean_label: int
    top5: Int64[ndarray, "gy gx rank"] | None
    """The five most probable classes, where they were asked for."""
    top5_probability: Float32[ndarray, "gy gx rank"] | None
    unit: Mapping[str, int]
    """Of each layer, in execution order, the map that is strongest in the clean image."""
    activity: Mapping[str, Float32[ndarray, "gy gx"]]
    """The sum over that map.  Fig. 7 (b)."""
    clean_activity: Mapping[str, float]
    picture: UInt8[ndarray, "h w 3"]
    """The preprocessed image, RGB; scaled down where it is larger than the run stores.  Fig. 7
    (a)."""
    projection: Mapping[str, Float32[ndarray, "h w 3"]]
    """Of that map's maximum, on the whole image, signed, in units of the normalised input; layers
    that cannot be projected are absent.  Fig. 7 (c)."""
    boxes: Int32[ndarray, "box y0x0y1x1"]
    """Where the object is, half-open; none where the data carries no boxes."""
    classes: tuple[str, ...]
    """Names of the model's outputs; empty where unknown."""
    maps: tuple[str, ...] = ()
    """Layers of feature maps among ``unit``, without those that have one map for every class; the
    last one is that of the paper's figure.  Empty where nobody looked."""
    predicted: bool = False
    """Whether the target is no label but what the model makes of the clean image."""

    @property
    def weakest(self) -> tuple[float, float]:
        """Centre (y, x) of the square under which the target is least probable, in input pixels; of
        equals the first in reading order."""
        row, col = divmod(int(self.probability.argmin()), len(self.x))
        return float(self.y[row]) + self.patch / 2, float(self.x[col]) + self.patch / 2

    @property
    def unmoved(self) -> bool:
        """Whether the probability is the same wherever the square stands."""
        return bool((self.probability == self.probability[0, 0]).all())

    def default_layer(self) -> str:
        """The layer whose strongest map a figure shows unless told: the last of feature maps."""
        projected = [name for name in self.projection if name != "logits"]
        return (self.maps or projected or tuple(self.unit))[-1]

    def name_of(self, label: int) -> str:
        """A class for people."""
        return name_in(self.classes, label)


def name_in(classes: Sequence[str], label: int) -> str:
    """A class for people."""
    return classes[label] if 0 <= label < len(classes) else f"class {label}"


@dataclass(frozen=True)
class UnitOcclusion:
    """One hit under a square that slides over its receptive field."""

    rank: int
    y: Int64[ndarray, " gy"]
    """Top rows of the square, in pixels of the preprocessed image."""
    x: Int64[ndarray, " gx"]
    patch: int
    """Side of the square; it is cut to a field that is smaller."""
    stride: int
    fill: tuple[float, ...]
    activation: Float32[ndarray, "gy gx"]
    """Of the unit, at the hit's position."""


def occlusion_of(run: "Run", image: int | str) -> Occlusion:
    """What a run has of an image, by its id or uri.

    Raises:
        RunNotFound: the run has no occlusion, or not of this image.
    """
    group = _group(run)
    ids = read(group, "image")
    row = _row_of(run, ids, image)
    attributes: dict[str, Any] = dict(group.attrs.asdict())
    layers: list[str] = attributes["layers"]

    def own(name: str) -> Any:
        return read(group, name, row)

    image_id = int(ids[row])
    listed = run.images_of(ids[row : row + 1])
    scale, stored = own("scale"), own("projection").astype(np.float32)
    top5 = "top5" in group
    return Occlusion(
        image=image_id,
        uri=listed.column("uri")[0].as_py(),
        size=(attributes["size"][0], attributes["size"][1]),
        y=read(group, "y"),
        x=read(group, "x"),
        patch=attributes["patch"],
        stride=attributes["stride"],
        fill=tuple(attributes["fill"]),
        target=int(own("target")),
        probability=own("probability"),
        clean_probability=float(own("clean_probability")),
        label=own("label"),
        clean_label=int(own("clean_label")),
        top5=own("top5") if top5 else None,
        top5_probability=own("top5_probability") if top5 else None,
        unit=dict(zip(layers, own("unit").tolist(), strict=True)),
        activity=dict(zip(layers, own("activity"), strict=True)),
        clean_activity=dict(zip(layers, own("clean_activity").tolist(), strict=True)),
        picture=own("picture"),
        projection={name: stored[n] * scale[n] for n, name in enumerate(layers) if scale[n] > 0},
        boxes=_boxes(own("box") if "box" in group else np.zeros((0, 4), np.int32)),
        classes=run.classes,
        maps=maps_among({name: _size_of(run, name) for name in layers}, run.outputs),
        predicted=listed.column("label")[0].as_py() is None,
    )


def maps_among(sizes: Mapping[str, tuple[int, int, int]], outputs: int) -> tuple[str, ...]:
    """Layers of feature maps, without those that have one for every class.

    Args:
        sizes: units, height and width of each layer.
    """
    return tuple(
        name
        for name, (units, height, width) in sizes.items()
        if height * width > 1 and units != outputs
    )


def _size_of(run: "Run", layer: str) -> tuple[int, int, int]:
    told: dict[str, Any] = dict(run.layer_group(layer).attrs.asdict())
    return told["units"], told["height"], told["width"]


def occluded(run: "Run") -> pa.Table:
    """The images a square was slid over: image_id, uri, target, probability without a square, the
    lowest with one, and where that stands (y, x: its top left corner).

    Raises:
        RunNotFound: the run has no occlusion.
    """
    group = _group(run)
    ids = read(group, "image")
    (done,) = np.nonzero(ids != MISSING_IMAGE)
    ids = ids[done]
    probability, y, x = read(group, "probability")[done], read(group, "y"), read(group, "x")
    lowest = probability.reshape(len(ids), len(y) * len(x)).argmin(1)
    row, col = np.divmod(lowest, len(x))
    return pa.table(
        {
            "image_id": ids,
            "uri": run.images_of(ids).column("uri"),
            "target": read(group, "target")[done],
            "probability": read(group, "clean_probability")[done],
            "lowest": probability[np.arange(len(ids)), row, col],
            "y": y[row],
            "x": x[col],
        }
    )


def occlusion_of_unit(run: "Run", unit: "Unit") -> tuple[UnitOcclusion, ...]:
    """One for each hit, the strongest first; the grid is empty of a hit that sees no pixel.

    Raises:
        RunNotFound: the run has not covered the hits of this layer.
    """
    group = run.layer_group(unit.layer)
    if "occlusion" not in group:
        raise RunNotFound(
            f"The hits of layer {unit.layer!r} of {run.url!r} were not covered: "
            f"{_told(run, 'units of the occlusion analysis names such layers')}"
        )
    told: dict[str, Any] = dict(array_of(group, "occlusion").attrs.asdict())
    stored = read(group, "occlusion", unit.index)
    found = []
    for rank in np.flatnonzero(unit.image != MISSING_IMAGE).tolist():
        y0, x0, y1, x1 = unit.box[rank].tolist()
        rows, cols = (
            square_starts(begin, end, min(told["patch"], end - begin), told["stride"])
            if end > begin
            else np.zeros(0, np.int64)
            for begin, end in ((y0, y1), (x0, x1))
        )
        activation = stored[rank, : len(rows), : len(cols)]
        if np.isnan(activation).any():
            raise RunNotFound(
                f"The hits of unit {unit.index} of layer {unit.layer!r} of {run.url!r} are not "
                f"covered yet: the run is {run.status}."
            )
        fill = tuple(told["fill"])
        found.append(
            UnitOcclusion(rank, rows, cols, told["patch"], told["stride"], fill, activation)
        )
    return tuple(found)


def _group(run: "Run") -> zarr.Group:
    found = run.group_at("occlusion")
    if found is None or "layers" not in found.attrs:
        raise RunNotFound(
            f"The run {run.url!r} has slid no square over its images: "
            f"{_told(run, 'an analysis of kind occlusion in the spec asks for it')}"
        )
    return found


def _told(run: "Run", remedy: str) -> str:
    if run.status != "done" and run.spec.occlusion is not None:
        return f"the run is {run.status}."
    return f"{remedy}."


def _row_of(run: "Run", ids: Int64[ndarray, " image"], image: int | str) -> int:
    """Where an image is in the arrays."""
    known = ids[ids != MISSING_IMAGE]
    wanted = image
    if isinstance(image, str):
        uris: list[str] = run.images_of(known).column("uri").to_pylist()
        wanted = int(known[uris.index(image)]) if image in uris else MISSING_IMAGE
    rows = np.flatnonzero(ids == wanted)
    if wanted == MISSING_IMAGE or not len(rows):
        shown = ", ".join(map(str, known[:8].tolist())) or "none yet"
        raise RunNotFound(
            f"The run {run.url!r} has slid no square over the image {image!r}; it has those with "
            f"the ids {shown}{', …' if len(known) > 8 else ''}. Run.occluded() lists them."
        )
    return int(rows[0])


def _boxes(stored: Int32[ndarray, "stored y0x0y1x1"]) -> Int32[ndarray, "box y0x0y1x1"]:
    return stored[stored[:, 0] >= 0]
