"""What a set of grey squares can change of every step of a graph, and how they are put in batches.

Decides only, and touches no activation: which steps can be computed in windows, where the windows
lie (``workers.windows``), which squares go together, and how much memory and work that takes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor, nn

from workers.graph import Network
from workers.grids import Squares
from workers.ops import Reach, part_of
from workers.portions import portions_on
from workers.sight import USUAL, sliding_window
from workers.steps import Step
from workers.windows import Covered, Spans, Windows, everything, whole_maps, windows_around

WHOLE_FROM = 0.9
"""Share of a map from which on all of it is computed; from 0.8 to 1 it makes no difference to the
multiply-adds of alexnet and vgg16, and 1 % to those of resnet18."""

BANDS = (1, 2, 4, 8, 14)
"""Rows of the grid whose squares share batches; that which takes the fewest multiply-adds is
used."""

SLIDING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)

Which = Int[np.ndarray, "_"]
"""Some of the squares, by number; one may come twice."""


class Extents:
    """Windows of all ``squares`` in the maps of ``steps``.

    Args:
        wanted: of some steps, the part that is for each square; of the others all is.
    """

    def __init__(
        self,
        network: Network,
        steps: Sequence[Step],
        squares: Squares,
        wanted: Mapping[int, Spans] | None = None,
    ) -> None:
        self._network = network
        self.steps = list(steps)
        self._squares = squares
        self._spans = self._all_spans(wanted or {})
        self._work = {
            step.index: _weights_used(step)
            for step in steps
            if step.depends and step.rule is not None and step.rule.filters
        }
        self.last_uses = self._find_last_uses()
        self.tail = self._find_tail()
        """From which place in ``steps`` on there are vectors only."""

    # --- windows ---

    def windows(self, step: Step, which: Which) -> Windows:
        """Of a step whose output is a stack of maps: what some squares, as a batch, compute."""
        size = step.shape[1], step.shape[2]
        if step.index not in self._spans:
            return whole_maps(len(which), size)
        rows, cols = self._spans[step.index]
        return windows_around((rows.take(which), cols.take(which)), size, WHOLE_FROM)

    def is_map(self, step: Step) -> bool:
        return is_map(self._network, step)

    def is_windowed(self, step: Step) -> bool:
        """Whether a part of its output is computed from a part of its input."""
        return step.index in self._spans and step.node.op != "placeholder"

    def _all_spans(self, wanted: Mapping[int, Spans]) -> dict[int, Spans]:
        found = dict[int, Spans]()
        covered_rows = Covered(self._squares.top, self._squares.height)
        covered_cols = Covered(self._squares.left, self._squares.width)
        for step in self.steps:
            sight = self._network.sight(step)
            given = step.node.op == "placeholder"
            if sight is None or not (given or can_be_windowed(self._network, step)):
                continue
            rows = covered_rows.touched(sight.fields[0])
            cols = covered_cols.touched(sight.fields[1])
            if step.index in wanted:
                of_rows, of_cols = wanted[step.index]
                rows, cols = rows.within(of_rows), cols.within(of_cols)
            found[step.index] = rows, cols
        return found

    # --- batches ---

    def batches(self, budget: int) -> list[Which]:
        """All squares in batches that need at most ``budget`` bytes; two squares go in any case.

        A batch computes windows of its largest size, so squares whose windows the border cuts
        alike go together.
        """
        most = portions_on(self._network.device.type).squares
        size = max(2, min(most, budget // self._bytes_of_a_square()))
        if len(self._squares) <= size:
            return self._tiles(size, len(self._squares))
        rows = len(np.unique(self._squares.top))
        tilings = [self._tiles(size, band) for band in sorted({min(band, rows) for band in BANDS})]
        return min(tilings, key=self.multiply_adds)

    def multiply_adds(self, batches: Sequence[Which]) -> int:
        """Of all convolutions and linear layers, with batches like these."""
        return sum(
            len(which) * self._work[step.index] * self._area(step, which)
            for step in self.steps
            if step.index in self._work
            for which in batches
        )

    def multiply_adds_of_full_runs(self) -> int:
        """If each square took a forward pass of the whole image."""
        works = (self._work.get(step.index, 0) * _area_of(step) for step in self.steps)
        return len(self._squares) * sum(works)

    def tail_size(self, budget: int) -> int:
        """How many squares' vectors, of those that the tail starts from, fit in ``budget``."""
        tail = self.steps[self.tail :]
        inside = {step.index for step in tail}
        read = {i for step in tail for i in self._network.sources(step)} - inside
        below = [self._network.steps[i] for i in read]
        numbers = sum(int(np.prod(step.shape)) for step in below if step.depends)
        return max(2, budget // max(1, numbers * self._bytes_of_a_number()))

    def _tiles(self, size: int, band: int) -> list[Which]:
        """Bands of ``band`` rows of the grid, those at the same distance from either border
        together; in a band squares by their distance from the left and right border."""
        squares = self._squares
        height, width = self._network.input_shape[1:]
        depth = np.minimum(squares.top, height - squares.top - squares.height)
        across = np.minimum(squares.left, width - squares.left - squares.width)
        order = np.lexsort((squares.top, depth))
        in_band = band * -(-len(order) // len(np.unique(squares.top)))
        bands = [order[i : i + in_band] for i in range(0, len(order), in_band)]
        order = np.concatenate([one[np.argsort(across[one], kind="stable")] for one in bands])
        # A batch of one would lose its axis to a squeeze: a single last square is run twice.
        order = np.append(order, order[-1:]) if len(order) % size == 1 else order
        return [order[i : i + size] for i in range(0, len(order), size)]

    def _area(self, step: Step, which: Which) -> int:
        if not self.is_map(step):
            return _area_of(step)
        windows = self.windows(step, which)
        return windows.height * windows.width

    # --- memory ---

    def _bytes_of_a_square(self) -> int:
        """At most, of all that a batch holds at any one time, for one square of it."""
        size, all_of_them = self._bytes_of_a_number(), np.arange(len(self._squares))
        own = {
            step.index: self._area(step, all_of_them) * step.shape[0] * size
            for step in self.steps[: self.tail]
            if step.shape
        }
        held, most = 0, 1
        for step in self.steps[: self.tail]:
            held += own.get(step.index, 0)
            read = [self._bytes_read(step, i, all_of_them) for i in set(step.inputs) if i in own]
            most = max(most, held + sum(read))
            held -= sum(own.get(done, 0) for done in self.last_uses.get(step.index, ()))
        return most

    def _bytes_read(self, step: Step, source: int, which: Which) -> int:
        """What a step takes of one input, laid over the clean map, and the list of its places."""
        below = self._network.steps[source]
        area = self._area(step, which) if self.is_windowed(step) else _area_of(below)
        if self.is_windowed(step) and isinstance(step.module, SLIDING):
            rows, cols = (sliding_window(step.module, axis) for axis in (0, 1))
            frame = self.windows(step, which).read(rows, cols, (below.shape[1], below.shape[2]))
            area = frame.height * frame.width
        return area * (below.shape[0] * self._bytes_of_a_number() + 16)

    def _bytes_of_a_number(self) -> int:
        modules = (step.module for step in self.steps if step.module is not None)
        return next((p.element_size() for module in modules for p in module.parameters()), 4)

    def _find_tail(self) -> int:
        tail = len(self.steps)
        for step in reversed(self.steps):
            if step.depends and len(step.shape) != 1:
                break
            tail -= 1
        return tail

    def _find_last_uses(self) -> dict[int, list[int]]:
        """Step → whose outputs nobody needs after it; its own, if nobody ever does."""
        last: dict[int, int] = {}
        for step in self.steps:
            last[step.index] = step.index
            last.update({source: step.index for source in self._network.sources(step)})
        uses: dict[int, list[int]] = {}
        for source, index in last.items():
            uses.setdefault(index, []).append(source)
        return uses


def _area_of(step: Step) -> int:
    return int(np.prod(step.shape[1:]))


def _weights_used(step: Step) -> int:
    """Multiply-adds for all channels of one position."""
    return step.module.weight.numel() if isinstance(step.module, nn.Conv2d | nn.Linear) else 0


def is_map(network: Network, step: Step) -> bool:
    """Whether its output lies as (channel, row, col) do."""
    sight = network.sight(step)
    return sight is not None and sight.axes == USUAL and len(step.shape) == 3


def can_be_windowed(network: Network, step: Step) -> bool:
    """Whether a part of a step's output can be computed from a part of its input."""
    if step.rule is None or not step.inputs or not is_map(network, step):
        return False
    below = [network.steps[i] for i in step.inputs if network.steps[i].depends]
    if not all(is_map(network, source) for source in below):
        return False
    match step.rule.reach:
        case Reach.WINDOW:
            return isinstance(step.module, SLIDING)
        case Reach.SAME:
            alike = all(source.shape[1:] == step.shape[1:] for source in below)
            return alike and all(map(_is_even, step.constants.values()))
        case Reach.SELECTION:
            return _takes_channels(step)
    return False


def _is_even(constant: Any) -> bool:
    """Whether an argument is the same for all rows and columns."""
    return not isinstance(constant, Tensor) or all(size == 1 for size in constant.shape[-2:])


def _takes_channels(step: Step) -> bool:
    """Whether it is a slice, or a part, along the channels."""
    if step.node.target is part_of:
        args: Any = step.node.args[2]
        kwargs: Any = step.node.args[3]
        divided = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        return divided in (1, -3) and len(step.constants) == 0
    taken = step.node.args[1] if len(step.node.args) == 2 else None
    if step.rule is None or step.rule.name != "slice" or not isinstance(taken, tuple):
        return False
    channels = taken[1] if len(taken) > 1 else None
    others = [part for axis, part in enumerate(taken) if axis != 1]
    return isinstance(channels, slice) and all(part == slice(None) for part in others)


def wanted_below(network: Network, path: Sequence[Step], top: Spans) -> dict[int, Spans]:
    """What ``top``, a part of the last step's map, is computed from, by step: its receptive field
    in every map below.

    Several cones go down at once: one for each position of the spans.
    """
    count = len(top[0].low)
    wanted = {path[-1].index: top} if is_map(network, path[-1]) else {}
    for step in reversed(path):
        for below in (network.steps[i] for i in step.inputs):
            if not is_map(network, below):
                continue
            rows, cols = _below(network, step, below, wanted.get(step.index), count)
            if below.index in wanted:
                other_rows, other_cols = wanted[below.index]
                rows, cols = rows.hull(other_rows), cols.hull(other_cols)
            wanted[below.index] = rows, cols
    return wanted


def _below(network: Network, step: Step, below: Step, wanted: Spans | None, count: int) -> Spans:
    """What the wanted part of a step reads of one of its inputs."""
    height, width = below.shape[1:]
    if wanted is None or not can_be_windowed(network, step):
        return everything(height, count), everything(width, count)
    if step.rule is None or step.rule.reach is not Reach.WINDOW:
        return wanted
    rows, cols = wanted
    return (
        rows.before(sliding_window(step.module, 0), height),
        cols.before(sliding_window(step.module, 1), width),
    )
