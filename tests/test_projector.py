"""Which images are run whole, and that what is kept, lanes and leases change no bit."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deconvoy.spec import Method, Transform
from tests import networks
from workers import portions
from workers.graph import Network
from workers.images import Picture
from workers.portions import portions_on
from workers.projector import Hits, Projector, expected_reuse

SIDE = 96
TRANSFORM = Transform(resize=SIDE, crop=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
CPU = torch.device("cpu")
LAYER = "features.4"
METHODS: tuple[Method, ...] = ("deconvnet", "guided", "gradient")


def network(dtype: torch.dtype = torch.float32) -> Network:
    case = networks.REAL["alexnet"]
    return Network(case.model().to(dtype), case.shape)


def pictures(count: int) -> list[Picture]:
    generator = torch.Generator().manual_seed(4)
    pixels = torch.randint(256, (count, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    return [Picture(one, SIDE, SIDE) for one in pixels]


def hits_on(images: Sequence[int], of: Network) -> Hits:
    layer, rng = of.layer(LAYER), np.random.default_rng(7)
    count = len(images)
    position = np.stack([rng.integers(n, size=count) for n in (layer.height, layer.width)], 1)
    seed = torch.from_numpy(rng.uniform(0.5, 1.5, count).astype(np.float32))
    return Hits(np.array(images), rng.integers(layer.units, size=count), position, seed)


def in_turn(work: Callable[[Any], Any], things: Iterable[Any]) -> Iterator[Any]:
    return map(work, things)


def in_two_lanes(work: Callable[[Any], Any], things: Iterable[Any]) -> Iterator[Any]:
    with ThreadPoolExecutor(2) as lanes:
        yield from lanes.map(work, list(things))


def keep_switches_of(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep no more bytes of them."""
    monkeypatch.setitem(portions.PORTIONS, "cpu", replace(portions_on("cpu"), switch_bytes=size))


def projected(
    by: Projector, of: Network, hits: Hits, reuse: float = 1.0, in_lanes: Any = in_turn
) -> tuple[Tensor, list[bool]]:
    """On whole images; and of which hits the image was run whole."""
    layer, known = of.layer(LAYER), pictures(12)
    found = torch.zeros(len(hits.unit), 3, SIDE, SIDE)
    whole = [False] * len(hits.unit)
    for batch in by.batches(
        layer, hits, reuse, lambda ids: iter([known[i] for i in ids]), in_lanes
    ):
        for which, projection in by.project(layer, hits, batch):
            found[which] = projection.whole(SIDE, SIDE)
        for hit in batch.hits.tolist():
            whole[hit] = batch.switches is not None
    return found, whole


CROWDED = [3] * 40 + [0, 1, 2, 4]
"""One image of many hits, and four of one each."""


def test_an_image_of_many_hits_is_run_whole_and_others_on_their_cones() -> None:
    net = network()
    found, whole = projected(Projector(net, TRANSFORM, CPU), net, hits_on(CROWDED, net))
    assert whole == [True] * 40 + [False] * 4
    assert found.flatten(1).abs().amax(1).min() > 0


def test_an_image_that_other_leases_want_too_is_run_whole() -> None:
    net = network()
    hits = hits_on([0, 1, 2], net)
    assert projected(Projector(net, TRANSFORM, CPU), net, hits)[1] == [False] * 3
    assert projected(Projector(net, TRANSFORM, CPU), net, hits, reuse=50.0)[1] == [True] * 3


def test_reuse_counts_for_nothing_where_the_switches_cannot_be_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep_switches_of(1000, monkeypatch)
    net = network()
    by = Projector(net, TRANSFORM, CPU)
    assert projected(by, net, hits_on([0, 1, 2], net), reuse=50.0)[1] == [False] * 3


@pytest.mark.parametrize("method", METHODS)
def test_whole_or_on_its_cone_a_hit_projects_alike(method: Method) -> None:
    net = network()
    hits = hits_on(CROWDED, net)
    mixed, some = projected(Projector(net, TRANSFORM, CPU, method), net, hits)
    all_whole, whole = projected(Projector(net, TRANSFORM, CPU, method), net, hits, reuse=50.0)
    assert all(whole) and not all(some)
    assert all_whole.any()
    assert (mixed - all_whole).abs().max() <= 1e-5 * all_whole.abs().max()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reuse", [1.0, 50.0])
def test_the_bits_depend_neither_on_lanes_nor_on_what_was_done_before(
    reuse: float, method: Method
) -> None:
    net = network()
    hits = hits_on([*CROWDED, 7, 8, 9, 9], net)
    fresh, _ = projected(Projector(net, TRANSFORM, CPU, method), net, hits, reuse)
    used = Projector(net, TRANSFORM, CPU, method)
    projected(used, net, hits_on([9, 3, 5, 11, 8], net), reuse=50.0)
    again, _ = projected(used, net, hits, reuse)
    apart = Projector(net, TRANSFORM, CPU, method)
    in_lanes, _ = projected(apart, net, hits, reuse, in_two_lanes)
    assert torch.equal(fresh, again)
    assert torch.equal(fresh, in_lanes)


def test_images_run_forward_together_give_the_same_as_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, in batches that are filled up."""
    net = network()
    hits = hits_on(CROWDED, net)
    alone, _ = projected(Projector(net, TRANSFORM, CPU), net, hits, reuse=50.0)
    monkeypatch.setitem(portions.PORTIONS, "cpu", replace(portions_on("cpu"), images=3))
    together, whole = projected(Projector(net, TRANSFORM, CPU), net, hits, reuse=50.0)
    assert all(whole)
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize("method", METHODS)
def test_of_more_switches_than_may_be_kept_the_oldest_go(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network()
    hits = hits_on(list(range(12)), net)
    each = net.switch_bytes(net.path_to(net.layer(LAYER)), method)
    keep_switches_of(12 * each, monkeypatch)
    by = Projector(net, TRANSFORM, CPU, method)
    by._kept._most_bytes //= 4
    expected, whole = projected(Projector(net, TRANSFORM, CPU, method), net, hits, reuse=50.0)
    for _ in range(2):
        assert torch.equal(projected(by, net, hits, reuse=50.0)[0], expected)
    assert all(whole)
    assert len(by._kept._known) == 3
    assert by._kept._bytes == 3 * each == by._kept._most_bytes


def test_an_image_is_in_as_many_leases_as_its_hits_spread_over() -> None:
    assert expected_reuse(leases=4, hits=10, images=10**9) == pytest.approx(1.0)
    assert expected_reuse(leases=4, hits=10**6, images=10) == pytest.approx(4.0)
    # Each lease takes an image with 1/2: 4 · 1/2 over 1 − (1/2)⁴.
    assert expected_reuse(leases=4, hits=1, images=2) == pytest.approx(2 / (15 / 16))
    assert expected_reuse(leases=0, hits=0, images=1) == 1.0
