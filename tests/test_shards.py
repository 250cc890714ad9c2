"""Test what the driver does for every shard of a scan: as little as it can."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from deconvoy.store import FolderStore
from tests.fire.synthetic import K, SyntheticExecutor, drawn, listing_of, packed, spec_of
from workers import pipeline, shards
from workers.topk import Hits, Partial, UnitSums

UNITS, IMAGES, SHARDS = 6, 4, 70


def partial_of(score: list[float]) -> Partial:
    count = len(score)
    image = np.arange(count)
    hits = Hits(
        np.arange(count, dtype=np.int32), np.array(score, np.float32), image,
        np.zeros((count, 2), np.int32), image,
    )  # fmt: skip
    return Partial(hits, UnitSums.zero(count), 1, 0, 0, 0)


def scan(url: Path) -> np.ndarray:
    """Scores of the best of all shards, whose results come out of order."""
    job, run = pipeline.create(
        spec_of(IMAGES, False), str(url), packed=packed(UNITS, 1),
        listing=listing_of(IMAGES * SHARDS),
    )  # fmt: skip
    pipeline.execute(job, run, SyntheticExecutor(20, run), lambda advance: None)
    return np.asarray(run.zarr()["layers/features.1/score"])


def expected() -> np.ndarray:
    every = np.concatenate([drawn(part, UNITS, IMAGES)[0] for part in range(SHARDS)], axis=1)
    return -np.sort(-every, axis=1)[:, :K]


@pytest.mark.parametrize("held", [shards.HELD_BYTES, 0], ids=["held", "read again"])
def test_results_in_memory_are_not_read_back_and_change_nothing(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, read = FolderStore.read, []

    def counted(self: FolderStore, path: str) -> bytes:
        read.append(path)
        return whole(self, path)

    monkeypatch.setattr(FolderStore, "read", counted)
    monkeypatch.setattr(shards, "HELD_BYTES", held)
    np.testing.assert_array_equal(scan(tmp_path / "run"), expected())
    again = sum("part-" in path for path in read)
    # Of those that came before their turn.
    assert again == 0 if held else 0 < again < SHARDS


def test_a_marker_leaves_out_what_has_been_outdone_since_the_lease_was_granted() -> None:
    floor = np.array([1.0, 2.0, -np.inf], np.float32)
    left = partial_of([0.5, 2.0, -3.0]).entering(floor)
    assert left.hits.unit.tolist() == [1, 2]  # an equal one may win by its image
    assert left.images == 1


def test_the_histogram_of_an_answer_travels_small_and_arrives_whole() -> None:
    histogram = np.zeros((1000, UnitSums.zero(1).histogram.shape[1]), np.int64)
    histogram[:, 3] = 256
    sums = UnitSums(np.ones(1000), np.ones(1000, np.int64), histogram)
    sent = pickle.dumps(sums)
    assert len(sent) < histogram.nbytes / 3
    arrived = pickle.loads(sent).histogram
    assert arrived.dtype == np.int64 and np.array_equal(arrived, histogram)
    histogram[0, 0] = 2**40
    assert pickle.loads(pickle.dumps(sums)).histogram[0, 0] == 2**40
