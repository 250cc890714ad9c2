"""Run a traced model on one image under many grey squares, computing only what each can change.

The activations of the clean image are kept.  Of every step only the window that a square can have
changed is computed again, in a batch over squares, with the clean map around it.  Where a step sees
all of its input (a linear layer, a mean over the map, an operation that the table does not know),
whole maps are run; after it windows are cut out again.  Nothing is approximated: what comes out
equals a full forward pass for every square.

Memory is the clean image's activations and ``budget`` bytes for a batch of squares, however many
there are; a model that needs more than that for two squares gets two at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workers.extents import SLIDING, Extents, Which, is_map
from workers.graph import Network
from workers.grids import Squares
from workers.overlays import CleanMap, overlay
from workers.sliding import Sliding
from workers.steps import Step
from workers.windows import Spans, Windows, whole_maps


@dataclass(frozen=True)
class Piece:
    """What a batch of squares has of one step's output."""

    values: Any
    windows: Windows | None
    """Where in the maps the values lie; None of what is no stack of maps."""


Visit = Callable[[Step, Piece, Which], None]
"""Sees each step's output the moment it exists (it may be overwritten right after)."""


class Incremental:
    """One image's activations, ready to be run under squares.

    Args:
        steps: of the network, in execution order, with all that they are computed from.
        fill: of the squares, a number a channel, normalised as the image is.
        wanted: of some steps, the part that is for each square; of the others all is.
    """

    def __init__(
        self,
        network: Network,
        steps: Sequence[Step],
        image: Float[Tensor, "1 channel row col"],
        squares: Squares,
        fill: Float[Tensor, " channel"],
        wanted: Mapping[int, Spans] | None = None,
    ) -> None:
        self._network = network
        self._steps = list(steps)
        self._squares = squares
        self._fill = fill.view(1, -1, 1, 1)
        self.extents = Extents(network, steps, squares, wanted)
        self._maps: dict[int, CleanMap] = {}
        self._others: dict[int, Any] = {}
        self._sliding: dict[int, Sliding] = {}
        self._run_clean(image)

    def clean(self, step: Step) -> Tensor:
        """The clean image's output of a step, with an image axis."""
        if step.index in self._maps:
            return self._maps[step.index].maps
        values: Tensor = self._others[step.index]
        return values

    def run(self, visit: Visit, budget: int) -> None:
        """Run all squares, batches of ``budget`` bytes; ``visit`` sees every step of each."""
        head, tail = self._steps[: self.extents.tail], self._steps[self.extents.tail :]
        # Linear layers read all their weights for every batch, so theirs are larger ones.
        enough = self.extents.tail_size(budget)
        waiting: list[tuple[Which, dict[int, Tensor]]] = []
        for which in self.extents.batches(budget):
            pieces = self._run(head, {}, which, visit)
            waiting.append((which, {i: self.whole(i, piece) for i, piece in pieces.items()}))
            if sum(len(squares) for squares, _ in waiting) >= enough:
                self._run_waiting(tail, waiting, visit)
                waiting = []
        if waiting:
            self._run_waiting(tail, waiting, visit)

    def whole(self, index: int, piece: Piece) -> Any:
        """All of a step's output under each square, maps and not windows."""
        if piece.windows is None:
            return piece.values
        return self._laid(index, piece, whole_maps(len(piece.windows.top), piece.windows.size))

    # --- the clean image ---

    def _run_clean(self, image: Float[Tensor, "1 channel row col"]) -> None:
        # Two images, as when shapes were measured: ``squeeze`` must leave their axis alone.
        images = image.repeat(2, 1, 1, 1)
        values: dict[int, Any] = {}
        for step in self._steps:
            # Copies: a step may overwrite what it takes.
            given = {i: _copied(values[i]) for i in self._network.sources(step)}
            values[step.index] = self._network.run(step, given, images)
            self._keep(step, values[step.index])
            for done in self.extents.last_uses.get(step.index, ()):
                values.pop(done, None)

    def _keep(self, step: Step, value: Any) -> None:
        if is_map(self._network, step):
            self._maps[step.index] = CleanMap(value[:1])
        else:
            self._others[step.index] = value[:1] if step.shape else value
        if self._slides(step):
            assert step.module is not None
            below = self._maps[step.inputs[0]].maps
            self._sliding[step.index] = Sliding(step.module, below)

    def _slides(self, step: Step) -> bool:
        return self.extents.is_windowed(step) and isinstance(step.module, SLIDING)

    # --- a batch of squares ---

    def _run(
        self, steps: Sequence[Step], pieces: dict[int, Piece], which: Which, visit: Visit
    ) -> dict[int, Piece]:
        """Run some steps; returns what later ones need of them."""
        pieces = dict(pieces)
        constants = self._constants(len(which))
        for step in (step for step in steps if step.depends):
            pieces[step.index] = piece = self._piece(step, pieces, constants, which)
            visit(step, piece, which)
            for done in self.extents.last_uses.get(step.index, ()):
                pieces.pop(done, None)
        return pieces

    def _run_waiting(
        self, tail: Sequence[Step], waiting: list[tuple[Which, dict[int, Tensor]]], visit: Visit
    ) -> None:
        which = np.concatenate([squares for squares, _ in waiting])
        pieces = {}
        for i in waiting[0][1]:
            values = torch.cat([whole[i] for _, whole in waiting])
            pieces[i] = Piece(values, self._whole_windows(i, len(which)))
        self._run(tail, pieces, which, visit)

    def _constants(self, count: int) -> dict[int, Any]:
        """What does not hold the image's values: parameters, and sizes for a batch of so many."""
        found: dict[int, Any] = {}
        for step in self._steps:
            if step.depends:
                continue
            sources = [self._network.steps[i] for i in self._network.sources(step)]
            if not any(s.depends or s.index in found for s in sources):
                continue
            values = {
                s.index: self._repeated(s, count) if s.depends else self._constant(s, found)
                for s in sources
            }
            found[step.index] = self._network.run(step, values, self._fill)
        return {i: v for i, v in self._others.items() if not self._network.steps[i].depends} | found

    def _constant(self, step: Step, found: Mapping[int, Any]) -> Any:
        return found[step.index] if step.index in found else self._others[step.index]

    def _repeated(self, step: Step, count: int) -> Any:
        """The clean image's values as often as there are squares, in no further memory."""
        values = self.clean(step)
        return values.expand(count, *values.shape[1:]) if step.shape else values

    def _piece(
        self, step: Step, pieces: Mapping[int, Piece], constants: Mapping[int, Any], which: Which
    ) -> Piece:
        if step.node.op == "placeholder":
            return self._covered(step, which)
        windows = self.extents.windows(step, which) if self.extents.is_windowed(step) else None
        if windows is not None and step.index in self._sliding and not windows.whole:
            return self._slid(step, pieces[step.inputs[0]], windows)
        values = dict(constants)
        for i in self._network.sources(step):
            if i in pieces and windows is None:
                values[i] = self.whole(i, pieces[i])
            elif i in pieces and windows is not None:
                slid = step.index in self._sliding
                values[i] = self.whole(i, pieces[i]) if slid else self._laid(i, pieces[i], windows)
        made = self._network.run(step, values, self._fill)
        return Piece(made, windows or self._whole_windows(step.index, len(which)))

    def _covered(self, step: Step, which: Which) -> Piece:
        """The image with its squares."""
        windows, squares = self.extents.windows(step, which), self._squares.take(which)
        pixels = self._maps[step.index].read(windows)
        rows = windows.top[:, None] + np.arange(windows.height) - squares.top[:, None]
        cols = windows.left[:, None] + np.arange(windows.width) - squares.left[:, None]
        in_rows = (rows >= 0) & (rows < squares.height[:, None])
        in_cols = (cols >= 0) & (cols < squares.width[:, None])
        inside = torch.from_numpy(in_rows[:, :, None] & in_cols[:, None, :]).to(pixels.device)
        return Piece(torch.where(inside[:, None], self._fill, pixels), windows)

    def _slid(self, step: Step, below: Piece, windows: Windows) -> Piece:
        sliding, clean = self._sliding[step.index], self._maps[step.inputs[0]]
        frame = windows.read(sliding.rows, sliding.cols, clean.size)
        assert below.windows is not None
        read = overlay(clean, frame, below.values, below.windows, sliding.padding)
        return Piece(sliding(read, windows), windows)

    def _laid(self, index: int, piece: Piece, windows: Windows) -> Tensor:
        """What a step's output holds in some windows."""
        assert piece.windows is not None
        values: Tensor = piece.values
        if piece.windows.same(windows):
            return values
        return overlay(self._maps[index], windows, values, piece.windows)

    def _whole_windows(self, index: int, count: int) -> Windows | None:
        return whole_maps(count, self._maps[index].size) if index in self._maps else None


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
