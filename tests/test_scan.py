"""A scanned shard against brute force over all images: same hits, same places, same sums.

Weights and pixels of most networks here are small whole numbers.  Then float32 is exact whatever
the order of summation, so equal means equal; and ties are common.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deconvoy.errors import ActivationInvalid
from deconvoy.schema import histogram_edges
from tests import networks, reference
from tests.networks import Case, chain, conv, linear, pool
from tests.reference import Hit
from workers.graph import Network
from workers.scan import ShardScan, combined
from workers.topk import Fold, Hits, Partial, UnitIndex, UnitSums

Lists = list[list[list[Hit]]]
"""layer, unit, rank"""

SHAPE = (2, 9, 7)
WHOLE: dict[str, Case] = {
    "maps": chain(
        conv(2, 5, 3), nn.ReLU, pool(2, 1), conv(5, 4, 3, stride=2), nn.ReLU, conv(4, 3, 1),
        shape=SHAPE,
    ),
    "neurons": chain(
        conv(2, 4, 3, stride=2), nn.ReLU, nn.Flatten, linear(48, 12), nn.ReLU, linear(12, 6),
        shape=SHAPE,
    ),
    "ceiling": chain(conv(2, 6, 3), nn.ReLU6, conv(6, 4, 3), nn.ReLU6, shape=SHAPE),
    "bottleneck": chain(
        conv(2, 2, 1), conv(2, 4, 3), nn.ReLU, conv(4, 4, 1), unrectified=["0"], shape=SHAPE
    ),
}  # fmt: skip


def whole(case: Case, seed: int = 0, largest: int = 2) -> nn.Module:
    """The case's model in float32 with whole numbers between ±``largest`` for weights."""
    generator = torch.Generator().manual_seed(seed)
    model = case.model().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randint(-largest, largest + 1, parameter.shape, generator=generator)
            )
    return model


def pictures(count: int, seed: int = 1, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, (count, *shape), generator=generator).float()


def shard_scan(network: Network, k: int = 9, floor: Tensor | None = None) -> ShardScan:
    units = sum(layer.units for layer in network.layers)
    floor = torch.full((units,), -math.inf) if floor is None else floor
    return ShardScan(network, network.layers, k, floor.to(network.device))


def scanned(
    network: Network,
    images: Tensor,
    ids: Sequence[int],
    batch: int,
    k: int = 9,
    floor: Tensor | None = None,
    filling: float = 50.0,
) -> ShardScan:
    """Scan in batches of one size, the last one filled up with rows that are not valid."""
    scan = shard_scan(network, k, floor)
    for start in range(0, len(images), batch):
        rows = images[start : start + batch]
        some = torch.tensor(ids[start : start + batch])
        missing = batch - len(rows)
        whole = (
            torch.cat([rows, torch.full((missing, *images.shape[1:]), filling)]),
            torch.cat([some, torch.zeros(missing, dtype=torch.int64)]),
            torch.arange(batch) < len(rows),
        )
        scan.add(*(tensor.to(network.device) for tensor in whole))
    return scan


def folded(units: int, *found: Hits, k: int = 9) -> Fold:
    fold = Fold(units, k)
    for hits in found:
        fold.add(Partial(hits, UnitSums.zero(units), 0, 0, 0, 0))
    return fold


def lists_of(network: Network, *found: Hits, k: int = 9) -> Lists:
    index = UnitIndex.of([layer.units for layer in network.layers])
    fold = folded(index.total, *found, k=k)
    lists = [
        [Hit(float(s), int(i), int(y), int(x)) for s, i, (y, x) in zip(*ranks, strict=True)]
        for ranks in zip(fold.score, fold.image, fold.position, strict=True)
    ]
    return [lists[index.units_of(layer)] for layer in range(len(network.layers))]


def brute_force(
    model: nn.Module, images: Tensor, ids: Sequence[int], case: Case, k: int = 9
) -> Lists:
    numbered = zip(ids, images, strict=True)
    return reference.brute_force(model, numbered, batch_size=8, k=k, also=case.unrectified)


def spread(count: int) -> list[int]:
    """Increasing ids with gaps, as unreadable images leave them."""
    return [3 * i + i % 2 for i in range(count)]


# --- the same as brute force ---


