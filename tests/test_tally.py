"""Counting and ranking in one loop: beside a slow list, and beside the same on whole tensors."""

import numpy as np
import pytest
import torch

from tests.networks import TINY
from workers import loops
from workers.graph import Network
from workers.scan import ShardScan, combined
from workers.tally import merge
from workers.warmup import warm_up

K = 3


def test_lists_of_lanes_merge_in_the_total_order() -> None:
    nothing = -np.inf
    score = np.array([[[5, 3, 3]], [[5, 4, nothing]]], np.float32)
    image = np.array([[[7, 2, 9]], [[1, 8, -1]]])
    place = np.array([[[70, 20, 90]], [[10, 80, 0]]])
    best, of_image, at = merge(score, image, place)
    assert best.tolist() == [[5, 5, 4]]
    assert of_image.tolist() == [[1, 7, 8]]
    assert at.tolist() == [[10, 70, 80]]


def test_a_list_that_is_too_short_ends_with_nothing() -> None:
    score = np.full((2, 1, K), -np.inf, np.float32)
    image, place = np.full((2, 1, K), -1), np.zeros((2, 1, K), np.int64)
    score[1, 0, 0], image[1, 0, 0], place[1, 0, 0] = -2.0, 4, 6
    best, of_image, at = merge(score, image, place)
    assert best.tolist() == [[-2.0, -np.inf, -np.inf]]
    assert of_image.tolist() == [[4, -1, -1]] and at.tolist() == [[6, 0, 0]]


@pytest.mark.parametrize("name", ["concat", "relu6", "channels_last", "adaptive_to_one"])
def test_loops_and_whole_tensors_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of GPUs, on a CPU."""
    case = TINY[name]
    network = Network(case.model(), case.shape).cast(torch.float32)
    images = case.images(12).float()
    floor = torch.full((sum(layer.units for layer in network.layers),), -torch.inf)
    floor[::3] = 0.2
    taken = torch.tensor([True, True, False, True])
    copies = torch.tensor([False, True, False, False])

    def scanned() -> ShardScan:
        scan = ShardScan(network, network.layers, K, floor)
        for start in range(0, 12, 4):
            ids = torch.arange(start, start + 4)
            scan.add(images[start : start + 4], ids, taken, copies=copies)
        return scan

    hits, sums = combined([scanned()])
    monkeypatch.setattr(loops, "serve", lambda device: False)
    slow, slow_sums = combined([scanned()])
    for field in ("unit", "score", "image", "position"):
        assert np.array_equal(getattr(hits, field), getattr(slow, field)), field
    assert np.allclose(sums.maxima, slow_sums.maxima, rtol=1e-12)
    assert np.array_equal(sums.active, slow_sums.active)
    assert np.array_equal(sums.histogram, slow_sums.histogram)


def test_making_the_loops_ready_leaves_random_numbers_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    warm_up.__wrapped__(torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)
