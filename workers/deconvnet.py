"""Project activations back to pixels with a deconvnet.

Follows Zeiler & Fergus (2013, arXiv:1311.2901) section 2.1: all activations of a layer but one are
set to zero, then the signal goes down: unpool with the recorded switches, rectify, filter with the
transposed weights.  What the paper's network does not have (sums, concatenations, average pools,
BatchNorm) is said in ``workers.ops``.  Two other methods go the same way and differ in what a
rectifier lets pass alone (``workers.ops.RECTIFICATIONS``): the gradient (Simonyan et al. 2013,
arXiv:1312.6034) and guided backpropagation (Springenberg et al. 2014, arXiv:1412.6806).

A signal is computed on its cone alone (``workers.cones``): a window of each map, in which hits of
many units and images lie one behind the other.  Where one activation meets a filter or a matrix
first, the result is that filter itself.  No I/O.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, Integer, UInt8
from torch import Tensor, nn

from deconvoy.spec import Method
from workers import loops
from workers.adjoints import FilterBack, average_back, transpose, unpool
from workers.cones import Cone, Group, Span, slides, touched
from workers.graph import Layer, Network
from workers.ops import RECTIFICATIONS, Down, Reach, Rectification
from workers.placing import Placing, Spans, fitted, pasted
from workers.portions import portions_on
from workers.scattering import Landing, SparseFilter, send_maxima
from workers.sight import sliding_window
from workers.steps import Step
from workers.switches import BITS, Switches, WindowSwitches, unpacked


@dataclass(frozen=True)
class Point:
    """One activation a hit, all else zero: not yet written into a tensor."""

    unit: Int[Tensor, " hit"]
    value: Float[Tensor, " hit"]


@dataclass(frozen=True)
class Projection:
    """What a group of hits has come down to."""

    signal: Float[Tensor, "hit channel row col"]
    """In the window; signed, in units of the normalised input."""
    origin: Int64[np.ndarray, "hit yx"]
    """Of the window in the image; it may hang over, with zeros there."""

    def whole(self, height: int, width: int) -> Float[Tensor, "hit channel height width"]:
        """On the whole image."""
        rows, cols = (
            self.origin[:, axis, None] + np.arange(self.signal.shape[2 + axis]) for axis in (0, 1)
        )
        return pasted(self.signal, rows, cols, (height, width))


class Deconvnet:
    """The way down through one network; keeps the transposed filters it has made."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._filters: dict[int, FilterBack] = {}
        self._sparse_filters: dict[int, SparseFilter] = {}

    def project(
        self,
        cone: Cone,
        group: Group,
        switches: Switches | WindowSwitches,
        image_of_hit: Int[Tensor, " hit"],
        unit: Int[Tensor, " hit"],
        position: Int64[np.ndarray, "hit yx"],
        seed: Float[Tensor, " hit"],
        method: Method = "deconvnet",
    ) -> Projection:
        """Project hits of one group of a cone; ``parts`` in one piece."""
        found = list(self.parts(cone, group, switches, image_of_hit, unit, position, seed, method))
        return Projection(
            torch.cat([projection.signal for _, projection in found]),
            np.concatenate([projection.origin for _, projection in found]),
        )

    def parts(
        self,
        cone: Cone,
        group: Group,
        switches: Switches | WindowSwitches,
        image_of_hit: Int[Tensor, " hit"],
        unit: Int[Tensor, " hit"],
        position: Int64[np.ndarray, "hit yx"],
        seed: Float[Tensor, " hit"],
        method: Method = "deconvnet",
    ) -> Iterator[tuple[slice, Projection]]:
        """Project hits of one group of a cone, some at a time: as signals grow on their way down,
        fewer go together, so that one takes at most its portion (``workers.portions``), or is that
        of one hit.

        Args:
            switches: of the images, or of the hits' windows of this group; with the masks that
                ``method`` asks for.
            image_of_hit: row of each hit's image among those that gave the switches.
            position: on the layer's map.
            seed: the recorded activation of each hit; all else of the layer is zero.

        Yields:
            Which of the hits, in their order, and what they have come down to.
        """
        rectification = RECTIFICATIONS[method]
        down = _Down(
            self, self._network, cone, group, switches, image_of_hit, position, rectification
        )
        yield from down.run(Point(unit, seed))

    def filter_of(self, step: Step) -> FilterBack:
        if step.index not in self._filters:
            assert isinstance(step.module, nn.Conv2d)
            self._filters[step.index] = FilterBack(step.module)
        return self._filters[step.index]

    def sparse_filter_of(self, step: Step) -> SparseFilter:
        if step.index not in self._sparse_filters:
            assert isinstance(step.module, nn.Conv2d)
            self._sparse_filters[step.index] = SparseFilter(step.module)
        return self._sparse_filters[step.index]


