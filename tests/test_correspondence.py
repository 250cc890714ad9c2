"""Correspondence: hand-worked tensors, whole networks against the oracle, chance, what is refused.

The oracle (``tests/reference.py``, 9) covers each image alone in the untraced module, and counts
differing signs in loops over pairs and features.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jaxtyping import Float64, Int8
from torch import Tensor, nn

from deconvoy.correspondence import p_values
from deconvoy.errors import ActivationInvalid, RequestError
from deconvoy.spec import Transform
from tests import networks, reference
from tests.networks import Case
from tests.test_occlusion import FURTHER, WITHOUT_RULE
from workers import correspondence as engine
from workers.correspondence import (
    Batch,
    Correspondence,
    Signs,
    batches_of,
    compare,
    correspondences,
    coverings,
    dimension_of,
    random_boxes,
)
from workers.graph import Network
from workers.shapes import CLASSES, render
from workers.zfnet import zfnet_small

GRID_OF_TYPES = {**networks.TINY, **WITHOUT_RULE, **FURTHER}
GREY = torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64)


def compared(
    model: nn.Module,
    images: Tensor,
    boxes: np.ndarray,
    fill: Tensor = GREY,
    batch_size: int = 2,
    **more: Any,
) -> list[Correspondence]:
    """Of all layers; boxes are "image 4" or "covering image 4"."""
    network = Network(model, (images.shape[1], images.shape[2], images.shape[3]))
    ways = boxes.astype(np.int32) if boxes.ndim == 3 else boxes.astype(np.int32)[None]
    pixels: Callable[[np.ndarray], Tensor] = images.__getitem__
    return compare(network, network.layers, pixels, ways, fill, batch_size, **more)


def some_boxes(images: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Of any size and place, one an image."""
    rng = np.random.default_rng(seed)
    ends = [np.sort(rng.permuted(np.tile(np.arange(n + 1), (images, 1)), axis=1)[:, :2], axis=1)
            for n in (height, width)]  # fmt: skip
    return np.stack([ends[0][:, 0], ends[1][:, 0], ends[0][:, 1], ends[1][:, 1]], axis=1)


def assert_equals_the_oracles(
    ours: Correspondence,
    model: nn.Module,
    images: Tensor,
    boxes: np.ndarray,
    fill: Tensor = GREY,
    also: Sequence[str] = (),
    exact: float = 1e-12,
) -> None:
    theirs = reference.correspondence(model, list(images), boxes.tolist(), fill, also)
    assert ours.images == len(images)
    assert ours.delta.tolist() == pytest.approx([delta for delta, _ in theirs], abs=exact)
    assert ours.deviation.tolist() == pytest.approx([std for _, std in theirs], abs=exact)


# --- by hand --------------------------------------------------------------------------------------


def signs_of(values: Int8[np.ndarray, "image value"]) -> Signs:
    signs = Signs(*values.shape)
    signs.put(slice(len(values)), values > 0, values < 0)
    return signs


def test_signs_of_three_images_by_hand() -> None:
    signs = signs_of(np.array([[1, 0, -1], [1, 1, -1], [0, 0, 0]], np.int8))
    assert signs.distances().tolist() == [1, 2, 3]


