"""A layer's hits by unit, counted by hand; and how many layers of them are kept."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import deconvoy
from deconvoy.errors import RunNotFound
from service.hits import LayerCache, LayerHits


@pytest.fixture
def hits() -> LayerHits:
    """Unit 0 has four hits, unit 1 none and is dead, unit 2 two without labels, unit 3 none, and is
    alive."""
    table = pa.table(
        {
            "unit": [0, 0, 0, 0, 2, 2],
            "score": [9.0, 8.0, 7.0, 6.0, 0.5, 0.25],
            "label": pa.array([5, 7, 7, 5, None, None], pa.int64()),
        }
    )
    return LayerHits(
        "relu1",
        table,
        first=np.array([0, 4, 4, 6, 6]),
        window=np.zeros((4, 4, 4), np.int32),
        mean=np.zeros(4),
        histogram=np.zeros((4, 3), np.int64),
        density=np.array([1.0, 0.0, 0.5, 0.25]),
        projected=np.zeros(4, bool),
    )


def test_rows_and_scores_are_those_of_the_unit(hits: LayerHits) -> None:
    assert [row["score"] for row in hits.rows(2)] == [0.5, 0.25]
    assert hits.rows(1) == []
    assert hits.scores.tolist() == [9.0, -np.inf, 0.5, -np.inf]


def test_a_unit_without_hits_is_dead_where_no_image_activates_it(hits: LayerHits) -> None:
    assert [hits.empty(unit) for unit in range(4)] == [False, True, False, True]
    assert [hits.dead(unit) for unit in range(4)] == [False, True, False, False]


def test_classes_are_counted_the_better_rank_first_among_equals(hits: LayerHits) -> None:
    assert hits.classes(0) == [(5, 2), (7, 2)]
    assert hits.classes(2) == hits.classes(1) == []
    assert hits.commonest.tolist() == [[5, 2], [-1, 0], [-1, 0], [-1, 0]]
    assert hits.purity.tolist() == [0.5, 0.0, 0.0, 0.0]


def test_no_other_unit_is_there(hits: LayerHits) -> None:
    hits.require(3)
    for unit in (-1, 4):
        with pytest.raises(RunNotFound, match=rf"units 0 to 3.*no unit {unit}"):
            hits.require(unit)


def test_layers_are_kept_within_a_limit_the_last_asked_for_longest(small_run: Path) -> None:
    run = deconvoy.open(small_run)
    sizes = {name: LayerCache(run).hits(name).nbytes for name in run.layer_names}
    cache = LayerCache(run, most_bytes=sizes["relu2"] + sizes["relu5"])
    first, other = cache.hits("relu2"), cache.hits("relu5")
    assert cache.hits("relu5") is other and cache.hits("relu2") is first
    cache.hits("logits")
    assert cache.at_hand("relu2") and not cache.at_hand("relu5")
    assert cache.hits("relu2") is first
    tight = LayerCache(run, most_bytes=1)
    assert tight.hits("relu2").units == 64 and tight.at_hand("relu2")
    assert tight.hits("relu5").units == 64 and not tight.at_hand("relu2")
