"""Count the multiply-adds that projections do, by watching the steps that do them."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from workers.adjoints import FilterBack
from workers.ascent import Ascent
from workers.graph import Layer, Network
from workers.scattering import SparseFilter


@contextmanager
def counted() -> Iterator[list[float]]:
    """While it is open, every filter on the way down and every forward pass adds an entry."""
    done: list[float] = []
    watched: list[tuple[type, str, Callable[..., float]]] = [
        (FilterBack, "_by_convolution", _of_convolution),
        (FilterBack, "_by_phases", _of_phases),
        (FilterBack, "_by_columns", _of_columns),
        (FilterBack, "_by_torch", _of_columns),
        (SparseFilter, "into", _of_values),
        (Network, "switches", _of_whole_images),
        (Ascent, "switches", _of_windows),
    ]
    own = [(owner, name, getattr(owner, name)) for owner, name, _ in watched]

    def watch(method: Callable[..., Any], count: Callable[..., float]) -> Callable[..., Any]:
        def call(self: Any, *arguments: Any) -> Any:
            result = method(self, *arguments)
            done.append(count(self, result, *arguments))
            return result

        return call

    for (owner, name, method), (_, _, count) in zip(own, watched, strict=True):
        setattr(owner, name, watch(method, count))
    try:
        yield done
    finally:
        for owner, name, method in own:
            setattr(owner, name, method)


def in_full(network: Network, layer: Layer) -> float:
    """Of one hit that is recomputed: a forward pass of the whole image up to the layer, and as much
    again on the way back."""
    return 2 * _of_path(network, network.path_to(layer))


def _of_convolution(self: Any, result: Any, signal: Any, natural: Any, wanted: Any) -> float:
    below: Any = result[0]
    return float(len(signal) * math.prod(below.shape[2:]) * self._conv.weight.numel())


def _of_phases(self: Any, result: Any, signal: Any, natural: Any) -> float:
    size = [n + k - 1 for n, k in zip(signal.shape[2:], self._kernels.shape[2:], strict=True)]
    return float(len(signal) * math.prod(size) * self._kernels.numel())


def _of_columns(self: Any, result: Any, signal: Any, *others: Any) -> float:
    return float(len(signal) * math.prod(signal.shape[2:]) * self._conv.weight.numel())


def _of_values(self: Any, result: Any, signal: Any, landing: Any) -> float:
    of_each = math.prod(self._kernel) * self._below
    return float(signal.count_nonzero()) * of_each


def _of_whole_images(self: Any, result: Any, images: Any, path: Any, *_: Any) -> float:
    pools = [step.index for step in path if step.index in result.codes]
    return len(images) * _of_path(self, [step for step in path if pools and step.index < pools[-1]])


def _of_windows(
    self: Any, result: Any, images: Any, image_of_hit: Any, group: Any, position: Any
) -> float:
    return len(position) * sum(
        step.module.weight.numel() * group.windows[step.index][0].size
        * group.windows[step.index][1].size
        for step in self.path
        if isinstance(step.module, nn.Conv2d) and group.windows.get(step.index) is not None
    )  # fmt: skip


def _of_path(network: Network, path: Any) -> float:
    total = 0
    for step in path:
        if isinstance(step.module, nn.Conv2d):
            total += step.module.weight.numel() * math.prod(step.shape[1:])
        elif isinstance(step.module, nn.Linear):
            total += step.module.weight.numel()
    return float(total)
