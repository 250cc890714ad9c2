"""Occlusion sweeps: hand-worked ones, and whole ones against the oracle's full forward passes.

Exact means: in float64 within 1e-9 of the largest value; in float32 within 1e-4.
"""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from deconvoy.errors import RequestError
from tests import networks, reference
from tests.networks import Case
from workers import extents
from workers.extents import Extents
from workers.graph import Network
from workers.grids import Grid, grid_over_box, grid_over_image
from workers.incremental import Incremental
from workers.occlusion import Sweep, softmax, sweep, unit_sweeps

EXACT = 1e-9
FILL = torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64)

# It normalises by the mean of a batch, so an image alone gives something else than in a batch.
OF_BATCHES = "norm_without_statistics"


def _squeezed_and_excited(
    images: Tensor, one: nn.Module, gate: nn.Module, two: nn.Module
) -> Tensor:
    maps = F.relu(one(images))
    weights = torch.sigmoid(gate(F.adaptive_avg_pool2d(maps, 1)))
    return F.relu(two(maps * weights))


def _squeezed_to_neurons(images: Tensor, one: nn.Module, neurons: nn.Module) -> Tensor:
    return neurons(F.relu(one(images)).amax((2, 3), keepdim=True).squeeze())


FURTHER = {
    "squeeze_and_excitation": networks.called(
        _squeezed_and_excited,
        networks.conv(3, 4, 3),
        networks.conv(4, 4, 1),
        networks.conv(4, 3, 3, stride=2),
        unrectified=["parts.1"],
    ),
    "oblong": Case(
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(nn.LocalResponseNorm(3, alpha=0.5), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
            *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * 4 * 7, 5)),
        ),
        (3, 17, 31),
    ),
}
WITHOUT_RULE = {
    name: case for name, (case, _) in networks.WITHOUT_RULE.items() if name != OF_BATCHES
}
GRID_OF_TYPES = {**networks.TINY, **WITHOUT_RULE, **FURTHER}


def assert_sweep_equals_the_oracles(
    model: nn.Module,
    image: Tensor,
    also: Sequence[str],
    patch: int,
    stride: int,
    exact: float,
    budget: int = 1 << 20,
    device: str = "cpu",
) -> Sweep:
    network = Network(model, (image.shape[1], image.shape[2], image.shape[3])).to(device)
    fill = FILL.to(image.dtype)
    grid = grid_over_image(*image.shape[2:], patch, stride)
    ours = sweep(network, image.to(device), grid, fill.to(device), budget)
    theirs = reference.occlusion(model, image[0], patch, stride, fill, also)
    clean = reference.layers(model, image.clone(), also)
    assert len(theirs) == len(ours.logits) == len(grid.y) * len(grid.x)
    logits = torch.stack([layers[-1].activation.flatten() for layers in theirs]).numpy()
    assert np.abs(ours.logits - logits).max() <= exact * np.abs(logits).max()
    for number, layer in enumerate(clean):
        strength = layer.ranking[0].flatten(1).amax(1)
        unit = int(ours.unit[number])
        assert strength[unit] >= strength.max() - exact * strength.abs().max(), number
        sums = np.array([float(seen[number].activation[0, unit].sum()) for seen in theirs])
        own = float(layer.activation[0, unit].sum())
        # The unit's values may cancel in the sum; rounding goes with the values.
        size = float(layer.activation[0, unit].abs().sum()) + np.abs(sums).max()
        assert np.abs(ours.activity[number] - sums).max() <= exact * size, number
        assert abs(ours.clean_activity[number] - own) <= exact * size, number
    return ours


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", GRID_OF_TYPES)
def test_a_sweep_over_a_tiny_network_equals_the_oracles(name: str) -> None:
    case = GRID_OF_TYPES[name]
    model, image = case.model(), case.images(1)
    assert_sweep_equals_the_oracles(model, image, case.unrectified, 4, 3, EXACT)


@pytest.mark.parametrize(("patch", "stride"), [(1, 4), (2, 5), (5, 2), (7, 7), (11, 1)])
@pytest.mark.parametrize("name", ["stride_3", "pool_padded", "sum_with_projection", "dilation"])
def test_squares_of_any_size_and_stride(name: str, patch: int, stride: int) -> None:
    case = networks.TINY[name]
    model, image = case.model(), case.images(1)
    assert_sweep_equals_the_oracles(model, image, case.unrectified, patch, stride, EXACT)


