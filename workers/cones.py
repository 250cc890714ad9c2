"""The part of every map below that one position of a layer is computed from.

The receptive field, step by step: intervals of rows and of columns.  Pure: numbers only.
"""

from collections.abc import Sequence

from workers.extents import can_be_windowed, is_map
from workers.graph import Network
from workers.ops import Reach
from workers.sight import sliding_window
from workers.steps import Step
from workers.windows import Spans, everything


def cones(network: Network, path: Sequence[Step], top: Spans) -> dict[int, Spans]:
    """What ``top``, a part of the last step's map, is computed from, by step.

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
