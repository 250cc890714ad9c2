"""More than the maximum: the weakest images, the strongest of each class, random ones by strength.

Each is a ranking: it puts the images of a unit into groups, gives each a key, and keeps the few
with the lowest keys in every group.  All are folded like the strongest hits: from any partial
results, in any order, exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64, UInt64

from deconvoy.schema import histogram_edges
from deconvoy.spec import TopSpec

BUFFER = 400_000
"""Candidates gathered before those that cannot stay are thrown away."""


@dataclass(frozen=True)
class Entries:
    """Images a ranking keeps, in no particular order."""

    unit: Int32[np.ndarray, " entry"]
    group: Int32[np.ndarray, " entry"]
    key: Float64[np.ndarray, " entry"]
    score: Float32[np.ndarray, " entry"]
    image: Int64[np.ndarray, " entry"]
    content: Int64[np.ndarray, " entry"]
    """As of ``Hits``: of equal ones a unit keeps one."""

    @staticmethod
    def none() -> "Entries":
        return Entries(*(np.zeros(0, dtype) for dtype in ("i4", "i4", "f8", "f4", "i8", "i8")))

    @staticmethod
    def joined(parts: Sequence["Entries"]) -> "Entries":
        columns = (
            np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(Entries)
        )
        return Entries(*columns) if parts else Entries.none()

    def __len__(self) -> int:
        return len(self.unit)

    def take(self, which: np.ndarray) -> "Entries":
        return Entries(*(getattr(self, field.name)[which] for field in fields(Entries)))


def lowest(entries: Entries, k: int) -> tuple[Entries, Int64[np.ndarray, " entry"]]:
    """The k entries of lowest key of each unit and group, and the rank of each; the order is total:
    (key, image)."""
    order = np.lexsort((entries.image, entries.key, entries.content, entries.group, entries.unit))
    entries = entries.take(order)
    place = entries.unit, entries.group, entries.content
    repeated = np.zeros(len(entries), dtype=bool)
    repeated[1:] = np.logical_and.reduce([column[1:] == column[:-1] for column in place])
    entries = entries.take(~repeated)
    entries = entries.take(np.lexsort((entries.image, entries.key, entries.group, entries.unit)))
    together = _place_of(entries)
    rank = np.arange(len(entries)) - np.searchsorted(together, together, side="left")
    kept = rank < k
    return entries.take(kept), rank[kept]


@dataclass(frozen=True)
class Ranking:
    """What is kept besides the strongest hits."""

    name: str
    """``bottom``, ``class`` or ``band``."""
    k: int
    seed: int = 0

    def groups(self, classes: int) -> int:
        """At most so many of a unit."""
        return {"bottom": 1, "class": classes, "band": len(histogram_edges()) - 1}[self.name]

    def candidates(self, batch: "Maxima") -> Entries:
        """Every image of a batch that this ranking can hold, for every unit."""
        scores = batch.scores
        image, unit = np.nonzero(np.broadcast_to(batch.eligible[:, None], scores.shape))
        score = scores[image, unit]
        match self.name:
            case "bottom":
                group, key = np.zeros(len(unit), np.int64), score.astype(np.float64)
            case "class":
                group, key = batch.classes[image], -score.astype(np.float64)
                there = (group >= 0) & ((score > 0) | ~batch.rectified[unit])
                image, unit, score = image[there], unit[there], score[there]
                group, key = group[there], key[there]
            case _:
                edges = histogram_edges().astype(np.float32)
                group = np.searchsorted(edges, score, side="right") - 1
                # By content, so that of equal images, all or one of which count, all draw alike.
                key = uniform(self.seed, unit, batch.content[image])
        return Entries(
            unit.astype(np.int32), group.astype(np.int32), key,
            score, batch.ids[image], batch.content[image],
        )  # fmt: skip


def rankings_of(top: TopSpec, seed: int) -> tuple[Ranking, ...]:
    """Those a spec asks for."""
    asked = {"bottom": top.bottom, "class": top.per_class, "band": top.bands and top.bands.examples}
    return tuple(Ranking(name, k, seed) for name, k in asked.items() if k)


@dataclass(frozen=True)
class Maxima:
    """The maxima of all units over some images."""

    ids: Int64[np.ndarray, " image"]
    content: Int64[np.ndarray, " image"]
    """The id, or where equal images count once a hash of the pixels."""
    eligible: Bool[np.ndarray, " image"]
    """Whether it takes part; copies do, and content tells them."""
    classes: Int64[np.ndarray, " image"]
    """True class, or the predicted one where the data has no labels; −1 where unknown."""
    scores: Float32[np.ndarray, "image unit"]
    rectified: Bool[np.ndarray, " unit"]
    """In a rectified layer a zero is no hit."""


@dataclass(frozen=True)
class Floor:
    """What an image must reach to enter a shortlist: the key of the last rank, where all ranks are
    taken."""

    place: Int64[np.ndarray, " place"]
    """Unit and group in one number, sorted."""
    key: Float64[np.ndarray, " place"]

    @staticmethod
    def none() -> "Floor":
        return Floor(np.zeros(0, np.int64), np.zeros(0))

    def reached(self, entries: Entries) -> Entries:
        """Those that can enter: of equal keys the image decides."""
        if not len(self.place):
            return entries
        place = _place_of(entries)
        at = np.searchsorted(self.place, place).clip(0, len(self.place) - 1)
        worst = np.where(self.place[at] == place, self.key[at], np.inf)
        return entries.take(entries.key <= worst)


class Shortlist:
    """What one ranking keeps, as images come in; adding costs what is touched, not what is kept."""

    def __init__(self, k: int, floor: Floor | None = None) -> None:
        self._k = k
        self._below = floor or Floor.none()
        """Of a shortlist that this one will be added to."""
        self._place = np.zeros(0, np.int64)
        self._key = np.full((0, k), np.inf)
        self._score = np.zeros((0, k), np.float32)
        self._image = np.full((0, k), -1, np.int64)
        self._content = np.zeros((0, k), np.int64)
        self._waiting: list[Entries] = []

    def add(self, entries: Entries) -> None:
        self._waiting.append(self.floor.reached(self._below.reached(entries)))
        if sum(map(len, self._waiting)) > BUFFER:
            self._settle()

    def entries(self, units: slice | None = None) -> Entries:
        """What is kept, of all units or of some."""
        self._settle()
        first, end = 0, len(self._place)
        if units is not None:
            first, end = np.searchsorted(self._place, [units.start << 32, units.stop << 32])
        row, rank = np.nonzero(self._image[first:end] >= 0)
        return self._entries_at(first + row, rank)

    @property
    def floor(self) -> Floor:
        """Without what waits to be added, which can only make it lower."""
        full = self._image[:, -1] >= 0
        return Floor(self._place[full], self._key[full, -1])

    def _settle(self) -> None:
        new = self.floor.reached(Entries.joined(self._waiting))
        self._waiting = []
        if not len(new):
            return
        touched = np.unique(_place_of(new))
        self._make_room(touched)
        rows = np.searchsorted(self._place, touched)
        row, rank = np.nonzero(self._image[rows] >= 0)
        kept, rank = lowest(Entries.joined([self._entries_at(rows[row], rank), new]), self._k)
        self._image[rows] = -1
        row = np.searchsorted(self._place, _place_of(kept))
        self._key[row, rank] = kept.key
        self._score[row, rank] = kept.score
        self._image[row, rank] = kept.image
        self._content[row, rank] = kept.content

    def _make_room(self, places: Int64[np.ndarray, " place"]) -> None:
        missing = np.setdiff1d(places, self._place, assume_unique=True)
        if not len(missing):
            return
        at = np.searchsorted(self._place, missing)
        self._place = np.insert(self._place, at, missing)
        self._key = np.insert(self._key, at, np.inf, axis=0)
        self._score = np.insert(self._score, at, 0, axis=0)
        self._image = np.insert(self._image, at, -1, axis=0)
        self._content = np.insert(self._content, at, 0, axis=0)

    def _entries_at(self, row: np.ndarray, rank: np.ndarray) -> Entries:
        unit, group = self._place[row] >> 32, self._place[row] & 0xFFFFFFFF
        return Entries(
            unit.astype(np.int32), group.astype(np.int32), self._key[row, rank],
            self._score[row, rank], self._image[row, rank], self._content[row, rank],
        )  # fmt: skip


class ExampleScan:
    """The running result of one lane of a shard, for one ranking."""

    def __init__(self, ranking: Ranking, floor: Floor) -> None:
        self._ranking = ranking
        self._shortlist = Shortlist(ranking.k, floor)

    def add(self, batch: Maxima) -> None:
        self._shortlist.add(self._ranking.candidates(batch))

    def entries(self) -> Entries:
        return self._shortlist.entries()


def _place_of(entries: Entries) -> Int64[np.ndarray, " entry"]:
    place: Int64[np.ndarray, " entry"] = entries.unit.astype(np.int64) << 32 | entries.group
    return place


def folded(
    parts: Sequence[Mapping[str, Entries]], rankings: Sequence[Ranking]
) -> dict[str, Entries]:
    """One result from several, of the lanes of a shard."""
    return {
        ranking.name: lowest(
            Entries.joined([part[ranking.name] for part in parts if ranking.name in part]),
            ranking.k,
        )[0]
        for ranking in rankings
    }


def uniform(
    seed: int, unit: Int64[np.ndarray, " entry"], content: Int64[np.ndarray, " entry"]
) -> Float64[np.ndarray, " entry"]:
    """A number in [0, 1) for each unit and image, the same wherever it is asked for: what is drawn
    does not depend on how the work was cut.  (splitmix64; Steele, Lea & Flood, OOPSLA 2014.)"""
    mixed = _splitmix(
        content.astype(np.uint64) + _splitmix(unit.astype(np.uint64) + np.uint64(seed))
    )
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix(value: UInt64[np.ndarray, " entry"]) -> UInt64[np.ndarray, " entry"]:
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value = value ^ (value >> np.uint64(31))
    return value


def bands_of_bins(
    histogram: Int64[np.ndarray, "unit bin"], bands: int
) -> Int64[np.ndarray, "unit bin"]:
    """The quantile band each bin of the image maxima belongs to, weakest first: that of the middle
    of its images.  Bands are cut at the edges of the histogram's bins, two to an octave."""
    total = np.maximum(histogram.sum(1, keepdims=True), 1)
    middle: Float[np.ndarray, "unit bin"] = (histogram.cumsum(1) - histogram / 2) / total
    band: Int64[np.ndarray, "unit bin"] = (middle * bands).astype(np.int64)
    return band.clip(0, bands - 1)
