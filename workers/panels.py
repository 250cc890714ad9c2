"""From a sweep to the panels of one image's Fig. 7: what a run stores, and what a new picture gets.

The sweep has all numbers; what is added here is the picture, and each layer's strongest map
projected into it (Zeiler & Fergus 2013, section 4.2 and figure 7, panels a and c).  Pure: no I/O.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64, UInt8
from torch import Tensor

from deconvoy.errors import RequestError
from deconvoy.occlusion import Occlusion
from deconvoy.spec import Transform
from workers.cones import Cone
from workers.deconvnet import Deconvnet
from workers.graph import Layer, Network
from workers.grids import grid_over_image
from workers.images import normalise
from workers.occlusion import Sweep, softmax, sweep
from workers.pictures import cut, cut_patches, stored_size
from workers.switches import Switches

PATCHES_A_SIDE = 14
"""An automatic patch is so much of the image's side."""

TOP = 5
"""Classes kept at every position, where they are asked for."""


def no_boxes() -> Int32[np.ndarray, "box y0x0y1x1"]:
    return np.zeros((0, 4), np.int32)


@dataclass(frozen=True)
class Square:
    """The square that slides."""

    patch: int
    """Its side in input pixels."""
    stride: int
    fill: tuple[float, ...]
    """Its colour, 0–255, a number a channel of the model."""

    @staticmethod
    def of(
        transform: Transform,
        patch: int | None = None,
        stride: int | None = None,
        fill: str | float | Sequence[float] = "mean",
    ) -> "Square":
        """A square for a model's input.

        Args:
            patch: default: a fourteenth of the input's side, at least 2: 16 of 224 pixels.
            stride: default: half the patch, rounded up.
            fill: ``mean`` (the transform's, which is the data set's), one number, or one a channel.

        Raises:
            RequestError: the fill is no colour.
        """
        if patch is None:
            patch = min(transform.crop, max(2, round(transform.crop / PATCHES_A_SIDE)))
        stride = -(-patch // 2) if stride is None else stride
        return Square(patch, stride, _colour(fill, transform))

    def normalised(self, transform: Transform) -> Float[Tensor, " channel"]:
        """Its colour as the model sees it."""
        pixel = torch.tensor(self.fill, dtype=torch.float32)
        return (pixel / 255 - torch.tensor(transform.mean)) / torch.tensor(transform.std)


@dataclass(frozen=True)
class Subject:
    """An image to be occluded, with what is known of it."""

    pixels: UInt8[Tensor, "channel row col"]
    """Preprocessed, before normalisation."""
    image: int = -1
    """Its id in a run; −1 where it has none."""
    uri: str = ""
    label: int | None = None
    """Output whose probability is watched; default: the one predicted for the clean image."""
    boxes: Int32[np.ndarray, "box y0x0y1x1"] = field(default_factory=no_boxes)
    """In preprocessed pixels."""


@dataclass(frozen=True)
class Peak:
    """Where a unit is strongest in an image."""

    position: tuple[int, int]
    """Row and column of the map, the first in reading order."""
    seed: float
    """The activation there."""


def occluded(
    network: Network,
    projector: "Projector",
    transform: Transform,
    subject: Subject,
    square: Square,
    *,
    layers: Sequence[Layer],
    classes: Sequence[str] = (),
    top5: bool = False,
    max_side: int | None = None,
) -> Occlusion:
    """Slide a square over an image and gather the panels.

    Args:
        layers: those whose strongest map is watched.
        max_side: picture and projections are scaled down to it, by area; default: as they are.

    Raises:
        RequestError: the square does not fit the image.
    """
    height, width = network.input_shape[1:]
    grid = grid_over_image(height, width, square.patch, square.stride)
    image = normalise(subject.pixels[None], transform)
    found = sweep(network, image, grid, square.normalised(transform).to(image))
    return panels(
        network, projector, subject, square, image, found,
        layers=layers, classes=classes, top5=top5, max_side=max_side,
    )  # fmt: skip


def panels(
    network: Network,
    projector: "Projector",
    subject: Subject,
    square: Square,
    image: Float[Tensor, "1 channel row col"],
    found: Sweep,
    *,
    layers: Sequence[Layer],
    classes: Sequence[str] = (),
    top5: bool = False,
    max_side: int | None = None,
) -> Occlusion:
    """The panels of an image whose sweep is done; ``image`` is the subject normalised."""
    height, width = network.input_shape[1:]
    size = (height, width) if max_side is None else stored_size((height, width), max_side)
    window = torch.tensor([[0, 0, height, width]])
    rows = {layer.name: network.layers.index(layer) for layer in layers}
    unit = {name: int(found.unit[row]) for name, row in rows.items()}
    strongest, shape = found.strongest(TOP), found.grid.shape
    shares, clean = found.probabilities(), softmax(found.clean_logits[None])[0]
    clean_label = int(found.clean_logits.argmax())
    target = clean_label if subject.label is None else subject.label
    of_top = np.take_along_axis(shares, strongest, 1)
    return Occlusion(
        image=subject.image,
        uri=subject.uri,
        size=(height, width),
        y=found.grid.y.astype(np.int32),
        x=found.grid.x.astype(np.int32),
        patch=square.patch,
        stride=square.stride,
        fill=square.fill,
        target=target,
        probability=shares[:, target].reshape(shape).astype(np.float32),
        clean_probability=float(clean[target]),
        label=strongest[:, 0].reshape(shape).astype(np.int64),
        clean_label=clean_label,
        top5=strongest.reshape(*shape, -1).astype(np.int64) if top5 else None,
        top5_probability=of_top.reshape(*shape, -1).astype(np.float32) if top5 else None,
        unit=unit,
        activity={
            name: found.activity[row].reshape(shape).astype(np.float32)
            for name, row in rows.items()
        },
        clean_activity={name: float(found.clean_activity[row]) for name, row in rows.items()},
        picture=_rgb(cut_patches(subject.pixels[None], window, size).numpy()[0]),
        projection={
            name: _rgb(cut(signal[None], window, size, 0.0).permute(0, 2, 3, 1).numpy()[0])
            for name, signal in projector.strongest(image, layers, unit).items()
        },
        boxes=subject.boxes,
        classes=tuple(classes),
        maps=tuple(
            layer.name for layer in layers if layer.is_map and layer.units != found.logits.shape[1]
        ),
    )


class Projector:
    """Projects single activations to whole images; keeps transposed filters and cones."""

    def __init__(self, network: Network) -> None:
        self._network, self._deconvnet = network, Deconvnet(network)
        self._cones: dict[str, Cone] = {}

    @torch.no_grad()
    def strongest(
        self,
        image: Float[Tensor, "1 channel row col"],
        layers: Sequence[Layer],
        unit: Mapping[str, int],
    ) -> dict[str, Float[Tensor, "channel row col"]]:
        """The maximum of one unit of each layer, projected.

        Layers that have no way down are left out, and those that are silent: they have nothing to
        project.
        """
        network = self._network
        wanted = [layer for layer in layers if layer.obstacle is None]
        peaks = peaks_of(network, image, {layer.name: unit[layer.name] for layer in wanted})
        needed = {step.index for layer in wanted for step in network.path_to(layer)}
        path = [step for step in network.steps if step.index in needed]
        switches = network.switches(_twice(image), path)
        return {
            layer.name: self._project(layer, image, switches, unit[layer.name], peaks[layer.name])
            for layer in wanted
            if not layer.rectified or peaks[layer.name].seed > 0
        }

    def _project(
        self, layer: Layer, image: Tensor, switches: Switches, unit: int, peak: Peak
    ) -> Float[Tensor, "channel row col"]:
        if layer.name not in self._cones:
            self._cones[layer.name] = Cone(self._network, layer)
        cone = self._cones[layer.name]
        place: Int64[np.ndarray, "1 yx"] = np.array([peak.position], np.int64)
        (group,) = cone.groups(place)
        found = self._deconvnet.project(
            cone,
            group,
            switches,
            torch.zeros(1, dtype=torch.int64, device=image.device),
            torch.tensor([unit], device=image.device),
            place,
            image.new_tensor([peak.seed]),
        )
        return found.whole(*self._network.input_shape[1:])[0].float().cpu()


def peaks_of(
    network: Network, image: Float[Tensor, "1 channel row col"], unit: Mapping[str, int]
) -> dict[str, Peak]:
    """Where one unit of each layer named is strongest in an image."""
    found: dict[str, Peak] = {}

    def see(layer: Layer, maps: Tensor) -> None:
        if layer.name not in unit:
            return
        own = maps[0, unit[layer.name]].reshape(layer.height, layer.width)
        y, x = divmod(int(own.argmax()), layer.width)
        largest = float(own[y, x])
        # Of a layer with a ceiling the maps seen are its input, in which the strongest still
        # differ; what comes down is what it gives on.
        seed = largest if layer.ceiling is None else min(max(largest, 0.0), layer.ceiling)
        found[layer.name] = Peak((y, x), seed)

    network.forward(_twice(image), see)
    return found


def _twice(image: Float[Tensor, "1 channel row col"]) -> Float[Tensor, "2 channel row col"]:
    """As many images as when shapes were measured: ``squeeze`` must leave their axis alone."""
    return image.repeat(2, 1, 1, 1)


def _rgb(picture: Float32[np.ndarray, "h w channel"] | UInt8[np.ndarray, "h w channel"]) -> Any:
    """A grey picture as three equal channels."""
    return np.ascontiguousarray(np.repeat(picture, 3 // picture.shape[-1], axis=-1))


def _colour(fill: str | float | Sequence[float], transform: Transform) -> tuple[float, ...]:
    if fill == "mean":
        return tuple(255 * value for value in transform.mean)
    numbers = (fill,) if isinstance(fill, int | float) else fill
    wrong = isinstance(numbers, str) or not all(
        isinstance(n, int | float) and 0 <= n <= 255 for n in numbers
    )
    if wrong or len(numbers) not in (1, transform.channels):
        raise RequestError(
            f"fill is {fill!r}, but the square's colour is `mean`, one number from 0 to 255, or "
            f"{transform.channels} of them, one a channel."
        )
    colour = tuple(float(number) for number in numbers)
    return colour * transform.channels if len(colour) == 1 else colour