@pytest.mark.parametrize("batch", [1, 4, 23, 30])
@pytest.mark.parametrize("name", WHOLE)
def test_a_scan_finds_what_brute_force_finds(name: str, batch: int) -> None:
    case = WHOLE[name]
    model, images, ids = whole(case), pictures(23), spread(23)
    network = Network(model, SHAPE)
    found = scanned(network, images, ids, batch).hits()
    assert lists_of(network, found) == brute_force(model, images, ids, case)


@pytest.mark.parametrize("k", [1, 3, 30])
def test_any_number_of_ranks_is_kept(k: int) -> None:
    case = WHOLE["maps"]
    model, images, ids = whole(case), pictures(23), spread(23)
    network = Network(model, SHAPE)
    found = scanned(network, images, ids, 5, k=k).hits()
    assert lists_of(network, found, k=k) == brute_force(model, images, ids, case, k=k)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_fewer_images_than_ranks_leave_ranks_missing(count: int) -> None:
    case = WHOLE["neurons"]
    model, images, ids = whole(case), pictures(count), spread(count)
    network = Network(model, SHAPE)
    lists = lists_of(network, scanned(network, images, ids, 4).hits())
    assert lists == brute_force(model, images, ids, case)
    assert all(hit == reference.MISSING for unit in lists[-1] for hit in unit[count:])


def test_the_test_has_ties_dead_units_and_negative_units_in_it() -> None:
    found = [
        unit
        for case in WHOLE.values()
        for layer in brute_force(whole(case), pictures(23), spread(23), case)
        for unit in layer
    ]
    scores = [[hit.score for hit in unit if hit.image >= 0] for unit in found]
    assert sum(len(set(unit)) < len(unit) for unit in scores) > 20
    assert any(unit[0] < 0 for unit in scores if unit)
    assert any(not unit for unit in scores)


def test_logits_that_are_never_positive_have_their_hits() -> None:
    model = whole(WHOLE["neurons"])
    with torch.no_grad():
        model.get_parameter("5.bias").fill_(-10_000)
    network = Network(model, SHAPE)
    images, ids = pictures(12), spread(12)
    lists = lists_of(network, scanned(network, images, ids, 5).hits())
    assert all(-math.inf < hit.score < 0 for unit in lists[-1] for hit in unit)
    assert lists == brute_force(model, images, ids, WHOLE["neurons"])


def test_a_dead_unit_has_no_hit() -> None:
    model = whole(WHOLE["maps"])
    with torch.no_grad():
        model.get_parameter("0.bias")[2] = -10_000
    network = Network(model, SHAPE)
    lists = lists_of(network, scanned(network, pictures(12), spread(12), 5).hits())
    assert lists[0][2] == [reference.MISSING] * 9
    assert lists[0][1] != [reference.MISSING] * 9


def test_equal_images_are_ranked_by_id_within_and_across_batches() -> None:
    case = WHOLE["maps"]
    model, images = whole(case), pictures(1).expand(20, *SHAPE)
    network = Network(model, SHAPE)
    lists = lists_of(network, scanned(network, images, spread(20), 6).hits())
    hit = [[h.image for h in unit] for layer in lists for unit in layer if unit[0].image >= 0]
    assert hit and all(images == spread(9) for images in hit)


def test_of_equal_places_the_first_in_reading_order_is_kept() -> None:
    case = chain(conv(2, 3, 1), nn.ReLU, shape=SHAPE)
    model = whole(case)
    images = torch.zeros(1, *SHAPE)
    images[0, :, 2:5, 3:6] = 1  # many equal places from (2, 3) on
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(1)
        model.get_parameter("0.bias").fill_(0)
    network = Network(model, SHAPE)
    lists = lists_of(network, scanned(network, images, [7], 1).hits())
    assert lists[0] == [[Hit(2.0, 7, 2, 3)] + [reference.MISSING] * 8] * 3


def test_saturated_maps_are_ranked_by_what_went_into_the_rectifier() -> None:
    case = chain(conv(2, 1, 1), nn.ReLU6, shape=SHAPE)
    model = whole(case)
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(1)
        model.get_parameter("0.bias").fill_(0)
    images = torch.zeros(4, *SHAPE)
    for image, (y, x, value) in enumerate([(0, 1, 4.0), (1, 2, 10.0), (2, 3, 1.0), (3, 4, 7.0)]):
        images[image, :, y, x] = value
    network = Network(model, SHAPE)
    lists = lists_of(network, scanned(network, images, [0, 1, 2, 3], 3).hits())
    assert lists[0][0][:4] == [Hit(20.0, 1, 1, 2), Hit(14.0, 3, 3, 4), Hit(8.0, 0, 0, 1),
                               Hit(2.0, 2, 2, 3)]  # fmt: skip
    assert lists[1][0][0] == Hit(6.0, 0, 0, 1)  # of the logits, clipped, the first is as good


