"""The forward pass on cones: switches of the places alone that a hit's projection goes through, and
masks where its method needs them.

An image that few hits lie on need not be run as a whole.  The windows of a cone hold, step by step,
all that a position of the layer is computed from, so each hit is run forward from its part of the
image.  What a window shows beyond the border is given the value that the step pads its map with, so
that every place of the map gets what the forward pass of the whole image gives it; and maps lie in
memory as they do there, since convolutions of another layout add up in another order, and rounding
would choose other maxima.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from deconvoy.spec import Method
from workers.cones import Cone, Group, touched
from workers.extents import can_be_windowed
from workers.graph import Network
from workers.ops import Down, Reach
from workers.placing import Placing, Spans
from workers.steps import Step
from workers.switches import WindowSwitches, passed, pooled, recorded

OVERHEAD = 1.3
"""How much longer a multiply-add takes on windows than on whole maps: copies at every step."""

POOLED = 200
"""Multiply-adds in the time that one value of a max pool and its switch take."""


class Ascent:
    """The way up to the last step that is recorded: a max pool or, where the method of projection
    asks what rectifiers let pass, one of these."""

    def __init__(self, network: Network, cone: Cone, method: Method = "deconvnet") -> None:
        self._network, self._cone = network, cone
        self.recorded = recorded(cone.path, method)
        """Steps, by index."""
        last = self.recorded[-1] if self.recorded else -1
        self.path = [step for step in cone.path if step.index <= last]

    @cached_property
    def possible(self) -> bool:
        """Whether every step on the way can be done on windows; where not, images are run whole."""
        return all(self._can_do(step) for step in self.path)

    @cached_property
    def whole(self) -> float:
        """Multiply-adds and comparisons of an image that is run as a whole."""
        return sum((_work(step, step.shape[-2:]) for step in self.path if step.depends), 0.0)

    def of_a_hit(self, group: Group) -> float:
        """Those of one hit of a group, on its windows, in the time they take on whole maps."""
        total = 0.0
        for step in self.path:
            spans = group.windows.get(step.index)
            if spans is not None:
                total += _work(step, (spans[0].size, spans[1].size))
        return OVERHEAD * total

    def switches(
        self,
        images: Float[Tensor, "image channel height width"],
        image_of_hit: Int64[Tensor, " hit"],
        group: Group,
        position: Int64[np.ndarray, "hit yx"],
    ) -> WindowSwitches:
        """Those in the windows of a group, and masks.

        Args:
            position: of the group's hits, on the layer's map.
        """
        placing = Placing(position)
        values: dict[int, Any] = {}
        codes: dict[int, Tensor] = {}
        last_use = self._network.last_uses(self.path)
        for step in self.path:
            spans = group.windows.get(step.index)
            if step.node.op == "placeholder" and step.depends:
                assert spans is not None
                cut = placing.cut(images, image_of_hit, spans)
                values[step.index] = cut.contiguous(memory_format=self._network.layout)
            elif spans is None:
                values[step.index] = self._network.run(step, values, images)
            elif step.rule is not None and step.rule.reach is Reach.WINDOW:
                read = self._read(step, spans, values, group.windows, placing)
                values[step.index], code = _slid(step, read)
                if code is not None:
                    codes[step.index] = code
                    # No infinity may be left: it would not go away when multiplied by zero.
                    values[step.index] = placing.filled(values[step.index], spans, 0.0, mask=True)
            else:
                moved = self._moved(step, spans, values, group.windows, placing)
                if step.index in self.recorded and step.rule is not None:
                    codes[step.index] = passed(moved[step.inputs[0]], step.rule.ceiling)
                values[step.index] = self._network.run(step, moved, images)
            for done in last_use.get(step.index, ()):
                values.pop(done, None)
        return WindowSwitches(codes)

    def _read(
        self,
        step: Step,
        spans: Spans,
        values: Mapping[int, Any],
        windows: Mapping[int, Spans | None],
        placing: Placing,
    ) -> Tensor:
        """All that a sliding window looks at, with its map's padding."""
        below = self._network.steps[step.inputs[0]]
        source = windows[below.index]
        assert source is not None
        frame = touched(step, below, spans)
        read = placing.moved(values[below.index], source, frame)
        read = read.contiguous(memory_format=self._network.layout)
        if placing.overhang(frame) and read.data_ptr() == values[below.index].data_ptr():
            read = read.clone()
        if _is_pool(step):
            return placing.filled(read, frame, -math.inf, mask=True)
        return placing.filled(read, frame)

    def _moved(
        self,
        step: Step,
        spans: Spans,
        values: Mapping[int, Any],
        windows: Mapping[int, Spans | None],
        placing: Placing,
    ) -> dict[int, Any]:
        """The values a step takes, each in the step's own window."""
        found = dict(values)
        for source in self._network.sources(step):
            window = windows.get(source)
            if window is not None:
                found[source] = placing.moved(values[source], window, spans)
        return found

    def _can_do(self, step: Step) -> bool:
        if step.node.op == "placeholder":
            return True
        below = [self._network.steps[i] for i in self._network.sources(step)]
        if not step.depends:  # parameters, and not sizes of what is a window now
            return not any(source.depends for source in below)
        windowed = [step, *(source for source in below if source.depends)]
        if any(self._cone.reaches.get(one.index) is None for one in windowed):
            return False
        if not can_be_windowed(self._network, step):
            return False
        return not isinstance(step.module, nn.AvgPool2d) or _is_even(step.module)


def _slid(step: Step, read: Tensor) -> tuple[Tensor, Tensor | None]:
    """A convolution or pool of what has its padding around it; a max pool's switches."""
    module: Any = step.module
    if isinstance(module, nn.MaxPool2d):
        return pooled(read, module, padded=True)
    if isinstance(module, nn.AvgPool2d):
        divisor = module.divisor_override
        return F.avg_pool2d(read, module.kernel_size, module.stride, divisor_override=divisor), None
    maps = F.conv2d(
        read, module.weight, module.bias, module.stride, 0, module.dilation, module.groups
    )
    return maps, None


def _is_pool(step: Step) -> bool:
    return step.rule is not None and step.rule.down is Down.UNPOOL


def _is_even(pool: nn.AvgPool2d) -> bool:
    """Whether it divides by the same number at the border."""
    padded = pool.padding not in (0, (0, 0)) and not pool.count_include_pad
    return pool.divisor_override is not None or not (padded or pool.ceil_mode)


def _work(step: Step, size: tuple[int, ...]) -> float:
    """Multiply-adds of a step for an output of that size; a value of a pool is worth some."""
    area = math.prod(size)
    if isinstance(step.module, nn.Conv2d):
        return float(step.module.weight.numel() * area)
    if isinstance(step.module, nn.MaxPool2d):
        return float(POOLED * step.shape[0] * area)
    return 0.0
