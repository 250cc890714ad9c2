"""Maxima and their places in one pass: as torch finds them in two."""

import pytest
import torch
from torch import Tensor

from workers.peaks import can_find, peaks


def maps(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-3, 4, shape, generator=generator).float()  # many are equal
    return values.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 4, 5), (3, 40, 7, 1), (1, 17, 1, 9)])
@pytest.mark.parametrize("rectify", [False, True])
def test_they_are_the_first_of_the_highest(shape: tuple[int, ...], rectify: bool) -> None:
    given = maps(0, *shape)
    assert can_find(given)
    slow = given.clamp(min=0) if rectify else given.clone()
    highest, place = peaks(given, rectify)
    assert torch.equal(highest, slow.amax((2, 3)))
    assert torch.equal(place, slow.flatten(2).argmax(2))
    assert torch.equal(given, slow)


def test_two_by_two_maps_by_hand() -> None:
    given = torch.tensor([[[[1.0, 5.0], [5.0, 2.0]], [[-4.0, -2.0], [-3.0, -2.0]]]])
    given = given.contiguous(memory_format=torch.channels_last)
    highest, place = peaks(given)
    assert highest.tolist() == [[5.0, -2.0]] and place.tolist() == [[1, 1]]
    highest, place = peaks(given, rectify=True)
    assert highest.tolist() == [[5.0, 0.0]] and place.tolist() == [[1, 0]]


@pytest.mark.parametrize("at", [0, 3, 8])
@pytest.mark.parametrize("rectify", [False, True])
def test_nan_is_told(at: int, rectify: bool) -> None:
    given = maps(1, 2, 4, 3, 3)
    given[1, 2].view(-1)[at] = torch.nan
    highest, _ = peaks(given, rectify)
    assert highest.isnan().nonzero().tolist() == [[1, 2]]


def test_infinities_are_values() -> None:
    given = maps(2, 1, 3, 2, 2)
    given[0, 0], given[0, 1, 1, 1] = -torch.inf, torch.inf
    highest, place = peaks(given)
    assert highest[0, :2].tolist() == [-torch.inf, torch.inf]
    assert place[0, :2].tolist() == [0, 3]


def test_other_layouts_are_not_for_it() -> None:
    assert not can_find(torch.zeros(2, 3, 4, 5))
    assert not can_find(torch.zeros(2, 3))
    assert not can_find(maps(0, 2, 3, 4, 5).bfloat16())
