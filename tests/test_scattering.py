"""Single values sent down: hand-worked, and beside torch's own operations."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers import scattering
from workers.scattering import Landing, SparseFilter, send_maxima


def landing(count: int, size: tuple[int, int], first: tuple[int, int] = (0, 0)) -> Landing:
    """In windows that lie wholly in the map."""
    inside = np.array([[[0, size[0]], [0, size[1]]]])
    return Landing(np.array([first] * count), size, np.repeat(inside, count, axis=0))


def sparse(*shape: int, seed: int = 0, share: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    there = torch.rand(*shape, generator=generator) < share
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * there


def test_a_value_brings_its_filter_along() -> None:
    conv = nn.Conv2d(1, 1, 2, bias=False)
    conv.weight = nn.Parameter(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), requires_grad=False)
    signal = torch.zeros(1, 1, 2, 2)
    signal[0, 0, 1, 0] = 10.0
    found = SparseFilter(conv).into(signal, landing(1, (3, 3)))
    assert found[0, 0].tolist() == [[0, 0, 0], [10, 20, 0], [30, 40, 0]]


def test_filters_overlap_and_what_falls_outside_is_left_out() -> None:
    conv = nn.Conv2d(1, 1, (1, 3), bias=False)
    conv.weight = nn.Parameter(torch.tensor([[[[1.0, 1.0, 1.0]]]]), requires_grad=False)
    signal = torch.tensor([[[[1.0, 10.0]]]])
    whole = landing(1, (1, 3), first=(0, -1))
    assert SparseFilter(conv).into(signal, whole)[0, 0].tolist() == [[11, 11, 10]]
    in_part = Landing(whole.first, whole.size, np.array([[[0, 1], [1, 3]]]))
    assert SparseFilter(conv).into(signal, in_part)[0, 0].tolist() == [[0, 11, 10]]


@pytest.mark.parametrize("packed_bytes", [2**20, 1])
@pytest.mark.parametrize(
    "kernel, stride", list(product([(1, 1), (3, 2), (4, 5)], [(1, 1), (2, 3)]))
)
@pytest.mark.parametrize("below", [3, 40, 67])
def test_it_is_the_adjoint_of_the_convolution(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    below: int,
    packed_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``packed_bytes``: in one block of channels, and in several."""
    monkeypatch.setattr(scattering, "PACKED_BYTES", packed_bytes)
    torch.manual_seed(1)
    conv = nn.Conv2d(below, 7, kernel, stride, bias=False).double().requires_grad_(False)
    signal = sparse(3, 7, 4, 6)
    slow = F.conv_transpose2d(signal, conv.weight, stride=stride)
    size: Any = tuple(slow.shape[2:])
    found = SparseFilter(conv).into(signal, landing(3, size))
    assert torch.allclose(found, slow, rtol=0, atol=1e-12)
    shifted = SparseFilter(conv).into(signal, landing(3, (3, 4), first=(-1, -2)))
    height, width = size
    assert torch.allclose(
        shifted[:, :, : height - 1, : width - 2], slow[:, :, 1:4, 2:6], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("kernel, stride, dilation", [(2, 2, 1), (3, 2, 1), (3, 1, 2), (2, 3, 1)])
def test_maxima_go_back_to_their_places(kernel: int, stride: int, dilation: int) -> None:
    pool = nn.MaxPool2d(kernel, stride, dilation=dilation, return_indices=True)
    torch.manual_seed(2)
    maps = torch.randn(2, 5, 9, 11, dtype=torch.float64)
    outputs, indices = pool(maps)
    signal = sparse(*outputs.shape, share=0.7)
    slow = torch.zeros_like(maps)
    for image, channel in product(range(2), range(5)):
        flat = slow[image, channel].view(-1)
        for value, place in zip(
            signal[image, channel].flatten(), indices[image, channel].flatten(), strict=True
        ):
            flat[place] += value
    row, col = indices // 11, indices % 11
    down = torch.arange(outputs.shape[2])[:, None] * stride
    right = torch.arange(outputs.shape[3]) * stride
    codes = (row - down) // dilation * kernel + (col - right) // dilation
    codes = codes.permute(0, 2, 3, 1).to(torch.uint8)
    origin = np.zeros((2, 2), np.int64)
    found = send_maxima(signal, codes, np.arange(2), origin, pool, landing(2, (9, 11)))
    assert torch.equal(found, slow)
    # One hit, of the second image, whose window of values begins one row above the map's second.
    one = send_maxima(
        signal[1:, :, 1:, 1:], codes, np.array([1]), np.array([[1, 1]]), pool,
        landing(1, (9, 11), first=(stride, stride)),
    )  # fmt: skip
    signal[1, :, 0], signal[1, :, :, 0] = 0, 0
    again = send_maxima(signal, codes, np.arange(2), origin, pool, landing(2, (9, 11)))
    assert torch.equal(one[0], again[1])


def test_bits_do_not_depend_on_what_goes_together() -> None:
    conv = nn.Conv2d(5, 30, 3, bias=False).requires_grad_(False)
    signal = sparse(6, 30, 8, 8, share=0.3).float()
    together = SparseFilter(conv).into(signal, landing(6, (10, 10)))
    alone = [SparseFilter(conv).into(one[None], landing(1, (10, 10))) for one in signal]
    assert torch.equal(together, torch.cat(alone))
