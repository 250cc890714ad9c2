"""Masks of rectifiers, eight to a byte."""

import numpy as np
import pytest
import torch

from tests import networks
from workers.graph import Network
from workers.switches import packed, passed, recorded, recorded_bytes, unpacked


@pytest.mark.parametrize("count", [1, 3, 8, 11, 64])
def test_a_mask_is_packed_as_numpy_packs_it_and_unpacked_again(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    for mask in torch.rand(2, 4, 3, count, generator=generator) > 0.5, torch.ones(5, count) > 0:
        found = packed(mask)
        assert np.array_equal(found, np.packbits(mask.numpy(), axis=-1, bitorder="little"))
        assert torch.equal(unpacked(found, count).bool(), mask)


def test_a_mask_is_where_the_input_is_positive_and_below_the_ceiling() -> None:
    inputs = torch.tensor([[-1.0, 0.0, 1e-30, 5.9, 6.0, 7.0]])
    assert unpacked(passed(inputs, None), 6).tolist() == [[0, 0, 1, 1, 1, 1]]
    assert unpacked(passed(inputs, 6.0), 6).tolist() == [[0, 0, 1, 1, 0, 0]]


def test_a_mask_of_maps_has_the_channels_last() -> None:
    maps = torch.zeros(1, 3, 2, 2)
    maps[0, 1, 0, 1] = 1
    assert passed(maps, None).tolist() == [[[[0], [2]], [[0], [0]]]]


@pytest.mark.parametrize("name", ["pool_overlapping", "relu6", "adaptive_upwards", "norm_first"])
def test_what_is_recorded_takes_the_bytes_foretold(name: str) -> None:
    case = networks.TINY[name]
    network = Network(case.model(), case.shape)
    path = network.path_to(network.layers[-1])
    pools = recorded(path, "deconvnet")
    for method in ("guided", "gradient"):
        kept = recorded(path, method)
        switches = network.switches(case.images(2), path, method)
        assert list(switches.codes) == kept and set(pools) < set(kept)
        each = [recorded_bytes(network.steps[index]) for index in kept]
        assert [codes.nbytes for codes in switches.codes.values()] == [2 * size for size in each]
        assert network.switch_bytes(path, method) == sum(each)
