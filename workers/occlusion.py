"""What a grey square hides from a model: class scores and activity at every position of the square.

Follows Zeiler & Fergus (2013, arXiv:1311.2901) section 4.2 and figure 7: a grey square slides over
the image, and for each of its positions one sees (b) the total activation of the map that is
strongest in the clean image, (d) the probability of a class, (e) the most probable class.  Every
number equals that of a full forward pass of the image with its square; how they come about faster
is told in ``workers.incremental``.  Pure: no I/O, no state.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workers.extents import Which, wanted_below
from workers.graph import Layer, Network
from workers.grids import Grid, Squares, grid_over_box
from workers.incremental import Incremental, Piece
from workers.portions import portions_on
from workers.steps import Step
from workers.windows import Span

Advance = Callable[[int], None]
"""Told how many more positions are done; may raise to give up."""


@dataclass(frozen=True)
class Sweep:
    """One image under a square at all positions of ``grid``, which count in reading order."""

    grid: Grid
    logits: Float[np.ndarray, "position output"]
    clean_logits: Float[np.ndarray, " output"]
    unit: Int[np.ndarray, " layer"]
    """Of each layer of the network, in its order, the unit that is strongest in the clean image by
    the maximum of its map; of equals the first.  With a ceiling: by its input, as scores are."""
    activity: Float[np.ndarray, "layer position"]
    """The sum over the map of that unit's activations."""
    clean_activity: Float[np.ndarray, " layer"]

    def probabilities(self) -> Float[np.ndarray, "position output"]:
        """The softmax over the outputs."""
        return softmax(self.logits)

    def strongest(self, count: int) -> Int[np.ndarray, "position rank"]:
        """The most probable outputs, the strongest first; of equals the one of lower number."""
        return np.argsort(-self.logits, axis=1, kind="stable")[:, :count]


@dataclass(frozen=True)
class UnitSweep:
    """One activation, at one position of a layer, under a square that slides over its field."""

    grid: Grid
    activation: Float[np.ndarray, "gy gx"]
    clean: float