@pytest.mark.parametrize("name", ["concat_of_strides", "pool_ceil_mode", "linear_layers"])
@pytest.mark.parametrize("budget", [1, 20_000])
def test_batches_of_any_size_give_the_same(name: str, budget: int) -> None:
    case = networks.TINY[name]
    model, image = case.model(), case.images(1)
    assert_sweep_equals_the_oracles(model, image, case.unrectified, 3, 2, EXACT, budget)


@pytest.mark.parametrize("whole_from", [0.3, 1.0])
@pytest.mark.parametrize("name", ["sum_with_projection", "concat_with_the_image", "pad"])
def test_windows_may_become_whole_maps_anywhere(
    name: str, whole_from: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extents, "WHOLE_FROM", whole_from)
    case = networks.TINY[name]
    model, image = case.model(), case.images(1)
    assert_sweep_equals_the_oracles(model, image, case.unrectified, 3, 2, EXACT)


def _densenet() -> nn.Module:
    return models.DenseNet(8, (2, 2), 16, num_classes=10)


def _googlenet() -> nn.Module:
    return models.GoogLeNet(10, aux_logits=False, transform_input=True, init_weights=False)


def _mobilenet_v3() -> nn.Module:
    return models.mobilenet_v3_small(num_classes=10, width_mult=0.25)


REAL: dict[str, Case] = {
    "alexnet": networks.REAL["alexnet"],
    "squeezenet1_1": networks.REAL["squeezenet1_1"],
    "resnet18": networks.REAL["resnet18"],
    "mobilenet_v2": networks.REAL["mobilenet_v2"],
    "googlenet": Case(_googlenet, (3, 64, 64)),
}
LOGITS_ONLY: dict[str, Case] = {
    "squeezed": networks.called(
        _squeezed_to_neurons, networks.conv(3, 4, 3), networks.linear(4, 5), shape=(3, 20, 20)
    ),
    "densenet": Case(_densenet, (3, 64, 64)),
    "mobilenet_v3": Case(_mobilenet_v3, (3, 64, 64)),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float64) for name in REAL]
    + [(name, torch.float32) for name in ("alexnet", "resnet18", "squeezenet1_1")],
)
def test_a_sweep_over_a_real_network_equals_the_oracles(name: str, dtype: torch.dtype) -> None:
    case = REAL[name]
    model, image = case.model().to(dtype), case.images(1).to(dtype)
    exact = EXACT if dtype == torch.float64 else 1e-4
    assert_sweep_equals_the_oracles(model, image, case.unrectified, 20, 50, exact)


@pytest.mark.parametrize("name", LOGITS_ONLY)
def test_the_class_scores_of_further_networks_equal_the_oracles(name: str) -> None:
    """Of images two by two: the model squeezes the axis of a single one, as users' models may."""
    case = LOGITS_ONLY[name]
    model, image = case.model(), case.images(1)
    copies = reference.occluded(image[0], 12, 50, FILL)
    with torch.no_grad():
        logits = torch.cat([model(torch.stack([copy, copy]))[:1] for copy in copies]).numpy()
    network = Network(model, case.shape)
    ours = sweep(network, image, grid_over_image(*case.shape[1:], 12, 50), FILL)
    assert np.abs(ours.logits - logits).max() <= EXACT * np.abs(logits).max()


# --- one activation ---


