"""The worker's part in occlusion: slide squares over an image or over hits, and write what is seen.

An image's grid is swept in parts of its rows, one lane each.  The parts are cut from the grid
alone, so the bits do not depend on the number of lanes; each lane holds the clean activations and
the engine's budget of bytes, whatever the number of positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from deconvoy.spec import StorageSpec, Transform
from deconvoy.store import RunStore
from workers import boxes as boxing
from workers.cones import Cone
from workers.deconvnet import Deconvnet
from workers.graph import Layer, Network
from workers.grids import Grid
from workers.groups import write_row
from workers.images import Picture, normalise
from workers.lanes import Lanes
from workers.leases import OcclusionLease, OcclusionResult, UnitOcclusionLease
from workers.occlusion import Advance, Sweep, softmax, sweep, unit_sweeps
from workers.occlusion_writer import GROUP, MOST_PROBABLE, write_units
from workers.pictures import cut, cut_patches, quantised, stored_size
from workers.portions import portions_on

Arrays = dict[str, np.ndarray]


class Occluder:
    """What a worker needs to answer leases of occlusion."""

    def __init__(
        self,
        network: Network,
        deconvnet: Deconvnet,
        cone_of: Callable[[Layer], Cone],
        layers: Sequence[Layer],
        transform: Transform,
        storage: StorageSpec,
        lanes: Lanes,
        advance: Advance,
    ) -> None:
        self._network, self._deconvnet, self._cone_of = network, deconvnet, cone_of
        self._layers, self._transform, self._storage = layers, transform, storage
        self._lanes, self._advance = lanes, advance
        numbers = {layer.name: number for number, layer in enumerate(network.layers)}
        self._places = np.array([numbers[layer.name] for layer in layers])

    # One image --------------------------------------------------------------------------------

    def image(self, lease: OcclusionLease, picture: Picture, run: RunStore) -> OcclusionResult:
        """Sweep one image and write its row."""
        arrays = self.panels(picture, lease.grid, lease.fill, lease.label, lease.top5)
        if lease.boxes is not None:
            arrays["box"] = np.full((lease.most_boxes, 4), -1, np.int32)
            size = (picture.height, picture.width)
            found = boxing.in_input(lease.boxes, size, self._transform)
            arrays["box"][: len(found)] = found
        arrays["image"] = np.array(lease.image)
        write_row(run, GROUP, lease.row, arrays)  # ``image`` last
        return OcclusionResult(len(lease.grid.y) * len(lease.grid.x))

    def panels(
        self, picture: Picture, grid: Grid, fill: Sequence[float], label: int | None, top5: bool
    ) -> Arrays:
        """One image's part of ``deconvoy.schema.OCCLUSION_ARRAYS``, by name, but for ``image`` and
        ``box``.

        Args:
            fill: 0–255, a number a channel.
            label: the class to watch; None: the most probable one.
        """
        image, colour = self.input_of(picture), self.colour_of(fill)
        swept = self._swept(image, grid, colour)
        clean = softmax(swept.clean_logits[None])[0]
        clean_label = int(swept.clean_logits.argmax())
        target = clean_label if label is None else label
        probabilities, shape = swept.probabilities(), grid.shape
        unit = swept.unit[self._places]
        activity = swept.activity[self._places]
        arrays = {
            "target": np.array(target),
            "probability": probabilities[:, target].reshape(shape),
            "clean_probability": np.array(clean[target]),
            "label": swept.strongest(1).reshape(shape),
            "clean_label": np.array(clean_label),
            "unit": unit,
            "activity": activity.reshape(len(unit), *shape),
            "clean_activity": swept.clean_activity[self._places],
            "picture": self._whole_picture(picture),
        }
        if top5:
            strongest = swept.strongest(MOST_PROBABLE)
            arrays["top5"] = strongest.reshape(*shape, -1)
            among = np.take_along_axis(probabilities, strongest, axis=1)
            arrays["top5_probability"] = among.reshape(*shape, -1)
        arrays["projection"], arrays["scale"] = self._projections(image, unit)
        return arrays

    def _swept(self, image: Tensor, grid: Grid, colour: Tensor) -> Sweep:
        parts = parts_of(grid, portions_on(self._network.device.type).grid_parts)

        def sweep_part(rows: Int64[np.ndarray, " row"]) -> Sweep:
            part = replace(grid, y=grid.y[rows])
            return sweep(self._network, image, part, colour, advance=self._advance)

        return joined(grid, parts, list(self._lanes(sweep_part, parts)))

    def input_of(self, picture: Picture) -> Float[Tensor, "1 channel row col"]:
        """As the model takes it, where the model is."""
        return normalise(picture.pixels[None].to(self._network.device), self._transform)

    def colour_of(self, fill: Sequence[float]) -> Float[Tensor, " channel"]:
        """Normalised as the image is."""
        mean, std = np.array(self._transform.mean), np.array(self._transform.std)
        colour = torch.from_numpy(((np.array(fill) / 255 - mean) / std).astype(np.float32))
        return colour.to(self._network.device)

    # Pictures ---------------------------------------------------------------------------------

    def _size(self) -> tuple[int, int]:
        side = self._transform.crop
        return stored_size((side, side), self._storage.max_side)

    def _whole(self) -> Tensor:
        side = self._transform.crop
        return torch.tensor([[0, 0, side, side]])

    def _whole_picture(self, picture: Picture) -> UInt8[np.ndarray, "y x 3"]:
        stored = cut_patches(picture.pixels[None], self._whole(), self._size())[0]
        return np.broadcast_to(stored.numpy(), (*stored.shape[:2], 3))  # grey fills all three

    def _projections(
        self, image: Tensor, unit: Int64[np.ndarray, " layer"]
    ) -> tuple[np.ndarray, Float32[np.ndarray, " layer"]]:
        """Of each layer's strongest map, its maximum projected to the whole image; zero with scale
        zero of a layer that cannot be."""
        size = self._size()
        kept = np.zeros((len(self._layers), *size, 3), self._storage.projection)
        scale = np.zeros(len(self._layers), np.float32)
        maxima = self._maxima(image, unit)
        with torch.no_grad():
            switches = self._network.switches(image.repeat(2, 1, 1, 1), self._network.steps)

        def project(number: int) -> None:
            layer = self._layers[number]
            place, seed = maxima[number]
            with torch.no_grad():
                cone, zero = self._cone_of(layer), torch.zeros(1, dtype=torch.int64)
                (group,) = cone.batches(place[None], number_bytes=4)
                projection = self._deconvnet.project(
                    cone,
                    group,
                    switches,
                    zero.to(image.device),
                    torch.tensor([int(unit[number])], device=image.device),
                    place[None],
                    torch.tensor([seed], dtype=torch.float32, device=image.device),
                )
                side = self._transform.crop
                signal = projection.whole(side, side).cpu()
            values, factors = quantised(
                cut(signal, self._whole(), size, 0.0), self._storage.projection
            )
            kept[number], scale[number] = values[0].numpy(), float(factors[0])

        able = [n for n, layer in enumerate(self._layers) if layer.obstacle is None]
        for _ in self._lanes(project, able):
            pass
        return kept, scale

    @torch.no_grad()
    def _maxima(
        self, image: Tensor, unit: Int64[np.ndarray, " layer"]
    ) -> list[tuple[Int64[np.ndarray, " yx"], float]]:
        """Where each of these maps has its maximum, the first in reading order among equals, and
        the activation there."""
        numbers = {layer.name: number for number, layer in enumerate(self._layers)}
        found: dict[int, tuple[np.ndarray, float]] = {}

        def see(layer: Layer, maps: Tensor) -> None:
            number = numbers.get(layer.name)
            if number is None:
                return
            own = maps[0, int(unit[number])].cpu().numpy().reshape(layer.height, layer.width)
            y, x = divmod(int(own.argmax()), layer.width)
            seed = float(own[y, x])
            if layer.ceiling is not None:  # seen before it is cut off
                seed = min(max(seed, 0.0), layer.ceiling)
            found[number] = np.array([y, x], np.int64), seed

        # Two images, as when shapes were measured: ``squeeze`` must leave their axis alone.
        self._network.forward(image.repeat(2, 1, 1, 1), see)
        return [found[number] for number in range(len(self._layers))]

    # Units ------------------------------------------------------------------------------------

    def units(
        self, lease: UnitOcclusionLease, picture_of: Callable[[int], Picture], run: RunStore
    ) -> OcclusionResult:
        """Slide a square over the field of every hit, image by image, and write the shard."""
        layer = self._network.layer(lease.layer)
        colour = self.colour_of(lease.fill)
        units, ranks = (lease.image >= 0).nonzero()
        boxes = layer.field.boxes(lease.position[units, ranks].astype(np.int64))
        seen = boxes[:, 2] > boxes[:, 0]  # a position may see padding only
        units, ranks = units[seen], ranks[seen]
        ids = lease.image[units, ranks]
        values = np.full((*lease.image.shape, *lease.shape), np.nan, np.float32)

        def cover(image_id: int) -> int:
            own = ids == image_id
            unit, rank = units[own], ranks[own]
            swept = unit_sweeps(
                self._network,
                layer,
                self.input_of(picture_of(image_id)),
                unit + lease.start,
                lease.position[unit, rank].astype(np.int64),
                lease.patch,
                lease.stride,
                colour,
                advance=self._advance,
            )
            for one, u, r in zip(swept, unit, rank, strict=True):
                rows, cols = one.grid.shape
                values[u, r, :rows, :cols] = one.activation
            return sum(one.activation.size for one in swept)

        positions = sum(self._lanes(cover, np.unique(ids).tolist()))
        write_units(run, lease.layer, lease.start, values)
        return OcclusionResult(positions)


def parts_of(grid: Grid, parts: int) -> list[Int64[np.ndarray, " row"]]:
    """Rows of the grid, cut into so many parts at most; those at the same distance from either
    border stay together, since the engine computes them alike."""
    count = len(grid.y)
    row = np.arange(count)
    order = np.argsort(np.minimum(row, count - 1 - row), kind="stable")
    return [np.sort(part) for part in np.array_split(order, min(parts, -(-count // 2)))]


def joined(grid: Grid, parts: Sequence[np.ndarray], swept: Sequence[Sweep]) -> Sweep:
    """The sweep over the whole grid, from those over some of its rows each."""
    first, (rows, cols) = swept[0], grid.shape
    logits = np.empty((rows, cols, first.logits.shape[1]), first.logits.dtype)
    activity = np.empty((len(first.unit), rows, cols))
    for part, one in zip(parts, swept, strict=True):
        logits[part] = one.logits.reshape(len(part), cols, -1)
        activity[:, part] = one.activity.reshape(len(first.unit), len(part), cols)
    return replace(
        first,
        grid=grid,
        logits=logits.reshape(rows * cols, -1),
        activity=activity.reshape(len(first.unit), -1),
    )
