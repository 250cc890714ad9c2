"""The strongest k of every unit: the order, the fold, and the bytes a partial result travels in."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deconvoy.errors import RunUnreadable
from deconvoy.schema import histogram_edges
from tests import reference
from tests.reference import Hit
from workers.topk import BINS, Fold, Hits, Partial, UnitIndex, UnitSums, strongest

UNITS = 3
Row = tuple[int, float, int, int, int]
"""unit, score, image, y, x"""


def hits_of(*rows: Row) -> Hits:
    unit, score, image, y, x = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    return Hits(
        np.array(unit, np.int32),
        np.array(score, np.float32),
        np.array(image, np.int64),
        np.array([y, x], np.int32).T.reshape(-1, 2),
        content=np.array(image, np.int64),
    )


def rows_of(hits: Hits) -> list[Row]:
    columns = (hits.unit, hits.score, hits.image, *hits.position.T)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def partial_of(*rows: Row, sums: UnitSums | None = None, images: int = 0) -> Partial:
    return Partial(hits_of(*rows), sums or UnitSums.zero(UNITS), images, 0, 0, 0)


def folded(*partials: Partial, k: int = 9) -> Fold:
    fold = Fold(UNITS, k)
    for partial in partials:
        fold.add(partial)
    return fold


def lists_of(fold: Fold) -> list[list[Hit]]:
    """As the oracle gives them: unit, rank."""
    return [
        [
            Hit(float(score), int(image), int(y), int(x))
            for score, image, (y, x) in zip(*ranks, strict=True)
        ]
        for ranks in zip(fold.score, fold.image, fold.position, strict=True)
    ]


# --- the order, worked by hand ---


def test_the_strongest_come_first_and_each_unit_has_its_own() -> None:
    hits, rank = strongest(
        hits_of((1, 2.0, 4, 0, 0), (0, 1.0, 3, 1, 2), (1, 5.0, 7, 0, 1), (0, 3.0, 9, 2, 2)), k=9
    )
    assert rows_of(hits) == [
        (0, 3.0, 9, 2, 2), (0, 1.0, 3, 1, 2), (1, 5.0, 7, 0, 1), (1, 2.0, 4, 0, 0),
    ]  # fmt: skip
    assert rank.tolist() == [0, 1, 0, 1]


def test_equal_scores_are_ordered_by_image_id() -> None:
    hits, _ = strongest(hits_of((0, 1.0, 8, 0, 0), (0, 1.0, 2, 5, 5), (0, 1.0, 5, 0, 0)), k=2)
    assert hits.image.tolist() == [2, 5]


def test_of_several_places_in_one_image_the_strongest_then_the_first_counts() -> None:
    hits, _ = strongest(
        hits_of((0, 4.0, 1, 2, 0), (0, 4.0, 1, 1, 3), (0, 4.0, 1, 1, 2), (0, 3.0, 1, 0, 0)), k=9
    )
    assert rows_of(hits) == [(0, 4.0, 1, 1, 2)]


def test_a_unit_keeps_its_k_strongest_only() -> None:
    rows: list[Row] = [(0, float(score), score, 0, 0) for score in range(20)]
    hits, rank = strongest(hits_of(*rows), k=9)
    assert hits.score.tolist() == [float(score) for score in range(19, 10, -1)]
    assert rank.tolist() == list(range(9))


def test_negative_scores_are_hits_like_others() -> None:
    fold = folded(partial_of((0, -3.0, 0, 0, 0), (0, -1.0, 1, 0, 0)))
    assert fold.score[0, :3].tolist() == [-1.0, -3.0, -math.inf]
    assert fold.image[0, :3].tolist() == [1, 0, -1]


def test_of_no_hits_there_is_no_strongest() -> None:
    hits, rank = strongest(Hits.none(), k=9)
    assert len(hits) == len(rank) == 0


# --- folding ---


def test_fewer_than_k_hits_leave_the_last_ranks_missing() -> None:
    fold = folded(partial_of((2, 1.5, 11, 3, 4)))
    assert fold.score[2].tolist() == [1.5] + [-math.inf] * 8
    assert fold.image[2].tolist() == [11] + [-1] * 8
    assert fold.position[2].tolist() == [[3, 4]] + [[-1, -1]] * 8
    assert (fold.image[:2] == -1).all() and (fold.score[:2] == -math.inf).all()


def test_hits_pushed_out_leave_nothing_behind() -> None:
    fold = folded(
        partial_of((0, 1.0, 1, 7, 7), (0, 2.0, 2, 8, 8)), partial_of((0, 3.0, 3, 9, 9)), k=2
    )
    assert lists_of(fold)[0] == [Hit(3.0, 3, 9, 9), Hit(2.0, 2, 8, 8)]


def test_the_floor_is_the_last_rank_and_a_copy() -> None:
    fold = folded(partial_of((0, 1.0, 1, 0, 0), (0, 2.0, 2, 0, 0), (1, 5.0, 1, 0, 0)), k=2)
    floor = fold.floor
    assert floor.tolist() == [1.0, -math.inf, -math.inf]
    floor[:] = 100
    assert fold.floor.tolist() == [1.0, -math.inf, -math.inf]


def test_what_is_counted_adds_up() -> None:
    sums = UnitSums(np.array([1.5, 0, -2]), np.array([1, 0, 2]), np.ones((UNITS, BINS), np.int64))
    fold = folded(*[Partial(Hits.none(), sums, 10, 2, 3, 4)] * 2)
    assert fold.sums.maxima.tolist() == [3.0, 0.0, -4.0]
    assert fold.sums.active.tolist() == [2, 0, 4]
    assert (fold.sums.histogram == 2).all()
    assert (fold.images, fold.skipped, fold.correct, fold.labelled) == (20, 4, 6, 8)
    assert sums.maxima.tolist() == [1.5, 0.0, -2.0]  # what was added is left alone


def test_a_fold_as_a_partial_folds_to_the_same() -> None:
    first = folded(partial_of((0, 1.0, 1, 2, 3), (2, -4.0, 5, 0, 1), images=3))
    again = folded(first.to_partial())
    assert lists_of(again) == lists_of(first)
    assert again.images == 3


# A tiny world, so that ties, repeats and overflowing ranks are common.
place = st.tuples(
    st.integers(0, UNITS - 1), st.sampled_from([-2.0, -0.5, 0.25, 1.0, 3.0]), st.integers(0, 12),
    st.integers(0, 1), st.integers(0, 2),
)  # fmt: skip


def by_the_oracle(rows: list[Row], k: int) -> list[list[Hit]]:
    """Each unit's images as maps of 2 x 3 places with the hits in them, and −inf elsewhere."""
    lists = []
    for unit in range(UNITS):
        best: dict[int, Hit] = {}
        for _, score, image, y, x in (row for row in rows if row[0] == unit):
            hit = Hit(score, image, y, x)
            best[image] = min(best.get(image, hit), hit, key=lambda h: (-h.score, h.y, h.x))
        ranked = sorted(best.values(), key=lambda h: (-h.score, h.image))[:k]
        lists.append(ranked + [reference.MISSING] * (k - len(ranked)))
    return lists