def softmax(logits: Float[np.ndarray, "position output"]) -> Float[np.ndarray, "position output"]:
    """Taken from the largest logit on, so that none is too large for its exponential."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Float[np.ndarray, "position output"] = exponentials / exponentials.sum(
        axis=1, keepdims=True
    )
    return shares


@torch.inference_mode()
def sweep(
    network: Network,
    image: Float[Tensor, "1 channel row col"],
    grid: Grid,
    fill: Float[Tensor, " channel"],
    budget: int | None = None,
    advance: Advance = lambda count: None,
) -> Sweep:
    """Slide the square over one preprocessed image.

    Args:
        fill: the colour of the square, normalised as the image is.
        budget: bytes that one batch of positions may take, beside the clean activations; the
            device's portion if None.
        advance: told of every batch.
    """
    squares = grid.squares()
    incremental = Incremental(network, steps_to_all_layers(network), image, squares, fill)
    watch = _Watch(network, incremental, len(squares), advance)
    incremental.run(watch.see, budget or portions_on(image.device.type).square_bytes)
    return Sweep(
        grid=grid,
        logits=watch.logits,
        clean_logits=incremental.clean(network.output)[0].flatten().cpu().numpy(),
        unit=np.array([activity.unit for activity in watch.activities], dtype=np.int64),
        activity=np.stack([activity.under for activity in watch.activities]),
        clean_activity=np.array([activity.clean for activity in watch.activities]),
    )


@torch.inference_mode()
def unit_sweeps(
    network: Network,
    layer: Layer,
    image: Float[Tensor, "1 channel row col"],
    units: Int[np.ndarray, " hit"],
    yx: Int[np.ndarray, "hit 2"],
    patch: int,
    stride: int,
    fill: Float[Tensor, " channel"],
    budget: int | None = None,
    advance: Advance = lambda count: None,
) -> list[UnitSweep]:
    """For hits of one layer in one image: slide the square over each one's receptive field, and
    watch that one activation.

    Only the cone below it is computed.  A square larger than the field is cut to it.
    """
    boxes = [tuple(int(side) for side in box) for box in layer.field.boxes(yx)]
    grids = [grid_over_box((y0, x0, y1, x1), patch, stride) for y0, x0, y1, x1 in boxes]
    squares = _all_squares(grids)
    hit = np.repeat(np.arange(len(grids)), [len(grid.y) * len(grid.x) for grid in grids])
    y, x, unit = yx[hit, 0].astype(np.int64), yx[hit, 1].astype(np.int64), units[hit]
    path = network.path_to(layer)
    under_it = wanted_below(network, path, (Span(y, y + 1), Span(x, x + 1)))
    incremental = Incremental(network, path, image, squares, fill, under_it)
    clean = layer.as_maps(incremental.clean(path[-1]))
    of_clean = clean.reshape(layer.units, layer.height, layer.width)
    seen = of_clean[unit, y, x].double().cpu().numpy()

    def see(step: Step, piece: Piece, which: Which) -> None:
        if step.index == layer.step:
            _see_places(layer, piece, (unit[which], y[which], x[which]), which, seen)
            advance(len(np.unique(which)))

    incremental.run(see, budget or portions_on(image.device.type).square_bytes)
    ends = np.cumsum([len(grid.y) * len(grid.x) for grid in grids])[:-1]
    return [
        UnitSweep(grid, part.reshape(grid.shape), float(of_clean[u, row, col]))
        for grid, part, u, (row, col) in zip(
            grids, np.split(seen, ends), units.tolist(), yx.tolist(), strict=True
        )
    ]


def _all_squares(grids: Sequence[Grid]) -> Squares:
    each = [grid.squares() for grid in grids]
    return Squares(
        np.concatenate([squares.top for squares in each]),
        np.concatenate([squares.left for squares in each]),
        np.concatenate([squares.height for squares in each]),
        np.concatenate([squares.width for squares in each]),
    )


def steps_to_all_layers(network: Network) -> list[Step]:
    """What a sweep runs: what any layer is computed from, in execution order."""
    needed = {step.index for layer in network.layers for step in network.path_to(layer)}
    return [step for step in network.steps if step.index in needed]


def _see_places(
    layer: Layer,
    piece: Piece,
    places: tuple[Which, Which, Which],
    which: Which,
    seen: Float[np.ndarray, " any_square"],
) -> None:
    """Write one activation for each square; what a square cannot change stays as it is."""
    unit, row, col = places
    maps = layer.as_maps(piece.values)
    maps = maps.reshape(*maps.shape[:2], *(maps.shape[2:] or (1, 1)))
    if piece.windows is not None:
        row, col = row - piece.windows.top, col - piece.windows.left
    (inside,) = np.nonzero((row >= 0) & (row < maps.shape[2]) & (col >= 0) & (col < maps.shape[3]))
    found = maps[inside, unit[inside], row[inside], col[inside]]
    seen[which[inside]] = found.double().cpu().numpy()


class _Activity:
    """The total activation of a layer's strongest unit under every square."""

    def __init__(self, layer: Layer, ranked: Tensor, clean: Tensor, squares: int) -> None:
        strengths = layer.as_maps(ranked)[0].reshape(layer.units, -1).amax(1)
        self.unit = int(strengths.cpu().numpy().argmax())
        own = layer.as_maps(clean)[0, self.unit].double().cpu().numpy()
        own = own.reshape(layer.height, layer.width)
        self._sums = np.pad(own.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        """Of the rectangle from the origin to each position: four of them give a window's sum."""
        self.clean = float(self._sums[-1, -1])
        self.under = np.zeros(squares, dtype=np.float64)
        self._layer = layer

    def see(self, piece: Piece, which: Which) -> None:
        values = self._layer.as_maps(piece.values)[:, self.unit]
        total = values.reshape(len(which), -1).sum(1, dtype=torch.float64).cpu().numpy()
        windows = piece.windows
        if windows is not None and not windows.whole:
            top, left = windows.top, windows.left
            end, right = top + windows.height, left + windows.width
            sums = self._sums
            covered = sums[end, right] - sums[top, right] - sums[end, left] + sums[top, left]
            total = self.clean - covered + total
        self.under[which] = total


class _Watch:
    """What is seen of all layers in one sweep."""

    def __init__(
        self, network: Network, incremental: Incremental, squares: int, advance: Advance
    ) -> None:
        self._output, self._incremental = network.output.index, incremental
        self._advance = advance
        outputs = int(np.prod(network.output.shape))
        clean = incremental.clean(network.output)
        self.logits = np.zeros((squares, outputs), clean.cpu().numpy().dtype)
        self.activities = []
        self._at: dict[int, list[_Activity]] = {}
        for layer in network.layers:
            step = network.steps[layer.step]
            ranked = network.steps[step.inputs[0]] if layer.ceiling is not None else step
            activity = _Activity(layer, incremental.clean(ranked), incremental.clean(step), squares)
            self.activities.append(activity)
            self._at.setdefault(layer.step, []).append(activity)

    def see(self, step: Step, piece: Piece, which: Which) -> None:
        for activity in self._at.get(step.index, ()):
            activity.see(piece, which)
        if step.index == self._output:
            outputs: Tensor = self._incremental.whole(step.index, piece)
            self.logits[which] = outputs.flatten(1).cpu().numpy()
            self._advance(len(np.unique(which)))