class ByHand(nn.Module):
    """Pixels themselves, then their sum, and that of the first column less that of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels, self.relu = nn.Conv2d(1, 1, 1), nn.ReLU()
        self.sums = nn.Linear(4, 2)
        with torch.no_grad():
            self.pixels.weight.fill_(1), self.pixels.bias.fill_(0)  # type: ignore[union-attr]
            self.sums.weight[:] = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1]])
            self.sums.bias.fill_(0)

    def forward(self, images: Tensor) -> Tensor:
        sums: Tensor = self.sums(torch.flatten(self.relu(self.pixels(images)), 1))
        return sums


def test_a_tiny_network_by_hand() -> None:
    images = torch.tensor([[[[1.0, 2], [3, -1]]], [[[-1, 2], [3, 4]]], [[[0, 2], [1, 1]]]])
    boxes = np.array([[0, 0, 1, 1], [1, 0, 2, 2], [0, 0, 1, 1]])
    # Rectified, clean and covered with 0: (1 2 3 0) and (0 2 3 0); (0 2 3 4) and (0 2 0 0);
    # (0 2 1 1) and the same.  Signs: + 0 0 0; 0 0 + +; 0 0 0 0.  Distances: 3, 1 and 2 of 4.
    # Sums change by (1 1), (7 -1), (0 0).  Distances: 1, 2 and 2 of 2.
    (found,) = compared(ByHand(), images, boxes, torch.zeros(1))
    assert found.delta.tolist() == [2 / 4, pytest.approx(5 / 6)]
    spread = np.sqrt(2 / 3) / 4, np.sqrt(((1 - 5 / 3) ** 2 + 2 * (2 - 5 / 3) ** 2) / 3) / 2
    assert found.deviation.tolist() == pytest.approx(spread)
    assert found.images == 3


def test_two_images_are_one_pair_without_deviation() -> None:
    images = torch.tensor([[[[1.0, 2], [3, -1]]], [[[-1, 2], [3, 4]]]])
    (found,) = compared(ByHand(), images, np.array([[0, 0, 1, 1], [1, 0, 2, 2]]), torch.zeros(1))
    assert (found.delta.tolist(), found.deviation.tolist()) == ([3 / 4, 1 / 2], [0, 0])


Ternary = arrays(
    np.int8,
    st.tuples(st.integers(2, 6), st.integers(1, 200)),
    elements=st.integers(-1, 1),
)


@given(Ternary)
def test_distances_of_packed_signs_are_those_of_plain_ones(values: np.ndarray) -> None:
    plain = [
        sum(a != b for a, b in zip(one, other, strict=True))
        for i, one in enumerate(values.tolist())
        for other in values.tolist()[i + 1 :]
    ]
    assert signs_of(values).distances().tolist() == plain


@given(Ternary)
def test_the_sum_of_all_distances_follows_from_counting_each_feature(values: np.ndarray) -> None:
    """Of n images, a feature with a signs above, b below and c at zero differs in ab + bc + ca."""
    above, below = (values > 0).sum(0), (values < 0).sum(0)
    zero = len(values) - above - below
    expected = int((above * below + below * zero + zero * above).sum())
    assert int(signs_of(values).distances().sum()) == expected


# --- against the oracle ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", GRID_OF_TYPES)
def test_every_type_of_layer_equals_the_oracle(name: str) -> None:
    case = GRID_OF_TYPES[name]
    model, images = case.model(), case.images(5)
    boxes = some_boxes(5, *case.shape[1:])
    (found,) = compared(model, images, boxes)
    assert_equals_the_oracles(found, model, images, boxes, also=case.unrectified)
    assert (found.delta > 0).any()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["relu6", "sum_with_projection", "groups", "linear_layers"])
def test_other_weights_images_and_boxes_too(name: str, seed: int) -> None:
    case = GRID_OF_TYPES[name]
    model, images = case.model(seed), 3 * case.images(4, seed + 10)  # some beyond the ceiling
    boxes = some_boxes(4, *case.shape[1:], seed)
    (found,) = compared(model, images, boxes, batch_size=3)
    assert_equals_the_oracles(found, model, images, boxes, also=case.unrectified)


def test_a_saturated_activation_that_stays_saturated_does_not_change() -> None:
    case = networks.chain(networks.conv(3, 1, 1), nn.ReLU6)
    model = case.model()
    with torch.no_grad():
        model[0].weight.fill_(1), model[0].bias.fill_(0)  # type: ignore[operator, union-attr]
    images = torch.full((2, *case.shape), 30.0, dtype=torch.float64)
    images[1, :, 0, 0] = 1
    found = compared(model, images, np.array([[0, 0, 1, 1]] * 2), torch.full((3,), 20.0).double())
    assert found[0].delta.tolist() == [1 / (13 * 11)] * 2  # 90 and 60 are 6 both; 3 becomes 6


def faces(count: int) -> tuple[list[Tensor], np.ndarray, np.ndarray]:
    """Pixels of drawn faces, and the boxes of their left eyes and of their noses."""
    numbers = [CLASSES.index("face") + turn * len(CLASSES) for turn in range(count)]
    drawn = [render(1, number) for number in numbers]
    pixels = [torch.from_numpy(one.image.transpose(2, 0, 1).copy()) for one in drawn]
    eyes, noses = (
        np.array([one.parts[part] for one in drawn], np.int32) for part in ("left_eye", "nose")
    )
    return pixels, eyes, noses


TRANSFORM = Transform(resize=64, crop=64)
MEAN = tuple(255 * mean for mean in TRANSFORM.mean)


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return networks.randomised(zfnet_small().eval(), 0)


def of_faces(model: nn.Module, boxes: np.ndarray, pixels: Sequence[Tensor], batch_size: int = 4,
             **more: Any) -> list[Correspondence]:  # fmt: skip
    network = Network(model, (3, 64, 64))
    return correspondences(
        network, network.layers, pixels, boxes, MEAN, TRANSFORM, batch_size, **more
    )


def test_pixels_of_drawn_faces_equal_the_oracle_in_float32(small: nn.Module) -> None:
    pixels, eyes, noses = faces(4)
    found = of_faces(small, np.stack([eyes, noses]), pixels, batch_size=3)
    images = torch.stack(
        [reference.normalise(one, TRANSFORM.mean, TRANSFORM.std) for one in pixels]
    )
    for one, boxes in zip(found, (eyes, noses), strict=True):
        # In float32 a sign or two of a layer may be that of rounding.
        assert_equals_the_oracles(one, small, images, boxes, torch.zeros(3), exact=1e-4)
        assert (one.delta > 0.01).all() and (one.delta < 1).all()
    assert not np.array_equal(found[0].delta, found[1].delta)


# --- the same bits --------------------------------------------------------------------------------


def assert_same(ones: Sequence[Correspondence], others: Sequence[Correspondence]) -> None:
    for one, other in zip(ones, others, strict=True):
        assert np.array_equal(one.delta, other.delta)
        assert np.array_equal(one.deviation, other.deviation)


def test_bits_do_not_depend_on_lanes_or_on_what_is_done_together(
    small: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, eyes, noses = faces(5)
    boxes = coverings(eyes, range(5), 64, seed=0, part="left_eye", draws=3)
    plain = of_faces(small, np.concatenate([boxes, noses[None]]), pixels)
    with ThreadPoolExecutor(3) as pool:
        many = of_faces(small, np.concatenate([boxes, noses[None]]), pixels, lanes=pool.map)
    assert_same(plain, many)
    layers = Network(small, (3, 64, 64)).layers
    one_at_a_time = 5 * sum(16 * engine.words_of(dimension_of(layer)) for layer in layers)
    monkeypatch.setattr(engine, "SIGN_BYTES", one_at_a_time)
    assert engine.coverings_together(layers, 5) == 1
    assert_same(plain, of_faces(small, np.concatenate([boxes, noses[None]]), pixels))
    assert_same(plain[-1:], of_faces(small, noses[None], pixels))


def test_batches_are_even_of_one_size_and_cover_all(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = Network(networks.TINY["groups"].model(), (3, 13, 11)).layers
    assert batches_of(layers, 20, 16) == [Batch(0, 10, 10), Batch(10, 20, 10)]
    assert batches_of(layers, 21, 16) == [Batch(0, 11, 11), Batch(11, 21, 11)]
    assert batches_of(layers, 3, 16) == [Batch(0, 3, 3)]
    assert Batch(11, 21, 11).rows.tolist() == [*range(11, 21), 20]
    monkeypatch.setattr(engine, "CLEAN_BYTES", 2 * 4 * sum(map(dimension_of, layers)))
    assert batches_of(layers, 5, 16) == [Batch(0, 2, 2), Batch(2, 4, 2), Batch(4, 5, 2)]
    monkeypatch.setattr(engine, "CLEAN_BYTES", 1)
    assert [batch.size for batch in batches_of(layers, 3, 16)] == [1, 1, 1]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 100])
def test_batches_of_any_size_give_the_same(batch_size: int) -> None:
    case = GRID_OF_TYPES["linear_layers"]
    model, images, boxes = case.model(), case.images(7), some_boxes(7, *case.shape[1:])
    told: list[int] = []
    (found,) = compared(model, images, boxes, batch_size=batch_size, advance=told.append)
    assert_equals_the_oracles(found, model, images, boxes, also=case.unrectified)
    assert sum(told) == 7


# --- edges ----------------------------------------------------------------------------------------


def test_where_covering_changes_nothing_all_signs_are_zero_and_agree(small: nn.Module) -> None:
    pixels, eyes, _ = faces(5)
    covered = [one.clone() for one in pixels]
    for one, (y0, x0, y1, x1) in zip(covered, eyes.tolist(), strict=True):
        one[:, y0:y1, x0:x1] = 100
    network = Network(small, (3, 64, 64))
    (found,) = correspondences(
        network, network.layers, covered, eyes[None], (100.0,) * 3, TRANSFORM, 3
    )
    assert not found.delta.any() and not found.deviation.any()


def test_a_box_over_the_whole_image_leaves_the_colour_alone() -> None:
    case = GRID_OF_TYPES["relu_functional"]
    model, images = case.model(), case.images(3)
    boxes = np.array([[0, 0, 13, 11]] * 3)
    (found,) = compared(model, images, boxes)
    assert_equals_the_oracles(found, model, images, boxes)
    last = torch.stack([images[0], GREY[:, None, None].expand(case.shape)])
    (same,) = compared(model, torch.stack([last[0], last[0], last[1]]), boxes)
    assert same.delta.max() <= 2 / 3, "of two equal images all signs agree"


def test_rounding_where_a_box_cannot_be_seen_from_is_no_sign(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by a convolution whose roundings mix with those of its neighbours."""
    case = networks.chain(networks.conv(3, 4, 1), networks.conv(4, 3, 3))
    model, images, boxes = case.model(), case.images(4), some_boxes(4, 13, 11)
    (plain,) = compared(model, images, boxes)
    forward = Network.forward

    def noisy(self: Network, given: Tensor, visit: Any, rectify: Any = None) -> Tensor:
        return forward(self, given, lambda layer, v: visit(layer, v + 1e-9 * torch.randn_like(v)))

    monkeypatch.setattr(Network, "forward", noisy)
    (rounded,) = compared(model, images, boxes)
    assert_same([plain], [rounded])