@given(
    rows=st.lists(place, max_size=40), cuts=st.lists(st.integers(0, 40), max_size=4),
    order=st.randoms(use_true_random=False), k=st.integers(1, 4),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_shards_fold_alike_in_any_order_and_twice(
    rows: list[Row], cuts: list[int], order: random.Random, k: int
) -> None:
    bounds = [0, *sorted(cuts), len(rows)]
    shards = [partial_of(*rows[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True) if a < b]
    expected = by_the_oracle(rows, k)
    assert lists_of(folded(*shards, k=k)) == expected
    order.shuffle(shards)
    assert lists_of(folded(*shards, *shards[:2], k=k)) == expected
    half = len(shards) // 2  # compacted: two folds, folded
    left, right = folded(*shards[:half], k=k), folded(*shards[half:], k=k)
    assert lists_of(folded(right.to_partial(), left.to_partial(), k=k)) == expected


# --- the bytes ---


def some_partial() -> Partial:
    histogram = np.zeros((UNITS, BINS), np.int64)
    histogram[0, 0], histogram[2, BINS - 1], histogram[1, 7] = 5, 2**40, 1
    sums = UnitSums(np.array([0.1, -1e300, 3.0]), np.array([7, 0, 2**40]), histogram)
    hits = hits_of((2, 0.1, 2**40, 3, 4), (0, -1e-30, 5, 0, 0))
    return Partial(hits, sums, images=100, skipped=2, correct=50, labelled=98)


@pytest.mark.parametrize("partial", [some_partial(), partial_of()], ids=["full", "empty"])
def test_a_partial_survives_its_bytes_to_the_last_bit(partial: Partial) -> None:
    again = Partial.from_bytes(partial.to_bytes(), "part")
    for name in ("unit", "score", "image", "position"):
        ours, theirs = getattr(partial.hits, name), getattr(again.hits, name)
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs), name
    for name in ("maxima", "active", "histogram"):
        ours, theirs = getattr(partial.sums, name), getattr(again.sums, name)
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs), name
    assert (again.images, again.skipped, again.correct, again.labelled) == (
        partial.images, partial.skipped, partial.correct, partial.labelled,
    )  # fmt: skip


def test_the_same_partial_has_the_same_bytes() -> None:
    assert some_partial().to_bytes() == some_partial().to_bytes()


CONTENT = some_partial().to_bytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an archive",
        CONTENT[:-1],
        CONTENT[: len(CONTENT) // 2],
        CONTENT.replace(b"maxima.npy", b"minima.npy"),
        CONTENT[:80] + bytes([CONTENT[80] ^ 255]) + CONTENT[81:],
    ],
    ids=["empty", "text", "one_byte_short", "half", "a_field_missing", "a_byte_flipped"],
)
def test_broken_bytes_are_unreadable_and_name_the_file(content: bytes) -> None:
    with pytest.raises(RunUnreadable, match=r"'ledger/scan/part-000007\.npz' is broken \(.+\)"):
        Partial.from_bytes(content, "ledger/scan/part-000007.npz")


# --- counting units and bins through ---


def test_units_of_layers_are_counted_through() -> None:
    index = UnitIndex.of([3, 1, 5])
    assert (index.offsets, index.total) == ((0, 3, 4, 9), 9)
    assert [index.units_of(layer) for layer in range(3)] == [slice(0, 3), slice(3, 4), slice(4, 9)]


def test_there_is_one_bin_between_every_two_edges() -> None:
    assert len(histogram_edges()) == BINS + 1
