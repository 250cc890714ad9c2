"""Steps back through single operations: by hand, and against torch's own gradients in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers import adjoints
from workers.adjoints import FilterBack, average_back, unpool
from workers.cones import Span
from workers.sight import padding_of
from workers.switches import pooled

Spans = tuple[Span, Span]


def gradient(module: nn.Module, below: Tensor, signal: Tensor) -> Tensor:
    """The transposed linear map, by autograd."""
    below = below.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(module(below), below, signal)
    return found


def whole(module: nn.Module, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """An input and a signal at the output, both random."""
    generator = torch.Generator().manual_seed(1)
    below = torch.randn(shape, generator=generator, dtype=torch.float64)
    return below, torch.randn(module(below).shape, generator=generator, dtype=torch.float64)


def cropped(natural: Tensor, starts: list[int], size: tuple[int, int]) -> Tensor:
    top, left = starts
    bottom, right = (
        size[0] - top - natural.shape[2],
        size[1] - left - natural.shape[3],
    )
    return F.pad(natural, (left, right, top, bottom))


def spans_of(conv: nn.Conv2d, signal: Tensor) -> Spans:
    """What the filters reach of the map below."""
    found = []
    for axis in (0, 1):
        stride, dilation, kernel = (
            int(getattr(conv, name)[axis]) for name in ("stride", "dilation", "kernel_size")
        )
        size = (signal.shape[2 + axis] - 1) * stride + dilation * (kernel - 1) + 1
        found.append(Span(0, -int(conv.padding[axis]), size, 0))
    return found[0], found[1]


@pytest.mark.parametrize("column", [0, 90, 10**9], ids=["product", "the less", "convolution"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, 2, 5])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_filtering_back_is_the_adjoint(
    stride: int,
    kernel: int,
    padding: int,
    dilation: int,
    groups: int,
    column: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``column``: with the product of values and filters at no cost, and far too dear."""
    monkeypatch.setattr(adjoints, "COLUMN", column)
    conv = nn.Conv2d(4, 8, (kernel, 3), stride, padding, dilation, groups).double()
    conv.requires_grad_(False)
    below, signal = whole(conv, (2, 4, 11, 10))
    natural, spans = FilterBack(conv).into(signal, spans_of(conv, signal), None)
    assert tuple(natural.shape[2:]) == tuple(span.size for span in spans)
    ours = cropped(natural, [span.start for span in spans], (11, 10))
    assert (ours - gradient(conv, below, signal)).abs().max() < 1e-12


@pytest.mark.parametrize("column", [0, 10**9], ids=["product", "convolution"])
@pytest.mark.parametrize("window", [(-3, 13), (0, 5), (2, 4), (4, 9), (-1, 4)])
def test_filtering_back_into_a_window_is_that_part_of_the_whole(
    window: tuple[int, int], column: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adjoints, "COLUMN", column)
    conv = nn.Conv2d(3, 4, 3, padding=1).double().requires_grad_(False)
    below, signal = whole(conv, (2, 3, 9, 9))
    wanted = (Span(0, window[0], window[1], 9), Span(0, 0, 9, 9))
    ours, spans = FilterBack(conv).into(signal, spans_of(conv, signal), wanted)
    assert spans == wanted
    theirs = F.pad(gradient(conv, below, signal), (0, 0, 8, 8))
    start = window[0] + 8
    inside = slice(max(0, -window[0]), 9 - window[0])  # beyond the map anything may stand
    assert (ours - theirs[:, :, start : start + window[1]])[:, :, inside].abs().max() < 1e-12


POOLS = {
    "disjoint": nn.MaxPool2d(2),
    "overlapping": nn.MaxPool2d(3, 2),
    "overlapping much": nn.MaxPool2d((3, 2), 1),
    "padded": nn.MaxPool2d(3, 2, 1),
    "dilated": nn.MaxPool2d(2, 1, 0, 2),
    "sparse": nn.MaxPool2d(2, 3),
    "ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "as wide as the map": nn.MaxPool2d((2, 10), (1, 1), (0, 1)),
}


@pytest.mark.parametrize("name", POOLS)
def test_unpooling_sends_values_to_the_places_of_the_maxima(name: str) -> None:
    pool = POOLS[name]
    below, signal = whole(pool, (2, 3, 10, 9))
    maxima, codes = pooled(below, pool)
    assert torch.equal(maxima, pool(below))
    assert codes.dtype == torch.uint8
    padding = padding_of(pool)
    ours = cropped(unpool(signal, codes, pool), [-pad for pad in padding], (10, 9))
    assert (ours - gradient(pool, below, signal)).abs().max() < 1e-12


def test_values_that_meet_in_one_place_add_up() -> None:
    # One row of three; both windows of two have their maximum in the middle.
    pool = nn.MaxPool2d((1, 2), 1)
    codes = torch.tensor([[[[1], [0]]]], dtype=torch.uint8)
    below = unpool(torch.tensor([[[[4.0, 5.0]]]]), codes, pool)
    assert below.tolist() == [[[[0.0, 9.0, 0.0]]]]


def test_unpooling_keeps_hits_and_channels_apart() -> None:
    signal = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]], [[[5.0, 6.0]], [[7.0, 8.0]]]])
    codes = torch.tensor([[[[0, 1], [1, 1]]], [[[1, 0], [0, 0]]]], dtype=torch.uint8)
    below = unpool(signal, codes, nn.MaxPool2d((1, 2), 1))
    assert below.tolist() == [
        [[[1.0, 0.0, 2.0]], [[0.0, 3.0, 4.0]]],
        [[[0.0, 11.0, 0.0]], [[7.0, 8.0, 0.0]]],
    ]


AVERAGES = {
    "plain": nn.AvgPool2d(2),
    "overlapping": nn.AvgPool2d(3, 2),
    "padded": nn.AvgPool2d(3, 2, 1),
    "padding not counted": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "ceil": nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "by a number": nn.AvgPool2d(2, 2, divisor_override=3),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_come_down_evenly(name: str) -> None:
    pool = AVERAGES[name]
    below, signal = whole(pool, (2, 3, 10, 9))
    rows, cols = (np.tile(np.arange(n), (2, 1)) for n in signal.shape[2:])
    padding = int(pool.padding) if isinstance(pool.padding, int) else pool.padding[0]
    spread = average_back(signal, pool, rows, cols, (10, 9))
    ours = cropped(spread, [-padding, -padding], (10, 9))
    assert (ours - gradient(pool, below, signal)).abs().max() < 1e-12
