"""The forward pass on cones: its switches are those of whole images, at borders too."""

import numpy as np
import pytest
import torch

from deconvoy.spec import Method
from tests import networks
from tests.networks import RELU, chain, conv, pool
from workers.ascent import Ascent
from workers.cones import Cone, Group
from workers.deconvnet import Deconvnet
from workers.graph import Layer, Network
from workers.placing import Placing
from workers.switches import Switches

CASES = {
    **networks.TINY,
    **networks.REAL,
    "pools after strides": chain(
        conv(3, 4, 3, stride=2, padding=1), RELU, pool(3, 2, padding=1), conv(4, 4, 2, padding=1),
        RELU, pool(2, 1, ceil_mode=True), conv(4, 3, 3, padding=1), RELU, shape=(3, 29, 27),
    ),
    "pools after dilation and groups": chain(
        conv(3, 6, 3, padding=3, dilation=3, groups=3), RELU, pool(2),
        conv(6, 6, 3, padding=1, groups=6), RELU, pool(3, 2, ceil_mode=True), conv(6, 4, 1), RELU,
        shape=(3, 25, 28),
    ),
    "pools after a mean": chain(
        conv(3, 4, 5, stride=3, padding=2), RELU, networks.mean_pool(3, 1, 1),
        pool(3, 1, padding=1), conv(4, 4, 3), RELU, shape=(3, 31, 30),
    ),
}  # fmt: skip

METHODS: tuple[Method, ...] = ("deconvnet", "guided", "gradient")

FORWARD = [
    "pool_overlapping", "pool_padded", "pool_ceil_mode", "pool_dilated", "pool_first",
    "concat_of_strides", "alexnet", "vgg11", "squeezenet1_1", "resnet18", "zfnet_small",
    "pools after strides", "pools after dilation and groups", "pools after a mean",
]  # fmt: skip


def hits(layer: Layer, count: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Position, unit and image; corners first."""
    rng = np.random.default_rng(5)
    position = np.stack([rng.integers(n, size=count) for n in (layer.height, layer.width)], 1)
    position[:2] = (0, 0), (layer.height - 1, layer.width - 1)
    unit, image = (torch.from_numpy(rng.integers(n, size=count)) for n in (layer.units, 2))
    return position, unit, image


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FORWARD)
def test_projections_with_switches_of_windows_equal_those_of_whole_images(
    name: str, method: Method
) -> None:
    case = CASES[name]
    images = case.images(2)
    network = Network(case.model(), case.shape)
    deconvnet = Deconvnet(network)
    seen = 0
    layers = [layer for layer in network.layers if layer.is_map]
    for layer in layers[:: max(1, len(layers) // 6)] + layers[-1:]:
        cone = Cone(network, layer)
        ascent = Ascent(network, cone, method)
        assert ascent.possible, layer.name
        position, unit, image = hits(layer, 12)
        seed = torch.ones(len(unit), dtype=torch.float64)
        with torch.no_grad():
            whole = network.switches(images, cone.path, method)
            for group in cone.groups(position):
                own, at = position[group.hits], torch.from_numpy(group.hits)
                switches = ascent.switches(images, image[at], group, own)
                hits_of_group = image[at], unit[at], own, seed[at], method
                ours, theirs = (
                    deconvnet.project(cone, group, s, *hits_of_group).signal
                    for s in (switches, whole)
                )
                error = (ours - theirs).abs().max()
                assert error <= 1e-9 * max(1e-30, float(theirs.abs().max())), (layer.name, error)
                for step, codes in switches.codes.items():
                    seen += _assert_equal_inside(cone, group, own, step, codes, whole, image[at])
    assert seen


def _assert_equal_inside(
    cone: Cone,
    group: Group,
    position: np.ndarray,
    step: int,
    codes: torch.Tensor,
    whole: Switches,
    image: torch.Tensor,
) -> int:
    """Of each hit's receptive field alone: what else its window shows may be anything."""
    spans = group.windows[step]
    reaches = cone.reaches[step]
    assert spans is not None and reaches is not None
    rows, cols = Placing(position).places(spans)
    for hit in range(len(position)):
        inside = [
            np.flatnonzero((p[hit] >= r.low[at]) & (p[hit] < r.high[at]))
            for p, r, at in zip((rows, cols), reaches, position[hit], strict=True)
        ]
        ours = codes[hit][inside[0]][:, inside[1]]
        y, x = rows[hit][inside[0]], cols[hit][inside[1]]
        assert torch.equal(ours, whole.codes[step][image[hit]][y][:, x])
    return len(position)