def test_only_the_layers_asked_for_are_scanned() -> None:
    case = WHOLE["maps"]
    network = Network(whole(case), SHAPE)
    layers = network.layers[1:2]
    units = sum(layer.units for layer in layers)
    scan = ShardScan(network, layers, 9, torch.full((units,), -math.inf))
    images, ids = pictures(11), spread(11)
    scan.add(images, torch.tensor(ids), torch.ones(11, dtype=torch.bool))
    fold = folded(units, scan.hits())
    expected = brute_force(whole(case), images, ids, case)[1]
    assert fold.image.tolist() == [[hit.image for hit in unit] for unit in expected]


def test_predictions_are_the_models() -> None:
    model = whole(WHOLE["neurons"])
    images = pictures(6) / 8
    scan = shard_scan(Network(model, SHAPE))
    prediction = scan.add(images, torch.arange(6), torch.ones(6, dtype=torch.bool))
    with torch.no_grad():
        probability, predicted = model(images).softmax(1).max(1)
    assert prediction.predicted.tolist() == predicted.tolist()
    assert np.allclose(prediction.probability, probability.numpy(), atol=1e-6)


# --- however the shard is cut ---


def batches_of(cuts: Sequence[int], images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [
        (images[a:b], torch.arange(a, b), torch.ones(b - a, dtype=torch.bool))
        for a, b in pairwise([0, *cuts, len(images)])
    ]


def same(one: Hits, two: Hits) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(two, name))
        for name in ("unit", "score", "image", "position")
    )


@pytest.mark.parametrize("cuts", [[1], [5, 6, 20], list(range(1, 24))])
@pytest.mark.parametrize("name", WHOLE)
def test_how_batches_are_cut_leaves_no_trace(name: str, cuts: list[int]) -> None:
    network, images = Network(whole(WHOLE[name]), SHAPE), pictures(24)
    together, apart = shard_scan(network), shard_scan(network)
    for batch in batches_of([], images):
        together.add(*batch)
    for batch in batches_of(cuts, images):
        apart.add(*batch)
    assert same(together.hits(), apart.hits())
    assert np.array_equal(together.sums().maxima, apart.sums().maxima)
    assert np.array_equal(together.sums().active, apart.sums().active)
    assert np.array_equal(together.sums().histogram, apart.sums().histogram)


@pytest.mark.parametrize(
    "lane_of_batch", [[0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0], [2, 1, 0, 2, 1, 0]]
)
def test_lanes_leave_no_trace(lane_of_batch: list[int]) -> None:
    case = networks.TINY["sum_with_projection"]
    network = Network(case.model().float(), case.shape)
    images = case.images(24).float()
    images *= 10.0 ** torch.arange(24)[:, None, None, None].remainder(19)  # the order shows
    batches = batches_of([4, 8, 12, 16, 20], images)
    alone = shard_scan(network)
    lanes = [shard_scan(network) for _ in range(3)]
    for batch, lane in zip(batches, lane_of_batch, strict=True):
        alone.add(*batch)
        lanes[lane].add(*batch)
    hits, sums = combined(lanes)
    assert same(hits, alone.hits())
    assert np.array_equal(sums.maxima, alone.sums().maxima)  # to the last bit
    assert np.array_equal(sums.active, alone.sums().active)
    assert np.array_equal(sums.histogram, alone.sums().histogram)


# --- with the scores of other shards ---


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
@pytest.mark.parametrize("name", WHOLE)
def test_a_floor_from_shards_already_folded_loses_nothing(name: str, order: list[int]) -> None:
    """Also where shards of later images came first: their equal scores must give way."""
    case = WHOLE[name]
    model, images, ids = whole(case), pictures(45), spread(45)
    network = Network(model, SHAPE)
    fold = folded(sum(layer.units for layer in network.layers))
    found, sent = [], []
    for shard in order:
        part = slice(15 * shard, 15 * shard + 15)
        hits = scanned(
            network, images[part], ids[part], 4, floor=torch.from_numpy(fold.floor)
        ).hits()
        fold.add(Partial(hits, UnitSums.zero(len(fold.score)), 0, 0, 0, 0))
        found.append(hits)
        sent.append(len(hits))
    assert lists_of(network, *found) == brute_force(model, images, ids, case)
    assert sent[1] < sent[0] and sent[2] < sent[0]  # or the floor would be for nothing