@pytest.mark.parametrize(("count", "told"), [(1, "has 1 image to"), (0, "has 0 images to")])
def test_without_a_pair_nothing_is_compared(count: int, told: str) -> None:
    case = GRID_OF_TYPES["groups"]
    with pytest.raises(RequestError, match=f"{told} compare, but images are compared in pairs"):
        compared(case.model(), case.images(count), np.zeros((1, count, 4)))


@pytest.mark.parametrize("box", [[2, 3, 2, 5], [2, 3, 4, 3], [0, 0, 14, 3], [-1, 0, 3, 3]])
def test_a_box_that_covers_nothing_or_what_is_not_there_is_refused(box: list[int]) -> None:
    case = GRID_OF_TYPES["groups"]
    with pytest.raises(RequestError, match=f"in image 1 is rows {box[0]} to {box[2]} .*of 13×11"):
        compared(case.model(), case.images(2), np.array([[0, 0, 1, 1], box]))


def test_more_signs_than_there_is_room_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    case = GRID_OF_TYPES["groups"]
    layers = Network(case.model(), case.shape).layers
    an_image = sum(16 * engine.words_of(dimension_of(layer)) for layer in layers)
    monkeypatch.setattr(engine, "SIGN_BYTES", 3 * an_image)
    compared(case.model(), case.images(3), some_boxes(3, 13, 11))
    with pytest.raises(RequestError, match="compares 4 images.*take at most 3 images, or name few"):
        compared(case.model(), case.images(4), some_boxes(4, 13, 11))


