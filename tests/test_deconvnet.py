"""Projections: hand-worked steps, and whole ones against the oracle's, which runs the plain module.

Exact means: in float64 within 1e-9 of the largest value of the oracle's projection.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from deconvoy.spec import Method
from tests import networks, reference
from tests.networks import Case
from tests.reference import Seed
from tests.shared_data import needs_shared
from workers import loops, portions
from workers.deconvnet import project
from workers.graph import Layer, Network

EXACT = 1e-9

METHODS: tuple[Method, ...] = ("deconvnet", "guided", "gradient")

BY_INPUT = METHODS[1:]
"""Those that ask what the rectifiers let pass in the forward pass."""


def strongest_places(activation: Tensor, units: Tensor) -> Tensor:
    """Where each unit is strongest, "unit yx"; ``activation`` is "unit row col"."""
    places = activation[units].flatten(1).argmax(1)
    return torch.stack([places // activation.shape[2], places % activation.shape[2]], 1)


def projected(
    network: Network, layer: Layer, images: Tensor, image_of_hit: Tensor, unit: Tensor,
    position: Tensor, seed: Tensor, method: Method = "deconvnet",
) -> Tensor:  # fmt: skip
    with torch.no_grad():
        switches = network.switches(images, network.path_to(layer), method)
        return project(network, layer, switches, image_of_hit, unit, position, seed, method)


def assert_projections_equal_the_oracles(
    case: Case,
    every: int,
    device: str = "cpu",
    method: Method = "deconvnet",
    contrast: float = 1.0,
) -> None:
    """Of every ``every``-th layer and the last: four units, two images, strong and border places.

    All hits of a layer are projected in one batch; the oracle takes them one by one.
    """
    model, images = case.model(), case.images(2) * contrast
    arrived = False
    network = Network(model, case.shape).to(device)
    activations = reference.layer_outputs(model, images.clone(), case.unrectified)
    for number in sorted({*range(0, len(network.layers), every), len(network.layers) - 1}):
        layer, activation = network.layers[number], activations[number]
        unit = torch.tensor([0, layer.units // 3, layer.units - 1, 0])
        image_of_hit = torch.tensor([1, 0, 1, 0])
        position = torch.cat([strongest_places(activation[i], unit[h : h + 1])
                              for h, i in enumerate(image_of_hit)])  # fmt: skip
        position[3] = torch.tensor([layer.height - 1, layer.width - 1])
        seed = activation[image_of_hit, unit, position[:, 0], position[:, 1]]
        seed[3] = 1.5
        hits = [tensor.to(device) for tensor in (images, image_of_hit, unit, position, seed)]
        ours = projected(network, layer, *hits, method).cpu()
        for hit in range(4):
            y, x = position[hit].tolist()
            value = float(seed[hit])
            oracle_seed = Seed(number, int(unit[hit]), y, x, value)
            image = images[image_of_hit[hit]]
            (theirs,) = reference.projections(model, image, [oracle_seed], method, case.unrectified)
            assert ours[hit].shape == theirs.shape
            arrived = arrived or bool(theirs.any())
            error = (ours[hit] - theirs).abs().max()
            assert error <= EXACT * theirs.abs().max(), (layer.name, hit)
            y0, x0, y1, x1 = layer.field.boxes(position[hit : hit + 1].numpy())[0]
            outside = ours[hit].clone()
            outside[:, y0:y1, x0:x1] = 0
            assert not outside.any(), (layer.name, hit)
    assert arrived


@pytest.mark.parametrize("name", networks.TINY)
def test_projections_of_a_tiny_network_equal_the_oracles(name: str) -> None:
    assert_projections_equal_the_oracles(networks.TINY[name], every=1)


@pytest.mark.parametrize("method", BY_INPUT)
@pytest.mark.parametrize("name", networks.TINY)
def test_gradients_of_a_tiny_network_equal_the_oracles(name: str, method: Method) -> None:
    assert_projections_equal_the_oracles(networks.TINY[name], every=1, method=method)


@pytest.mark.parametrize("method", BY_INPUT)
@pytest.mark.parametrize("name", [name for name in networks.TINY if "relu6" in name])
def test_gradients_of_saturated_rectifiers_equal_the_oracles(name: str, method: Method) -> None:
    case = networks.TINY[name]
    saturated = reference.layer_outputs(case.model(), case.images(2) * 8.0)[0] == 6
    assert 0.05 < saturated.double().mean() < 0.5
    assert_projections_equal_the_oracles(case, every=1, method=method, contrast=8.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [name for name in networks.TINY if "pool" in name])
def test_on_whole_tensors_as_on_a_gpu_they_equal_the_oracles_too(
    name: str, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "serve", lambda device: False)
    assert_projections_equal_the_oracles(networks.TINY[name], every=1, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_what_grows_on_its_way_down_goes_on_in_parts(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = networks.TINY["pool_ceil_mode"]
    network = Network(case.model(), case.shape)
    layer, images = network.layers[-1], case.images(2)
    generator = torch.Generator().manual_seed(3)
    image, unit = (torch.randint(n, (40,), generator=generator) for n in (2, layer.units))
    sides = torch.tensor([layer.height, layer.width])
    position = (torch.rand(40, 2, generator=generator) * sides).long()
    one = torch.ones(40, dtype=torch.float64)
    hits = network, layer, images, image, unit, position, one, method
    together = projected(*hits)
    small = replace(portions.portions_on("cpu"), signal_bytes=3 * 8 * 13 * 11 * 4)
    monkeypatch.setitem(portions.PORTIONS, "cpu", small)
    assert torch.equal(projected(*hits), together)
    arrived = together.flatten(1).any(1)
    assert arrived.all() if method == "deconvnet" else arrived.sum() >= 8  # of active units


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", networks.REAL)
def test_projections_of_a_real_network_equal_the_oracles(name: str, method: Method) -> None:
    case = networks.REAL[name]
    every = max(len(case.unrectified) // 2, 4)
    assert_projections_equal_the_oracles(case, every, method=method)


@needs_shared
@pytest.mark.parametrize("name", networks.OF_SHARED_FILES)
def test_projections_of_a_shared_network_equal_the_oracles(name: str) -> None:
    assert_projections_equal_the_oracles(networks.OF_SHARED_FILES[name], every=12)


def test_layers_below_an_operation_without_rule_are_projected() -> None:
    with_silu = networks.chain(
        networks.conv(3, 4, 3), nn.ReLU, networks.conv(4, 4, 3), nn.ReLU, nn.SiLU
    ).model()
    case = networks.chain(networks.conv(3, 4, 3), nn.ReLU, networks.conv(4, 4, 3), nn.ReLU)
    plain, images = case.model(), case.images(1)
    network = Network(with_silu, case.shape)
    layer = network.layers[1]
    zero = torch.zeros(1, dtype=torch.int64)
    position, seed = torch.tensor([[4, 5]]), torch.ones(1, dtype=torch.float64)
    ours = projected(network, layer, images, zero, zero, position, seed)[0]
    theirs = reference.deconvnet(plain, images[0], 1, 0, 4, 5, seed=1.0)
    assert (ours - theirs).abs().max() <= EXACT * theirs.abs().max()


# --- what the paper says, on paper ---


def one_filter(weight: list[list[float]], **options: int) -> nn.Conv2d:
    layer = nn.Conv2d(1, 1, (len(weight), len(weight[0])), bias=False, **options)  # type: ignore[arg-type]
    layer.weight.data = torch.tensor([[weight]])
    return layer


def project_at(
    model: nn.Module,
    pixels: list[list[float]],
    layer: int,
    y: int,
    x: int,
    seed: float,
    method: Method = "deconvnet",
) -> list[list[float]]:
    """One unit of one picture of one channel, down to the pixels."""
    images = torch.tensor([[pixels]])
    network = Network(model, (1, *images.shape[2:]))
    zero = torch.zeros(1, dtype=torch.int64)
    ours = projected(
        network, network.layers[layer], images, zero, zero, torch.tensor([[y, x]]),
        torch.tensor([seed]), method,
    )  # fmt: skip
    return ours[0, 0].tolist()


def test_a_filter_comes_down_transposed_and_without_its_bias() -> None:
    model = nn.Sequential(one_filter([[1.0, -2.0]]), nn.ReLU())
    assert project_at(model, [[5.0, 1.0, 4.0]], 0, 0, 1, seed=3.0) == [[0.0, 3.0, -6.0]]


def test_the_signal_is_rectified_by_its_own_sign_not_by_the_forward_one() -> None:
    # Image (-1, 2) -> relu (0, 2) -> (1, -1)·relu = -2. Seed 1: signal (1, -1) -> rectified (1, 0).
    # The forward mask would leave (0, -1), both masks (0, 0).
    model = nn.Sequential(nn.ReLU(), one_filter([[1.0, -1.0]]))
    assert project_at(model, [[-1.0, 2.0]], 1, 0, 0, seed=1.0) == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("method", "arrives"),
    [
        ("deconvnet", [2.0, 0.0, 4.0, 5.0]),  # it forgets the ceiling, like the mask
        ("gradient", [0.0, -3.0, 4.0, 0.0]),
        ("guided", [0.0, 0.0, 4.0, 0.0]),
    ],
)
def test_methods_differ_in_what_a_rectifier_lets_pass(method: Method, arrives: list[float]) -> None:
    # Image (-1, 5, 1, 6) -> ReLU6 (0, 5, 1, 6); filter (2, -3, 4, 5), seed 1: the signal is the
    # filter. The inputs of the second and third place alone are inside (0, 6).
    model = nn.Sequential(nn.ReLU6(), one_filter([[2.0, -3.0, 4.0, 5.0]]))
    pixels = [[-1.0, 5.0, 1.0, 6.0]]
    assert project_at(model, pixels, 1, 0, 0, seed=1.0, method=method) == [arrives]


@pytest.mark.parametrize("method", BY_INPUT)
def test_a_saturated_activation_has_no_gradient(method: Method) -> None:
    # 3 · 1 = 3 is inside (0, 6), 3 · 2 = 6 and 3 · 3 = 9 are not.
    model = nn.Sequential(one_filter([[3.0]]), nn.ReLU6())
    for pixel, arrives in (1.0, 6.0), (2.0, 0.0), (3.0, 0.0), (-1.0, 0.0):
        assert project_at(model, [[pixel]], 0, 0, 0, seed=2.0, method=method) == [[arrives]]


def test_the_layers_own_rectifier_rectifies_the_seed() -> None:
    model = nn.Sequential(one_filter([[2.0]]), nn.ReLU())
    assert project_at(model, [[3.0]], 0, 0, 0, seed=-1.0) == [[0.0]]


def test_logits_keep_the_sign_of_the_seed() -> None:
    assert project_at(nn.Sequential(one_filter([[2.0]])), [[-3.0]], 0, 0, 0, seed=-6.0) == [[-12.0]]


def test_overlapping_pools_that_share_a_maximum_accumulate() -> None:
    # Windows (1, 9) and (9, 2) both have their maximum in the middle; 4 and 5 come down to 9.
    model = nn.Sequential(nn.MaxPool2d((1, 2), 1), one_filter([[4.0, 5.0]]))
    assert project_at(model, [[1.0, 9.0, 2.0]], 0, 0, 0, seed=1.0) == [[0.0, 9.0, 0.0]]


# --- what callers rely on ---


def test_a_hit_projects_alike_alone_and_in_a_batch() -> None:
    case = networks.TINY["sum_with_projection"]
    images = case.images(3)
    network = Network(case.model(), case.shape)
    layer = network.layers[-1]
    image_of_hit, unit = torch.tensor([2, 0, 2]), torch.tensor([1, 3, 0])
    position = torch.tensor([[0, 0], [3, 2], [6, 5]])
    seed = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    together = projected(network, layer, images, image_of_hit, unit, position, seed)
    for hit in range(3):
        alone = projected(
            network, layer, images[image_of_hit[hit]][None], torch.tensor([0]),
            unit[hit : hit + 1], position[hit : hit + 1], seed[hit : hit + 1],
        )  # fmt: skip
        assert (alone[0] - together[hit]).abs().max() < 1e-12


def test_a_dead_hit_projects_to_zeros() -> None:
    case = networks.TINY["pool_overlapping"]
    network = Network(case.model(), case.shape)
    zero = torch.zeros(1, dtype=torch.int64)
    signal = projected(
        network, network.layers[0], case.images(1), zero, zero,
        torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.float64),
    )  # fmt: skip
    assert not signal.any()


def test_projecting_leaves_weights_and_seed_alone() -> None:
    case = networks.TINY["norm_first"]
    network = Network(case.model(), case.shape)
    before = [p.clone() for step in network.steps if step.module for p in step.module.parameters()]
    seed = torch.ones(1, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.int64)
    projected(
        network, network.layers[-1], case.images(1), zero, zero,
        torch.zeros(1, 2, dtype=torch.int64), seed,
    )  # fmt: skip
    after = [p for step in network.steps if step.module for p in step.module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in after)
    assert seed.tolist() == [1.0]
