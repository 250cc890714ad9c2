"""Cones: windows hold all of the signal, groups hold all hits, and little more than they need."""

import numpy as np
import pytest
import torch

from tests import networks
from workers.cones import SLACKS, Cone, Reaches, Span
from workers.deconvnet import Deconvnet
from workers.fields import Window
from workers.graph import Network


def test_a_point_widens_by_the_kernel_and_is_cut_at_the_border() -> None:
    point = Reaches(1, np.arange(5), np.arange(1, 6), 5)
    below = point.down(Window(3, 1, 1), 5)
    assert below.low.tolist() == [0, 0, 1, 2, 3]
    assert below.high.tolist() == [2, 3, 4, 5, 5]
    pooled = below.down(Window(2, 2, 0), 10)
    assert (pooled.stride, pooled.low.tolist()) == (2, [0, 0, 2, 4, 6])
    assert pooled.high.tolist() == [4, 6, 8, 10, 10]


def test_a_moving_window_is_that_of_the_middle_and_hangs_over_the_border() -> None:
    below = Reaches(1, np.arange(9), np.arange(1, 10), 9).down(Window(3, 1, 1), 9)
    span = below.span(np.array([0, 4]), fixed=False)
    assert span == Span(1, -1, 3, 9)
    assert span.origins(np.array([0, 4])).tolist() == [-1, 3]
    assert span.overhangs(np.array([0, 4])) and not span.overhangs(np.array([4]))
    assert below.span(np.array([3, 4]), fixed=True) == Span(0, 2, 4, 9)


def test_branches_of_other_strides_have_no_moving_window() -> None:
    point = Reaches(1, np.arange(4), np.arange(1, 5), 4)
    joined = point.down(Window(1, 2, 0), 8).joined(point.down(Window(3, 1, 1), 8))
    assert joined.stride == 0


CASES = {**networks.TINY, **networks.REAL}


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1", "resnet18", "pool_overlapping"])
def test_windows_hold_the_receptive_fields_and_groups_all_hits_once(name: str) -> None:
    case = CASES[name]
    network = Network(case.model(), case.shape)
    rng = np.random.default_rng(2)
    for layer in network.layers[:: max(1, len(network.layers) // 4)]:
        cone = Cone(network, layer)
        position = np.stack([rng.integers(n, size=60) for n in (layer.height, layer.width)], 1)
        groups = list(cone.groups(position))
        assert sorted(np.concatenate([group.hits for group in groups]).tolist()) == list(range(60))
        for group in groups:
            boxes = layer.field.boxes(position[group.hits])
            spans = group.windows[cone.path[0].index]
            if spans is None:
                continue
            for axis, span in enumerate(spans):
                origins = span.origins(position[group.hits, axis])
                assert (origins <= boxes[:, axis]).all()
                assert (origins + span.size >= boxes[:, 2 + axis]).all()


def test_windows_of_a_shallow_layer_are_small() -> None:
    case = networks.REAL["alexnet"]
    network = Network(case.model(), case.shape)
    layer = network.layers[0]
    cone = Cone(network, layer)
    position = np.array([[y, x] for y in range(2, 9) for x in range(2, 9)])
    (group,) = cone.groups(position)
    rows, cols = group.windows[cone.path[0].index] or (None, None)
    assert rows is not None and cols is not None
    assert (rows.size, cols.size) == (11, 11)


@pytest.mark.parametrize("slack", [SLACKS[0], SLACKS[-1]])
def test_how_hits_are_grouped_changes_nothing(
    slack: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether each group is of like positions, or all are in one."""
    case = networks.REAL["squeezenet1_1"]
    images = case.images(2)
    network = Network(case.model(), case.shape)
    layer = network.layers[6]
    generator = torch.Generator().manual_seed(3)
    count = 24
    position = torch.stack(
        [torch.randint(n, (count,), generator=generator) for n in (layer.height, layer.width)], 1
    ).numpy()
    unit = torch.randint(layer.units, (count,), generator=generator)
    image = torch.randint(2, (count,), generator=generator)
    seed = torch.rand(count, generator=generator, dtype=torch.float64)
    deconvnet = Deconvnet(network)
    found = []
    for slacks in ((slack,), (1.0,)):
        monkeypatch.setattr("workers.cones.SLACKS", slacks)
        cone = Cone(network, layer)
        with torch.no_grad():
            switches = network.switches(images, cone.path)
            signal = torch.zeros(count, *case.shape, dtype=torch.float64)
            for group in cone.groups(position):
                hits = group.hits
                projection = deconvnet.project(
                    cone, group, switches, image[hits], unit[hits], position[hits], seed[hits]
                )
                signal[hits] = projection.whole(*case.shape[1:])
        found.append(signal)
    assert found[0].abs().max() > 0
    assert (found[0] - found[1]).abs().max() <= 1e-12 * found[0].abs().max()