@pytest.mark.parametrize("where", ["image", "colour"])
def test_activations_that_are_no_numbers_are_told_with_layer_and_image(where: str) -> None:
    case = GRID_OF_TYPES["groups"]
    images, colour = case.images(4), GREY.clone()
    if where == "image":
        images[2, 0, 0, 0] = torch.nan
    else:
        colour[1] = torch.inf
    names = ["a.png", "b.png", "c.png", "d.png"]
    first = "c.png" if where == "image" else "a.png"
    with pytest.raises(ActivationInvalid, match=rf"Layer '1' .*NaN or infinite on image {first} "):
        compared(case.model(), images, some_boxes(4, 13, 11), colour, names=names)
    with pytest.raises(ActivationInvalid, match=f"on image {names.index(first)} "):
        compared(case.model(), images, some_boxes(4, 13, 11), colour)


# --- chance ---------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=5),
    st.integers(30, 40),
    st.integers(0, 2**31 - 1),
    st.integers(0, 10_000),
)
def test_random_boxes_keep_their_size_and_lie_inside(
    sizes: list[tuple[int, int]], side: int, seed: int, draw: int
) -> None:
    images = range(100, 100 + len(sizes))
    found = random_boxes(np.array(sizes, np.int32), side, seed, "nose", draw, images)
    assert (found[:, 2:] - found[:, :2]).tolist() == [list(size) for size in sizes]
    assert found.min() >= 0 and found.max() <= side


