"""Test how hits become stored pictures: windows, scaling by area, numbers of one byte; by hand."""

import pytest
import torch
from torch import Tensor

from deconvoy.schema import PAD_PIXEL
from workers.pictures import cut, cut_patches, quantised, stored_size


@pytest.mark.parametrize(
    ("window", "max_side", "stored"),
    [
        ((40, 40), 112, (40, 40)),
        ((112, 112), 112, (112, 112)),
        ((224, 224), 112, (112, 112)),
        ((113, 113), 112, (112, 112)),
        ((100, 200), 50, (25, 50)),
        ((200, 100), 50, (50, 25)),
        ((1000, 3), 100, (100, 1)),
    ],
)
def test_only_a_window_larger_than_the_largest_side_is_scaled_down_and_keeps_its_shape(
    window: tuple[int, int], max_side: int, stored: tuple[int, int]
) -> None:
    assert stored_size(window, max_side) == stored


def picture(height: int, width: int) -> Tensor:
    """One channel whose values count the pixels in reading order, from 1."""
    return torch.arange(1.0, height * width + 1).view(1, 1, height, width)


def test_a_window_inside_the_picture_is_cut_out() -> None:
    cuts = cut(picture(3, 4), torch.tensor([[1, 2, 3, 4]]), (2, 2), 0.0)
    assert cuts[0, 0].tolist() == [[7, 8], [11, 12]]


@pytest.mark.parametrize(
    ("window", "shown"),
    [
        ([-1, -1, 1, 1], [[9, 9], [9, 1]]),
        ([2, 3, 4, 5], [[12, 9], [9, 9]]),
        ([-5, -5, -3, -3], [[9, 9], [9, 9]]),
        ([-1, 3, 1, 5], [[9, 9], [4, 9]]),
    ],
)
def test_beyond_the_picture_there_is_the_fill(window: list[int], shown: list[list[int]]) -> None:
    # Windows of two by two pixels, of a picture of three by four.
    assert cut(picture(3, 4), torch.tensor([window]), (2, 2), 9.0)[0, 0].tolist() == shown


def test_each_hit_has_its_own_window() -> None:
    two = torch.cat([picture(3, 3), 10 * picture(3, 3)])
    cuts = cut(two, torch.tensor([[0, 0, 1, 1], [2, 2, 3, 3]]), (1, 1), 0.0)
    assert cuts.flatten().tolist() == [1, 90]


def test_the_whole_picture_is_its_own_window() -> None:
    assert torch.equal(cut(picture(3, 4), torch.tensor([[0, 0, 3, 4]]), (3, 4), 0.0), picture(3, 4))


def test_a_moved_window_of_the_size_of_the_picture_is_moved() -> None:
    cuts = cut(picture(2, 2), torch.tensor([[0, 1, 2, 3]]), (2, 2), 0.0)
    assert cuts[0, 0].tolist() == [[2, 0], [4, 0]]


def test_scaling_down_takes_the_mean_of_the_area() -> None:
    cuts = cut(picture(4, 4), torch.tensor([[0, 0, 4, 4]]), (2, 2), 0.0)
    assert cuts[0, 0].tolist() == [[3.5, 5.5], [11.5, 13.5]]


def test_patches_are_bytes_with_the_channel_last_and_grey_beyond_the_image() -> None:
    pixels = torch.tensor([[[[10]], [[20]], [[30]]]], dtype=torch.uint8)
    patches = cut_patches(pixels, torch.tensor([[0, 0, 1, 2]]), (1, 2))
    assert patches.dtype == torch.uint8
    assert patches.tolist() == [[[[10, 20, 30], [PAD_PIXEL] * 3]]]


def test_patches_scaled_down_are_rounded_to_the_nearest_byte() -> None:
    pixels = torch.tensor([[[[1, 2], [3, 5]]] * 3], dtype=torch.uint8)
    pixels = pixels.view(1, 3, 2, 2)
    assert cut_patches(pixels, torch.tensor([[0, 0, 2, 2]]), (1, 1)).flatten().tolist() == [3] * 3


def test_int8_gives_the_largest_magnitude_127_steps() -> None:
    projection = torch.tensor([[[[0.0, 1.26]], [[-2.54, 0.02]], [[0.04, 0.0]]]])
    values, scale = quantised(projection, "int8")
    assert values.dtype == torch.int8
    torch.testing.assert_close(scale, torch.tensor([0.02]))
    assert values.tolist() == [[[[0, -127, 2], [63, 1, 0]]]]  # hit, y, x, channel


@pytest.mark.parametrize(("storage", "error"), [("int8", 1 / 254), ("float16", 2**-11)])
def test_what_is_stored_comes_back_within_half_a_step_of_the_largest(
    storage: str, error: float
) -> None:
    projections = torch.randn(5, 3, 6, 7) * torch.logspace(-6, 6, 5).view(-1, 1, 1, 1)
    values, scale = quantised(projections, storage)
    back = values.float().permute(0, 3, 1, 2) * scale.view(-1, 1, 1, 1)
    largest = projections.abs().amax((1, 2, 3), keepdim=True)
    assert ((back - projections).abs() <= 1.001 * error * largest).all()


@pytest.mark.parametrize("storage", ["int8", "float16"])
def test_a_projection_of_nothing_is_stored_as_nothing(storage: str) -> None:
    values, scale = quantised(torch.zeros(1, 3, 2, 2), storage)
    assert not values.any()
    assert scale.tolist() == [0.0]


def test_float16_holds_what_is_far_beyond_its_range() -> None:
    values, scale = quantised(torch.full((1, 3, 1, 1), -1e9), "float16")
    assert values.isfinite().all()
    assert scale.tolist() == [1e9]