@pytest.mark.parametrize(
    "name",
    ["stride_2", "dilation", "pool_overlapping", "sum_with_projection", "concat_of_strides",
     "pad", "linear_layers", "sum_of_a_repeated_map", "turned_and_back", "relu6",
     "stride_that_skips_pixels", "wide_padding"],
)  # fmt: skip
def test_one_activation_under_a_square_equals_the_oracles(name: str) -> None:
    case = networks.TINY[name]
    model, image = case.model(), case.images(1)
    network = Network(model, case.shape)
    for number, layer in enumerate(network.layers):
        hits = np.array(
            [[0, 0], [layer.height // 2, layer.width // 3], [layer.height - 1, layer.width - 1]]
        )
        seen = layer.field.boxes(hits)
        hits = hits[seen[:, 2] > seen[:, 0]]
        units = np.array([0, layer.units // 2, layer.units - 1])[: len(hits)]
        ours = unit_sweeps(network, layer, image, units, hits, 3, 2, FILL, budget=50_000)
        clean = reference.layers(model, image.clone(), case.unrectified)[number].activation[0]
        for one, unit, (y, x) in zip(ours, units, hits, strict=True):
            box = layer.field.boxes(np.array([[y, x]]))[0].tolist()
            theirs = reference.occlusion(model, image[0], 3, 2, FILL, case.unrectified, box)
            truth = np.array([float(seen[number].activation[0, unit, y, x]) for seen in theirs])
            size = float(clean.abs().max())
            assert np.abs(one.activation.reshape(-1) - truth).max() <= EXACT * size, layer.name
            assert abs(one.clean - float(clean[unit, y, x])) <= EXACT * size


def test_one_activation_takes_less_work_than_the_layer() -> None:
    network = Network(networks.REAL["alexnet"].model(), (3, 96, 96))
    layer = network.layers[1]
    seen: list[int] = []
    real = Extents.batches

    def counted(self: Extents, budget: int) -> list[np.ndarray]:
        batches = real(self, budget)
        seen.extend((self.multiply_adds(batches), self.multiply_adds_of_full_runs()))
        return batches

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Extents, "batches", counted)
        image = networks.REAL["alexnet"].images(1)
        unit_sweeps(network, layer, image, np.array([3]), np.array([[4, 5]]), 8, 8, FILL)
    done, full = seen
    assert done < full / 10


# --- on paper ---


def swept(
    model: nn.Module, pixels: list[list[float]], patch: int, stride: int, grey: float
) -> Sweep:
    image = torch.tensor([[pixels]])
    grid = grid_over_image(*image.shape[2:], patch, stride)
    return sweep(Network(model, (1, *image.shape[2:])), image, grid, torch.tensor([grey]))


def test_every_position_of_a_square_on_paper() -> None:
    # Two filters of one pixel, 1 and -2. Clean: 1 2 3 / 0 1 0 sums to 7, and -14, rectified 0.
    conv = nn.Conv2d(1, 2, 1, bias=False)
    conv.weight.data = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)
    model = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    seen = swept(model, [[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]], 2, 1, grey=-1.0)
    assert (seen.grid.y.tolist(), seen.grid.x.tolist()) == ([0], [0, 1])
    # Grey is -1: it leaves 3 and 0 of the first map, or 1 and 0, and gives 4 · 2 to the second.
    assert seen.unit.tolist() == [0, 0]
    assert seen.clean_activity.tolist() == pytest.approx([7.0, 7 / 6])
    assert seen.activity[0].tolist() == [3.0, 1.0]
    assert seen.logits == pytest.approx(np.array([[3 / 6, 8 / 6], [1 / 6, 8 / 6]]))
    assert seen.strongest(2).tolist() == [[1, 0], [1, 0]]


def test_the_border_of_a_convolution_is_padded_once() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    conv.weight.data.fill_(1.0)
    seen = swept(nn.Sequential(conv), [[1.0] * 4] * 4, 1, 3, grey=0.0)
    # A pixel in the corner is in 4 windows of the sums, which are 100 together.
    assert seen.activity[0].tolist() == [96.0] * 4


def test_the_padding_of_a_max_pool_is_never_the_maximum() -> None:
    model = nn.Sequential(nn.MaxPool2d(3, 2, padding=1))
    seen = swept(model, [[-5.0] * 5] * 5, 1, 2, grey=-7.0)
    assert (seen.logits == -5.0).all()


def test_the_strongest_unit_of_a_clipped_layer_is_chosen_by_its_input() -> None:
    conv = nn.Conv2d(1, 2, 1, bias=False)
    conv.weight.data = torch.tensor([7.0, 9.0]).view(2, 1, 1, 1)
    seen = swept(nn.Sequential(conv, nn.ReLU6()), [[1.0, 1.0]], 1, 1, grey=0.0)
    assert seen.unit[0] == 1
    assert (seen.clean_activity[0], seen.activity[0].tolist()) == (12.0, [6.0, 6.0])


def test_large_logits_have_probabilities() -> None:
    shares = softmax(np.array([[1e4, 1e4], [-1e4, 1e4]]))
    assert shares.tolist() == [[0.5, 0.5], [0.0, 1.0]]


# --- grids ---


def both(grid: Grid) -> tuple[list[int], list[int]]:
    return grid.y.tolist(), grid.x.tolist()


def test_the_last_square_is_flush_with_the_border() -> None:
    assert both(grid_over_image(10, 9, 3, 3)) == ([0, 3, 6, 7], [0, 3, 6])
    assert both(grid_over_image(4, 7, 4, 9)) == ([0], [0, 3])


@pytest.mark.parametrize(("patch", "stride"), [(1, 1), (3, 2), (4, 3), (5, 5)])
def test_every_pixel_is_covered_where_squares_overlap(patch: int, stride: int) -> None:
    squares = grid_over_image(11, 8, patch, stride).squares()
    covered = np.zeros((11, 8), dtype=bool)
    for top, left in zip(squares.top, squares.left, strict=True):
        covered[top : top + patch, left : left + patch] = True
    assert covered.all()


def test_a_square_larger_than_a_field_is_cut_to_it() -> None:
    grid = grid_over_box((2, 5, 4, 12), 4, 2)
    assert grid.patch == (2, 4)
    assert both(grid) == ([2], [5, 7, 8])


@pytest.mark.parametrize(
    ("patch", "stride", "words"),
    [
        (9, 2, "patch is 9, but images are 8×20 pixels"),
        (0, 2, "patch is 0, but must be at least 1"),
        (4, 0, "stride is 0, but must be at least 1"),
    ],
)
def test_a_grid_that_cannot_be_gets_a_sentence(patch: int, stride: int, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        grid_over_image(8, 20, patch, stride)


def test_an_empty_field_gets_a_sentence() -> None:
    with pytest.raises(RequestError, match="sees padding only"):
        grid_over_box((0, 0, 0, 0), 4, 2)


# --- what callers rely on ---


def test_a_sweep_leaves_image_and_weights_alone_and_repeats_to_the_bit() -> None:
    case = networks.TINY["relu_by_method"]
    model, image = case.model(), case.images(1)
    network = Network(model, case.shape)
    before = (
        image.clone(),
        [p.clone() for s in network.steps if s.module for p in s.module.parameters()],
    )
    grid = grid_over_image(*case.shape[1:], 4, 3)
    first, again = (sweep(network, image, grid, FILL) for _ in range(2))
    after = image, [p for step in network.steps if step.module for p in step.module.parameters()]
    assert torch.equal(before[0], after[0])
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    assert np.array_equal(first.logits, again.logits)
    assert np.array_equal(first.activity, again.activity)


def test_batches_hold_every_square_and_keep_to_the_budget() -> None:
    network = Network(networks.REAL["resnet18"].model(), (3, 64, 64))
    squares = grid_over_image(64, 64, 8, 11).squares()
    plan = Extents(network, network.steps, squares)
    for budget in (1, 1 << 30):
        batches = plan.batches(budget)
        assert sorted({int(i) for which in batches for i in which}) == list(range(len(squares)))
        assert min(len(which) for which in batches) > 1
    assert len(plan.batches(1)[0]) == 2


def test_a_batch_holds_no_more_than_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    case = networks.REAL["squeezenet1_1"]
    network, image = Network(case.model(), case.shape), case.images(1)
    squares = grid_over_image(*case.shape[1:], 16, 16).squares()
    budget = 4 << 20
    incremental = Incremental(network, network.steps, image, squares, FILL)
    held: list[int] = []
    real = Incremental._piece

    def measured(self: Incremental, step, pieces, constants, which):  # type: ignore[no-untyped-def]
        piece = real(self, step, pieces, constants, which)
        values = [p.values for p in (*pieces.values(), piece) if isinstance(p.values, Tensor)]
        held.append(sum({v.data_ptr(): v.nbytes for v in values}.values()))
        return piece

    monkeypatch.setattr(Incremental, "_piece", measured)
    with torch.inference_mode():
        incremental.run(lambda step, piece, which: None, budget)
    assert budget / 10 < max(held) <= budget


def test_less_is_computed_than_by_full_forward_passes() -> None:
    network = Network(models.vgg11(num_classes=10), (3, 128, 128))
    plan = Extents(network, network.steps, grid_over_image(128, 128, 16, 16).squares())
    assert plan.multiply_adds(plan.batches(64 << 20)) < plan.multiply_adds_of_full_runs() / 3