def test_random_boxes_follow_from_seed_part_draw_and_image_alone() -> None:
    sizes = np.array([[5, 7], [3, 3]], np.int32)
    both = random_boxes(sizes, 64, 0, "nose", 0, [3, 9])
    assert both.tolist() == random_boxes(sizes, 64, 0, "nose", 0, [3, 9]).tolist()
    assert both[1:].tolist() == random_boxes(sizes[1:], 64, 0, "nose", 0, [9]).tolist()
    others = [
        random_boxes(sizes, 64, 1, "nose", 0, [3, 9]),
        random_boxes(sizes, 64, 0, "left_eye", 0, [3, 9]),
        random_boxes(sizes, 64, 0, "nose", 1, [3, 9]),
        random_boxes(sizes, 64, 0, "nose", 0, [4, 10]),
    ]
    assert len({str(found.tolist()) for found in (both, *others)}) == 5


def test_random_boxes_take_every_place_equally_often() -> None:
    places = [
        tuple(random_boxes(np.array([[6, 7]], np.int32), 8, 5, "nose", draw, [0])[0, :2].tolist())
        for draw in range(3000)
    ]
    counts = [places.count((y, x)) for y in range(3) for x in range(2)]
    assert sum(counts) == 3000
    assert all(abs(count - 500) < 5 * np.sqrt(3000 * (1 / 6) * (5 / 6)) for count in counts)


def test_coverings_are_the_part_and_then_the_draws() -> None:
    boxes = np.array([[1, 2, 6, 9], [0, 0, 3, 3]], np.int32)
    found = coverings(boxes, [4, 7], 64, 1, "nose", 2)
    sizes = np.array([[5, 7], [3, 3]], np.int32)
    assert found[0].tolist() == boxes.tolist()
    for draw in (0, 1):
        drawn = random_boxes(sizes, 64, 1, "nose", draw, [4, 7])
        assert found[1 + draw].tolist() == drawn.tolist()
    assert len(found) == 3


def test_p_values_by_hand() -> None:
    of_random = np.array([[0.1, 0.5], [0.2, 0.5], [0.3, 0.1], [0.4, 0.9]])
    assert p_values(np.array([0.05, 0.5]), of_random).tolist() == [1 / 5, 4 / 5]
    assert p_values(np.array([0.3, 2.0]), of_random).tolist() == [4 / 5, 1]


@settings(max_examples=30)
@given(st.permutations(range(8)))
def test_under_chance_p_is_the_rank_so_a_test_keeps_its_level(order: list[int]) -> None:
    values: Float64[np.ndarray, "draw 1"] = np.array(order, float)[:, None]
    assert p_values(values[0], values[1:]).tolist() == [(1 + order[0]) / 8]


def test_equal_distances_in_another_order_tie_exactly() -> None:
    """So that a random Δ that equals the true one counts as no higher."""
    values = np.random.default_rng(0).integers(-1, 2, (7, 101)).astype(np.int8)
    one, other = engine._compared([signs_of(values)]), engine._compared([signs_of(values[::-1])])
    assert one.delta[0] == other.delta[0]


def test_a_shared_part_beats_chance_where_layers_see_it() -> None:
    """One picture is pasted into images of noise: where it is, layers change alike."""
    case = Case(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()),
        (3, 24, 24),
    )
    images = case.images(6)
    images[:, :, 4:12, 4:12] = 3 * case.images(1, 7)[0, :, 4:12, 4:12]
    boxes = coverings(np.array([[4, 4, 12, 12]] * 6, np.int32), range(6), 24, 0, "patch", 19)
    found = compared(case.model(), images, boxes)
    delta = np.stack([one.delta for one in found])
    assert (p_values(delta[0], delta[1:]) == 1 / 20).all()