def test_a_score_equal_to_the_floor_stays() -> None:
    case = WHOLE["maps"]
    network = Network(whole(case), SHAPE)
    images, ids = pictures(12), list(range(100, 112))
    without = scanned(network, images, ids, 5)
    floor = torch.from_numpy(folded(len(without.sums().maxima), without.hits()).floor)
    again = scanned(network, images, ids, 5, floor=floor)
    assert lists_of(network, again.hits()) == lists_of(network, without.hits())


# --- sums ---


@pytest.mark.parametrize("name", WHOLE)
def test_sums_are_numpys_over_the_oracles_maxima(name: str) -> None:
    case = WHOLE[name]
    model, images = whole(case), pictures(23)
    layers = reference.layers(model, images, case.unrectified)
    maxima = np.concatenate(
        [layer.ranking.flatten(2).amax(2).numpy() for layer in layers], axis=1
    ).astype(np.float64)  # "image unit"
    sums = scanned(Network(model, SHAPE), images, spread(23), 4).sums()
    assert np.array_equal(sums.maxima, maxima.sum(0))
    assert np.array_equal(sums.active, (maxima > 0).sum(0))
    edges = histogram_edges()
    for unit in range(maxima.shape[1]):
        in_bin = (maxima[:, unit, None] >= edges[:-1]) & (maxima[:, unit, None] < edges[1:])
        assert sums.histogram[unit].tolist() == in_bin.sum(0).tolist()


@pytest.mark.parametrize("filling", [50.0, -50.0, 0.0, math.nan, math.inf])
def test_filled_up_rows_are_counted_nowhere(filling: float) -> None:
    network = Network(whole(WHOLE["maps"]), SHAPE)
    images, ids = pictures(5), spread(5)
    exact = scanned(network, images, ids, 5)
    filled = scanned(network, images, ids, 64, filling=filling)
    assert same(exact.hits(), filled.hits())
    for name in ("maxima", "active", "histogram"):
        assert np.array_equal(getattr(exact.sums(), name), getattr(filled.sums(), name)), name


# --- what is not finite ---


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_pixel_that_is_not_finite_fails_and_names_layer_and_image(value: float) -> None:
    case = chain(conv(2, 3, 1), nn.ReLU, conv(3, 2, 1), shape=SHAPE)
    model = whole(case)
    with torch.no_grad():
        weight = torch.tensor([[1.0, 1], [1, -1], [-1, 1]])  # of +inf and -inf one shows it
        model.get_parameter("0.weight").copy_(weight[..., None, None])
    images = pictures(6)
    images[4, 0, 3, 2] = value
    with pytest.raises(ActivationInvalid) as caught:
        scanned(Network(model, SHAPE), images, [2, 3, 5, 7, 11, 13], 3)
    message = str(caught.value)
    assert "Layer '1'" in message and "image 11" in message and "finite" in message


def test_a_weight_that_is_not_finite_names_the_first_layer_that_shows_it() -> None:
    model = whole(WHOLE["neurons"])
    with torch.no_grad():
        model.get_parameter("3.weight")[5, 0] = math.nan
    with pytest.raises(ActivationInvalid, match="Layer '4', unit 5: .* image 9 is nan"):
        scanned(Network(model, SHAPE), pictures(3), [9, 10, 11], 3)


def test_an_image_with_a_name_is_named() -> None:
    model = whole(WHOLE["neurons"])
    with torch.no_grad():
        model.get_parameter("3.weight")[5, 0] = math.nan
    network = Network(model, SHAPE)
    floor = torch.full((sum(layer.units for layer in network.layers),), -math.inf)
    scan = ShardScan(network, network.layers, 3, floor)
    with pytest.raises(ActivationInvalid, match=r"over image 7 \(b/c\.jpg\) is nan"):
        ids, valid = torch.tensor([7, 8]), torch.tensor([True, True])
        scan.add(pictures(2), ids, valid, ["b/c.jpg", "d.jpg"])