def project(
    network: Network,
    layer: Layer,
    switches: Switches | WindowSwitches,
    image_of_hit: Int[Tensor, " hit"],
    unit: Int[Tensor, " hit"],
    position: Int[Tensor, "hit yx"],
    seed: Float[Tensor, " hit"],
    method: Method = "deconvnet",
) -> Float[Tensor, "hit channel row col"]:
    """Project hits of one layer, of any units and images, to whole images.

    Args:
        switches: with the masks that ``method`` asks for.

    Returns:
        Signed, in units of the normalised input.
    """
    cone, deconvnet = Cone(network, layer), Deconvnet(network)
    places = position.cpu().numpy().astype(np.int64)
    found = seed.new_zeros(len(unit), *network.input_shape)
    for group in cone.groups(places):
        at = torch.from_numpy(group.hits).to(seed.device)
        projection = deconvnet.project(
            cone, group, switches, image_of_hit[at], unit[at], places[group.hits], seed[at], method
        )
        found[at] = projection.whole(*network.input_shape[1:])
    return found


class _Down:
    """One group on its way down."""

    def __init__(
        self,
        deconvnet: Deconvnet,
        network: Network,
        cone: Cone,
        group: Group,
        switches: Switches | WindowSwitches,
        image_of_hit: Int[Tensor, " hit"],
        position: Int64[np.ndarray, "hit yx"],
        rectification: Rectification,
        first: int = 0,
    ) -> None:
        self._deconvnet, self._network = deconvnet, network
        self._cone, self._group, self._windows = cone, group, group.windows
        self._switches, self._image_of_hit = switches, image_of_hit
        self._position, self._placing = position, Placing(position)
        self._rectification, self._first = rectification, first

    def run(self, point: Point) -> Iterator[tuple[slice, Projection]]:
        yield from self._on({self._cone.layer.step: point}, len(self._cone.path))

    def _on(
        self, signals: dict[int, Tensor | Point], end: int
    ) -> Iterator[tuple[slice, Projection]]:
        """Down from the signals of some steps, through the first ``end`` ones of the path."""
        count = len(self._position)
        for place in reversed(range(end)):
            step = self._cone.path[place]
            if step.index not in signals:
                continue
            fitting = self._fitting(step, signals[step.index])
            if fitting < count:
                pieces = -(-count // fitting)
                for number in range(pieces):
                    which = slice(number * count // pieces, (number + 1) * count // pieces)
                    own = {index: _taken(signal, which) for index, signal in signals.items()}
                    yield from self._part(which)._on(own, place + 1)
                return
            signal = signals.pop(step.index)
            if step.node.op == "placeholder":
                which = slice(self._first, self._first + count)
                yield which, self._arrived(step, self._written(step, signal))
                return
            for source, part in self._parts(step, signal):
                known = signals.get(source)
                if known is None:
                    signals[source] = part
                else:
                    below = self._network.steps[source]
                    signals[source] = self._written(below, known) + self._written(below, part)
        raise AssertionError(f"layer {self._cone.layer.name} does not depend on the image")

    def _fitting(self, step: Step, signal: Tensor | Point) -> int:
        """Hits whose signals below a step fit in the memory for them, at least one."""
        number = signal if isinstance(signal, Tensor) else signal.value
        below = [i for i in step.inputs if self._network.steps[i].depends]
        largest = max((self._cone.values(self._group, i) for i in below), default=1)
        most = portions_on(number.device.type).signal_bytes
        return max(1, most // (largest * number.element_size()))

    def _part(self, which: slice) -> "_Down":
        switches = self._switches
        if isinstance(switches, WindowSwitches):
            switches = WindowSwitches({i: codes[which] for i, codes in switches.codes.items()})
        return _Down(
            self._deconvnet,
            self._network,
            self._cone,
            self._group,
            switches,
            self._image_of_hit[which],
            self._position[which],
            self._rectification,
            self._first + which.start,
        )

    def _parts(self, step: Step, signal: Tensor | Point) -> list[tuple[int, Tensor | Point]]:
        """What each input of ``step`` receives, in its own window."""
        assert step.rule is not None and step.rule.down is not None, f"{step.name} has no rule"
        steps = self._network.steps
        below = [steps[source] for source in step.inputs]
        if isinstance(signal, Point):
            if step.rule.down is Down.COPY and all(b.shape == step.shape for b in below):
                return [(under.index, signal) for under in below if under.depends]
            met = self._of_point(step, signal)
            if met is not None:
                return [(below[0].index, met)]
            signal = self._written(step, signal)
        parts: Sequence[Tensor] = ()
        if step.rule.down is Down.SPLIT:
            parts = torch.split_with_sizes(signal, [under.shape[0] for under in below], dim=1)
        found: list[tuple[int, Tensor | Point]] = []
        for number, under in enumerate(below):
            if under.depends:
                own = parts[number] if parts else signal
                if number and not parts:  # each may be overwritten on its way
                    own = own.clone()
                found.append((under.index, self._step(step, under, own)))
        return found

    def _step(self, step: Step, below: Step, signal: Tensor) -> Tensor:
        """Down through one step into the window of one of its inputs."""
        if (sent := self._sent(step, below, signal)) is not None:
            return sent
        above_window, window = self._windows[step.index], self._windows[below.index]
        if above_window is None or not slides(step, below, self._network.sights):
            assert window is None, f"{below.name} has a window below {step.name}, which has none"
            return self._whole(step, signal, below)
        assert step.rule is not None
        spans = above_window
        widens = step.rule.reach is Reach.WINDOW
        match step.rule.down:
            case Down.PASS | Down.SPLIT:
                pass
            case Down.COPY:
                signal = _unbroadcast(signal, (*below.shape[:-2], *signal.shape[-2:]))
            case Down.RECTIFY:
                signal = self._rectified(step, signal, above_window, signal)
            case Down.RESHAPE:
                signal = signal.reshape(len(signal), *below.shape[:-2], *signal.shape[-2:])
            case Down.FILTER:
                spans = touched(step, below, spans)
                wanted = _same_moves(spans, window)
                signal, spans = self._deconvnet.filter_of(step).into(signal, spans, wanted)
            case Down.UNPOOL:
                spans = touched(step, below, spans)
                signal = unpool(signal, self._codes(step, above_window), step.module)
            case Down.TRANSPOSE if isinstance(step.module, nn.AvgPool2d):
                rows, cols = self._placing.places(above_window)
                spans = touched(step, below, spans)
                signal = average_back(signal, step.module, rows, cols, below.shape[-2:])
            case _:
                shape = (*below.shape[:-2], *signal.shape[-2:])
                signal = transpose(step, signal, shape)
        placed = self._placed(signal, spans, below)
        return self._inside(below, placed) if widens else placed

    def _sent(self, step: Step, below: Step, signal: Tensor) -> Tensor | None:
        """Through an unpooling, or filters that meet nearly only zeros, straight into the window
        below; None where that cannot be done, or is not worth it."""
        assert step.rule is not None
        unpools = step.rule.down is Down.UNPOOL
        filters = step.index in self._cone.sparse and SparseFilter.can_do(step.module)
        if not loops.serve(signal.device) or not (unpools or filters) or len(step.shape) != 3:
            return None
        above = self._windows[step.index] or _all_of(step)
        window = self._windows[below.index] or _all_of(below)
        origin = self._placing.origins(window)
        size = window[0].size, window[1].size
        end = (np.array(below.shape[-2:]) - origin).clip(None, size)
        landing = Landing(
            first=self._placing.origins(touched(step, below, above)) - origin,
            size=size,
            inside=np.stack([(-origin).clip(0), end], -1),
        )
        if filters:
            return self._deconvnet.sparse_filter_of(step).into(signal, landing)
        assert step.module is not None
        codes, image = self._switches.codes[step.index], self._image_of_hit.numpy()
        at = self._placing.origins(above)
        if isinstance(self._switches, WindowSwitches):
            image, at = np.arange(len(signal)), np.zeros_like(at)
        return send_maxima(signal, codes, image, at, step.module, landing)

    def _whole(self, step: Step, signal: Tensor, below: Step) -> Tensor:
        """Down through one step that has no windows."""
        spans = self._windows[step.index]
        if spans is not None:
            signal = pasted(signal, *self._placing.places(spans), step.shape[-2:])
        assert step.rule is not None
        match step.rule.down:
            case Down.PASS | Down.SPLIT:
                return signal
            case Down.RECTIFY:
                return self._rectified(step, signal, None)
            case Down.COPY:
                return _unbroadcast(signal, below.shape)
            case Down.RESHAPE:
                return signal.reshape(len(signal), *below.shape)
            case Down.MATRIX:
                assert isinstance(step.module, nn.Linear)
                return signal @ step.module.weight
            case Down.UNPOOL:
                assert step.module is not None
                assert isinstance(self._switches, Switches), "a window has no whole maps"
                codes = self._switches.codes[step.index][self._image_of_hit]
                under = unpool(signal, codes, step.module)
                padding = [sliding_window(step.module, axis).padding for axis in (0, 1)]
                return fitted(under, [-pad for pad in padding], below.shape[-2:])
            case Down.FILTER:
                assert step.module is not None
                under, natural = self._deconvnet.filter_of(step).into(
                    signal, touched(step, below, _all_of(step)), _all_of(below)
                )
                return fitted(under, [span.start for span in natural], below.shape[-2:])
            case _:
                return transpose(step, signal, below.shape)

    def _of_point(self, step: Step, point: Point) -> Tensor | Point | None:
        """Where one activation is all there is, the filter itself comes down; None if there is no
        short way through ``step``."""
        assert step.rule is not None
        below = self._network.steps[step.inputs[0]]
        match step.rule.down:
            case Down.PASS if step.shape == below.shape:
                return point
            case Down.RECTIFY:
                return self._rectified_point(step, point)
            case Down.MATRIX if len(step.shape) == 1:
                assert isinstance(step.module, nn.Linear)
                return step.module.weight[point.unit] * point.value[:, None]
            case Down.FILTER if self._windows[step.index] is not None:
                assert isinstance(step.module, nn.Conv2d)
                if step.module.groups > 1 or set(step.module.dilation) != {1}:
                    return None
                kernels = step.module.weight[point.unit] * point.value[:, None, None, None]
                spans = self._windows[step.index]
                if spans is None or any(span.size > 1 for span in spans):
                    return None
                kernels = kernels.contiguous(memory_format=torch.channels_last)
                return self._inside(
                    below, self._placed(kernels, touched(step, below, spans), below)
                )
        return None

    # Rectifiers ---------------------------------------------------------------------------------

    def _rectified(
        self, step: Step, signal: Tensor, spans: Spans | None, out: Tensor | None = None
    ) -> Tensor:
        """What the method lets pass, of a signal in a window or, without ``spans``, on whole maps;
        written into ``out``, if there is one."""
        if self._rectification.by_signal:
            signal = torch.clamp(signal, min=0, out=out)
        if self._rectification.by_input:
            signal = torch.mul(signal, self._mask(step, spans), out=out)
        return signal

    def _mask(self, step: Step, spans: Spans | None) -> UInt8[Tensor, "hit *value"]:
        """1 where a rectifier let its input pass, 0 where not; beyond the map it may be either."""
        if spans is not None:
            mask = self._codes(step, spans)
        else:
            assert isinstance(self._switches, Switches), "a window has no whole maps"
            mask = self._switches.codes[step.index][self._image_of_hit]
        mask = unpacked(mask, step.shape[0])
        return mask.permute(0, 3, 1, 2) if mask.ndim == 4 else mask

    def _rectified_point(self, step: Step, point: Point) -> Point | None:
        """None of maps that are turned: their masks are, too."""
        value = point.value
        if self._rectification.by_signal:
            value = value.clamp(min=0)
        if self._rectification.by_input:
            if self._cone.layer.order not in ((0, 1, 2), (0,)):
                return None
            value = value * self._mask_at(step, point.unit)
        return Point(point.unit, value)

    def _mask_at(self, step: Step, unit: Int[Tensor, " hit"]) -> Integer[Tensor, " hit"]:
        """1 where a rectifier let the hit's own activation pass, 0 where not."""
        mask, image, place = self._switches.codes[step.index], self._image_of_hit, self._position
        byte, bit = unit // BITS, unit % BITS
        if mask.ndim == 2:
            return mask[image, byte] >> bit & 1
        if isinstance(self._switches, WindowSwitches):
            spans = self._windows[step.index]
            assert spans is not None, f"{step.name} was run on windows and has none"
            place = place - self._placing.origins(spans)
            image = torch.arange(len(place), device=mask.device)
        y, x = torch.from_numpy(place).to(mask.device).unbind(1)
        return mask[image, y, x, byte] >> bit & 1

    # Windows ------------------------------------------------------------------------------------

    def _written(self, step: Step, signal: Tensor | Point) -> Tensor:
        """A tensor of the step's window."""
        if isinstance(signal, Tensor):
            return signal
        layer, count = self._cone.layer, len(signal.unit)
        hit = torch.arange(count, device=signal.value.device)
        spans = self._windows[step.index]
        if spans is None:
            whole = signal.value.new_zeros(count, layer.units, layer.height, layer.width)
            y, x = (torch.from_numpy(self._position[:, axis]).to(hit.device) for axis in (0, 1))
            whole[hit, signal.unit, y, x] = signal.value
            return layer.as_output(whole)
        rows, cols = self._placing.places(spans)
        y, x = (
            torch.from_numpy(self._position[:, axis] - at[:, 0]).to(hit.device)
            for axis, at in enumerate((rows, cols))
        )
        size = (count, layer.units, spans[0].size, spans[1].size)
        window = signal.value.new_zeros(size).contiguous(memory_format=torch.channels_last)
        window[hit, signal.unit, y, x] = signal.value
        return window

    def _placed(self, signal: Tensor, spans: Spans, step: Step) -> Tensor:
        """From a window that ``spans`` gives into the step's own one."""
        window = self._windows[step.index]
        if window is None:
            return pasted(signal, *self._placing.places(spans), step.shape[-2:])
        return self._placing.moved(signal, spans, window)

    def _inside(self, step: Step, signal: Tensor) -> Tensor:
        """Without what lies outside the map."""
        spans = self._windows[step.index]
        return signal if spans is None else self._placing.filled(signal, spans)

    def _codes(self, step: Step, spans: Spans) -> Tensor:
        """The switches, or the mask, in the window of a step's output, (hit, row, col, channel)."""
        if isinstance(self._switches, WindowSwitches):
            return self._switches.codes[step.index]
        codes = self._switches.codes[step.index].permute(0, 3, 1, 2)
        return self._placing.cut(codes, self._image_of_hit, spans).permute(0, 2, 3, 1)

    def _arrived(self, step: Step, signal: Tensor) -> Projection:
        spans = self._windows[step.index]
        if spans is None:
            return Projection(signal, np.zeros((len(signal), 2), np.int64))
        return Projection(signal, self._placing.origins(spans))


def _all_of(step: Step) -> Spans:
    height, width = step.shape[-2:]
    return Span(0, 0, height, height), Span(0, 0, width, width)


def _taken(signal: Tensor | Point, which: slice) -> Tensor | Point:
    """That of some of the hits."""
    if isinstance(signal, Point):
        return Point(signal.unit[which], signal.value[which])
    return signal[which]


def _same_moves(natural: Spans, window: Spans | None) -> Spans | None:
    """The window to compute directly, where it moves as the natural one does."""
    if window is None or any(n.moves != w.moves for n, w in zip(natural, window, strict=True)):
        return None
    return window


def _unbroadcast(signal: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo broadcasting in a sum: add over the axes along which the input was repeated."""
    axes = [a + 1 for a, n in enumerate(shape) if n == 1 and signal.shape[a + 1] != 1]
    return signal.sum(axes, keepdim=True) if axes else signal
