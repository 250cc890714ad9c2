"""What every step sees of the image: which of its axes are rows and columns, and receptive fields.

Maps usually lie as (channel, row, col), but a model may turn them, flatten them, or split channels
into groups and back.  Where values are only moved, maps of their own row and column numbers are
moved along, and tell where each position comes from.  A step whose axes are mixed up (tokens,
windows of attention) has no rows or no columns from there on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from workers.fields import (
    AxisField,
    Field,
    Window,
    through_cells,
    through_everything,
    through_selection,
    through_window,
    union,
)
from workers.ops import Reach
from workers.steps import MEASURED_IMAGES, Step

USUAL = (1, 2)
"""The axes of rows and columns in (channel, row, col)."""


@dataclass(frozen=True)
class Sight:
    """What the output of a step sees; the image axis is not counted."""

    shape: tuple[int, ...]
    axes: tuple[int | None, int | None]
    """Which are rows and columns; None where there is no such axis."""
    fields: tuple[AxisField, AxisField]
    """Of each row and column; of one position where there is no such axis."""

    @property
    def order(self) -> tuple[int, ...] | None:
        """The axes of unit, row and column (of a vector: the unit's); None where unclear."""
        rows, cols = self.axes
        if len(self.shape) == 1:
            return (0,)
        if len(self.shape) != 3 or rows is None or cols is None:
            return None
        return 3 - rows - cols, rows, cols


def sights(steps: Sequence[Step], image: tuple[int, int]) -> list[Sight | None]:
    """Of every step; None where it does not depend on the image, whose (height, width) it is."""
    found: list[Sight | None] = []
    for step in steps:
        below = [sight for i in step.inputs if (sight := found[i]) is not None]
        if not step.depends:
            found.append(None)
        elif step.node.op == "placeholder":
            height, width = (AxisField.of_input(length) for length in image)
            found.append(Sight(step.shape, USUAL, (height, width)))
        else:
            found.append(_sight(step, below))
    return found


def field_of(sight: Sight, image: tuple[int, int]) -> Field:
    return Field(*sight.fields, image)


def _sight(step: Step, below: list[Sight]) -> Sight:
    rows, cols = (_through(step, below, axis) for axis in (0, 1))
    if rows[0] is not None and rows[0] == cols[0]:  # rows and columns in one axis: neither
        rows, cols = (_everything(below, axis, None, 1) for axis in (0, 1))
    return Sight(step.shape, (rows[0], cols[0]), (rows[1], cols[1]))


_Axis = tuple[int | None, AxisField]


def _through(step: Step, below: list[Sight], axis: int) -> _Axis:
    """Rows (``axis`` 0) or columns (1) of a step's output: which of its axes, and their fields."""
    reach = step.rule.reach if step.rule else Reach.WHOLE
    at, field = below[0].axes[axis], below[0].fields[axis]
    if reach is Reach.WHOLE or not step.shape or not all(s.shape for s in below):
        return _mixed(step, below, axis)
    if reach is Reach.SAME:
        return _together(step, below, axis)
    if reach is Reach.SELECTION:
        if at is None:
            return _mixed(step, below, axis)
        moved = _moved(step, below[0].shape, at)
        to = _axis_of(moved, len(below[0].shape) - at)
        if to is None:
            return _everything(below, axis, None, 1)
        return to, through_selection(field, _profile(moved, to).numpy() - 1)
    if reach is Reach.LAST:
        if at is not None and at < len(step.shape) - _last_axes(step):
            return at, field
        kept = at if step.rule is not None and not step.rule.filters else None
        return _everything(below, axis, kept, step.shape[kept] if kept is not None else 1)
    if at is None or len(step.shape) - at > 2:  # it slides over the last two axes alone
        return _everything(below, axis, None, 1)
    if reach is Reach.CELLS:
        return at, through_cells(field, step.shape[at])
    return at, through_window(field, sliding_window(step.module, at - 1), step.shape[at])


def _mixed(step: Step, below: list[Sight], axis: int) -> _Axis:
    """After a step that sees all of its input; maps stay maps, and neurons may become maps."""
    usual = all(s.axes == USUAL or len(s.shape) == 1 or not s.shape for s in below)
    if len(step.shape) == 3 and usual:
        return _everything(below, axis, USUAL[axis], step.shape[USUAL[axis]])
    return _everything(below, axis, None, 1)


def _everything(below: list[Sight], axis: int, to: int | None, length: int) -> _Axis:
    whole = union([through_everything(sight.fields[axis], 1) for sight in below])
    return to, through_everything(whole, length)


def _together(step: Step, below: list[Sight], axis: int) -> _Axis:
    """Position by position of inputs whose axes are counted from the last, as in broadcasting."""
    places = {
        at + len(step.shape) - len(sight.shape)
        for sight in below
        if (at := sight.axes[axis]) is not None
    }
    if len(places) != 1 or any(len(s.shape) > 1 and s.axes[axis] is None for s in below):
        return _everything(below, axis, None, 1)
    return places.pop(), union([sight.fields[axis] for sight in below])


def _last_axes(step: Step) -> int:
    """How many of the last axes a step with ``Reach.LAST`` multiplies or normalises over."""
    if isinstance(step.module, nn.LayerNorm):
        return len(step.module.normalized_shape)
    if step.node.target is F.layer_norm:
        shape: Any = step.node.args[1:2] or (step.node.kwargs["normalized_shape"],)
        return len(shape[0])
    return 1


def _moved(step: Step, shape: tuple[int, ...], at: int) -> Float[Tensor, "..."]:
    """Where a step puts each index of axis ``at``, counted from 1; zero where it puts something
    else.  Found by moving a map of these numbers."""
    numbers = torch.arange(1, shape[at] + 1).view(-1, *(1,) * (len(shape) - 1 - at))
    numbered = numbers.expand(MEASURED_IMAGES, *shape).double()
    # Affine: what remains of the difference is the numbers, not the constant of a padding.
    return (step.apply_to(numbered) - step.apply_to(torch.zeros_like(numbered)))[0]


def _axis_of(moved: Float[Tensor, "..."], from_end: int) -> int | None:
    """The one axis along which the numbers lie; None where they are spread over several."""
    fitting = []
    for axis in range(moved.ndim):
        profile = _profile(moved, axis)
        along = profile.view(-1, *(1,) * (moved.ndim - 1 - axis))
        # Equal numbers all along an axis say nothing of it, unless it has one position only.
        tells = len(profile) == 1 or bool(profile.min() < profile.max())
        if tells and ((moved == along) | (moved == 0)).all():
            fitting.append(axis)
    usual = moved.ndim - from_end  # of several axes of one position, that which was it before
    return usual if usual in fitting else fitting[-1] if fitting else None


def _profile(moved: Float[Tensor, "..."], axis: int) -> Int[Tensor, " position"]:
    others = [other for other in range(moved.ndim) if other != axis]
    profile: Int[Tensor, " position"] = (moved.amax(others) if others else moved).long()
    return profile


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def sliding_window(module: Any, axis: int) -> Window:
    """Of a convolution or pool, along the rows (``axis`` 0) or columns (1)."""
    return Window(
        kernel=_pair(module.kernel_size)[axis],
        stride=_pair(module.stride)[axis],
        padding=padding_of(module)[axis],
        dilation=_pair(getattr(module, "dilation", 1))[axis],
    )


def padding_of(module: Any) -> tuple[int, int]:
    """Padding before the first row and column; kernels padded unevenly have no row in the table."""
    if module.padding == "same":
        reach = (np.array(module.kernel_size) - 1) * np.array(module.dilation)
        return int(reach[0]) // 2, int(reach[1]) // 2
    return (0, 0) if module.padding == "valid" else _pair(module.padding)
