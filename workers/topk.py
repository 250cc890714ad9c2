"""Keep the k strongest hits of every unit, and fold the partial results of shards into one.

Units of all layers are counted through (``UnitIndex``), so one array holds a whole network.  The
order of hits is total: (−score, image id, y, x); a unit has at most one hit an image.  Hits fold in
any order and twice without harm; sums are float64 and are added in shard order.
"""

import dataclasses
import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from deconvoy.errors import RunUnreadable
from deconvoy.schema import MISSING_IMAGE, MISSING_SCORE, histogram_edges
from deconvoy.spec import JobSpec, TopSpec
from workers.examples import Entries, Floor, Ranking, Shortlist, rankings_of
from workers.outliers import NORM_BINS, LeftOut, Norms

BINS = len(histogram_edges()) - 1


@dataclass(frozen=True)
class UnitIndex:
    """Units of all layers, counted through in execution order."""

    offsets: tuple[int, ...]
    """First unit of each layer, and one more: the number of all units."""

    @staticmethod
    def of(units: Sequence[int]) -> "UnitIndex":
        return UnitIndex((0, *np.cumsum(units, dtype=int).tolist()))

    @property
    def total(self) -> int:
        return self.offsets[-1]

    @property
    def layers(self) -> int:
        return len(self.offsets) - 1

    def units_of(self, layer: int) -> slice:
        return slice(self.offsets[layer], self.offsets[layer + 1])


@dataclass(frozen=True)
class Hits:
    """A list of hits, in no particular order."""

    unit: Int32[np.ndarray, " hit"]
    score: Float32[np.ndarray, " hit"]
    image: Int64[np.ndarray, " hit"]
    position: Int32[np.ndarray, "hit yx"]
    content: Int64[np.ndarray, " hit"]
    """Of hits with equal content a unit keeps one: the image's id, or where images count only once
    that are equal pixel by pixel, a hash of its pixels."""

    @staticmethod
    def none() -> "Hits":
        return Hits(
            np.zeros(0, np.int32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int64),
            np.zeros((0, 2), np.int32),
            np.zeros(0, np.int64),
        )

    def __len__(self) -> int:
        return len(self.unit)

    def take(self, which: np.ndarray) -> "Hits":
        return Hits(
            self.unit[which],
            self.score[which],
            self.image[which],
            self.position[which],
            self.content[which],
        )

    def __add__(self, other: "Hits") -> "Hits":
        return Hits(
            np.concatenate([self.unit, other.unit]),
            np.concatenate([self.score, other.score]),
            np.concatenate([self.image, other.image]),
            np.concatenate([self.position, other.position]),
            np.concatenate([self.content, other.content]),
        )


def strongest(hits: Hits, k: int) -> tuple[Hits, Int64[np.ndarray, " hit"]]:
    """The k strongest hits of each unit and the rank of each, sorted by unit and rank."""
    y, x = hits.position[:, 0], hits.position[:, 1]
    # One hit a content: of several (a copy, a shard folded twice) the first in the total order.
    order = np.lexsort((x, y, hits.image, -hits.score, hits.content, hits.unit))
    unit, content = hits.unit[order], hits.content[order]
    repeated = np.zeros(len(order), dtype=bool)
    repeated[1:] = (unit[1:] == unit[:-1]) & (content[1:] == content[:-1])
    hits = hits.take(order[~repeated])

    y, x = hits.position[:, 0], hits.position[:, 1]
    hits = hits.take(np.lexsort((x, y, hits.image, -hits.score, hits.unit)))
    first = np.searchsorted(hits.unit, hits.unit, side="left")
    rank = np.arange(len(hits)) - first
    kept = rank < k
    return hits.take(kept), rank[kept]


@dataclass(frozen=True)
class UnitSums:
    """What is added up for every unit over the readable images."""

    maxima: Float64[np.ndarray, " unit"]
    """Sum of the image maxima."""
    active: Int64[np.ndarray, " unit"]
    """Images whose maximum is above zero."""
    histogram: Int64[np.ndarray, "unit bin"]
    """Images by maximum; edges from ``deconvoy.schema.histogram_edges``."""

    @staticmethod
    def zero(units: int) -> "UnitSums":
        return UnitSums(
            np.zeros(units), np.zeros(units, np.int64), np.zeros((units, BINS), np.int64)
        )

    def __reduce__(self) -> Any:
        """The histogram travels in the smallest type that holds its counts: it is most of what a
        worker answers, and counts of a shard are small."""
        return _sums_of, (self.maxima, self.active, _narrow(self.histogram))


def _narrow(counts: np.ndarray) -> np.ndarray:
    """In the smallest type that holds them."""
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))


def _sums_of(maxima: np.ndarray, active: np.ndarray, histogram: np.ndarray) -> UnitSums:
    return UnitSums(maxima, active, histogram.astype(np.int64))


@dataclass(frozen=True)
class Partial:
    """What the scan of one shard, or of a run of consecutive shards, has found."""

    hits: Hits
    sums: UnitSums
    images: int
    """Readable images among them."""
    skipped: int
    correct: int
    """Images whose predicted class is their label."""
    labelled: int
    examples: Mapping[str, Entries] = field(default_factory=dict)
    """By ranking."""
    norms: Norms = field(default_factory=Norms.none)
    """Where outliers are left out; else of no layer."""

    def to_bytes(self) -> bytes:
        """A .npz archive; its members carry checksums."""
        unit, bin_ = np.nonzero(self.sums.histogram)
        columns, norms = dict(self.examples), dict[str, np.ndarray]()
        if len(self.norms.histogram):
            layer, norm_bin = np.nonzero(self.norms.histogram)
            columns["norm"] = self.norms.largest
            norms = {
                "norm_layers": np.array(len(self.norms.histogram)),
                "norm_layer": layer.astype(np.int32),
                "norm_bin": norm_bin.astype(np.int16),
                "norm_count": self.norms.histogram[layer, norm_bin],
            }
        return _archive(
            unit=self.hits.unit,
            score=self.hits.score,
            image=self.hits.image,
            position=self.hits.position,
            content=self.hits.content,
            maxima=self.sums.maxima,
            active=self.sums.active,
            histogram_unit=unit.astype(np.int32),
            histogram_bin=bin_.astype(np.int16),
            histogram_count=_narrow(self.sums.histogram[unit, bin_]),
            counts=np.array([self.images, self.skipped, self.correct, self.labelled]),
            **norms,
            **{
                f"{name}:{column.name}": getattr(entries, column.name)
                for name, entries in columns.items()
                for column in dataclasses.fields(Entries)
            },
        )

    @property
    def nbytes(self) -> int:
        """Of its arrays."""
        tables = self.hits, self.sums, *self.examples.values(), self.norms.largest
        arrays = [array for table in tables for array in vars(table).values()]
        return sum(array.nbytes for array in (*arrays, self.norms.histogram))

    def entering(self, floor: Float32[np.ndarray, " unit"]) -> "Partial":
        """The same without hits below the floor.  The lease had one, too, but of when it was
        granted."""
        hits = self.hits.take(self.hits.score >= floor[self.hits.unit])
        return dataclasses.replace(self, hits=hits)

    @staticmethod
    def from_bytes(content: bytes, name: str) -> "Partial":
        """Read ``to_bytes`` back.

        Raises:
            RunUnreadable: the bytes are not whole; the message carries ``name``.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                fields = {key: stored[key] for key in stored.files}
            histogram = np.zeros((len(fields["maxima"]), BINS), np.int64)
            place = fields["histogram_unit"], fields["histogram_bin"]
            histogram[place] = fields["histogram_count"]
            names = ("unit", "score", "image", "position", "content")
            hits = Hits(*(fields[name] for name in names))
            sums = UnitSums(fields["maxima"], fields["active"], histogram)
            images, skipped, correct, labelled = fields["counts"].tolist()
            examples = _examples_in(fields)
            norms = _norms_in(fields, examples.pop("norm", None))
            return Partial(hits, sums, images, skipped, correct, labelled, examples, norms)
        except Exception as error:  # zip, zlib, key and shape errors alike: the file is broken
            raise RunUnreadable(
                f"The ledger file {name!r} is broken ({error}): delete it, and "
                "`deconvoy resume` computes again what is missing then."
            ) from error


def _archive(**arrays: np.ndarray) -> bytes:
    """As ``np.savez_compressed``, in a fraction of its time: the driver writes one for every
    shard."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asanyarray(array), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy")  # of no date: equal partials have equal bytes
            archive.writestr(info, content.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=1)
    return buffer.getvalue()


def _examples_in(fields: Mapping[str, np.ndarray]) -> dict[str, Entries]:
    names = sorted({key.partition(":")[0] for key in fields if ":" in key})
    columns = [column.name for column in dataclasses.fields(Entries)]
    return {name: Entries(*(fields[f"{name}:{column}"] for column in columns)) for name in names}


def _norms_in(fields: Mapping[str, np.ndarray], largest: Entries | None) -> Norms:
    if largest is None:  # no outliers are looked for
        return Norms.none()
    histogram = np.zeros((int(fields["norm_layers"]), NORM_BINS), np.int64)
    histogram[fields["norm_layer"], fields["norm_bin"]] = fields["norm_count"]
    return Norms(histogram, largest)


class Fold:
    """All partial results so far, folded; memory does not grow with the number of images."""

    def __init__(
        self, units: int, k: int, rankings: Sequence[Ranking] = (), layers: int = 0, spare: int = 0
    ) -> None:
        """
        Args:
            k: hits kept of every unit.
            layers: those whose norms are folded; 0 where no outliers are looked for.
            spare: images of each layer whose norms are kept.
        """
        self.k = k
        self.spare = spare
        self.norms = Norms.none(layers)
        self.rankings = tuple(rankings)
        self._shortlists = {ranking.name: Shortlist(ranking.k) for ranking in rankings}
        self.score: Float32[np.ndarray, "unit rank"] = np.full((units, k), MISSING_SCORE, "f4")
        self.image: Int64[np.ndarray, "unit rank"] = np.full((units, k), MISSING_IMAGE, "i8")
        self.position: Int32[np.ndarray, "unit rank yx"] = np.full((units, k, 2), -1, "i4")
        self.content: Int64[np.ndarray, "unit rank"] = np.zeros((units, k), "i8")
        self.sums = UnitSums.zero(units)
        self.images = self.skipped = self.correct = self.labelled = 0

    @property
    def floor(self) -> Float32[np.ndarray, " unit"]:
        """Score of every unit's last rank: what a new hit must reach to enter."""
        return self.score[:, -1].copy()

    @property
    def examples(self) -> dict[str, Entries]:
        """By ranking."""
        return {name: shortlist.entries() for name, shortlist in self._shortlists.items()}

    def examples_of(self, ranking: Ranking, units: slice) -> Entries:
        """Of some units."""
        return self._shortlists[ranking.name].entries(units)

    @property
    def example_floors(self) -> dict[str, Floor]:
        """By ranking: what a new image must reach to enter."""
        return {name: shortlist.floor for name, shortlist in self._shortlists.items()}

    def add(self, partial: Partial) -> None:
        """Fold one more partial result in.  Sums depend on the order of calls: shard order."""
        self.add_hits(partial.hits)
        for name, shortlist in self._shortlists.items():
            if name in partial.examples:
                shortlist.add(partial.examples[name])
        if self.spare:
            self.norms = self.norms.plus(partial.norms, self.spare)
        self.sums.maxima.__iadd__(partial.sums.maxima)
        self.sums.active.__iadd__(partial.sums.active)
        self.sums.histogram.__iadd__(partial.sums.histogram)
        self.images += partial.images
        self.skipped += partial.skipped
        self.correct += partial.correct
        self.labelled += partial.labelled

    def add_hits(self, hits: Hits) -> None:
        """Fold hits in, without what is added up."""
        # Nearly all are below by now, and sorting is what costs; an equal one may win its tie.
        hits = hits.take(hits.score >= self.score[hits.unit, -1])
        touched = np.unique(hits.unit)
        kept, rank = strongest(self._hits_of(touched) + hits, self.k)
        self.score[touched] = MISSING_SCORE
        self.image[touched] = MISSING_IMAGE
        self.position[touched] = -1
        self.score[kept.unit, rank] = kept.score
        self.image[kept.unit, rank] = kept.image
        self.position[kept.unit, rank] = kept.position
        self.content[kept.unit, rank] = kept.content

    def _hits_of(self, units: np.ndarray) -> Hits:
        row, rank = np.nonzero(self.image[units] != MISSING_IMAGE)
        unit = units[row]
        return Hits(
            unit.astype(np.int32),
            self.score[unit, rank],
            self.image[unit, rank],
            self.position[unit, rank],
            self.content[unit, rank],
        )

    def to_partial(self) -> Partial:
        """Everything folded so far, as one partial result."""
        hits = self._hits_of(np.arange(len(self.score)))
        counts = self.images, self.skipped, self.correct, self.labelled
        return Partial(hits, self.sums, *counts, self.examples, self.norms)

    def without(self, outliers: Iterable[LeftOut], index: UnitIndex, k: int) -> "Fold":
        """The k strongest hits of each unit among images that its layer does not leave out."""
        hits = self._hits_of(np.arange(len(self.score)))
        out = np.zeros(len(hits), dtype=bool)
        for number, left_out in enumerate(outliers):
            units = index.units_of(number)
            inside = (hits.unit >= units.start) & (hits.unit < units.stop)
            out |= inside & np.isin(hits.content, left_out.content)
        fold = self.bare(k)
        fold.add_hits(hits.take(~out))
        return fold

    def bare(self, k: int) -> "Fold":
        """The same without hits, with room for k of each unit."""
        fold = Fold(len(self.score), k, self.rankings)
        fold.sums, fold.norms, fold._shortlists = self.sums, self.norms, self._shortlists
        fold.images, fold.skipped = self.images, self.skipped
        fold.correct, fold.labelled = self.correct, self.labelled
        return fold


def empty_fold(spec: JobSpec, index: UnitIndex) -> Fold:
    """What the partial results of a scan are folded into: all that the spec asks for."""
    top = spec.top
    layers = index.layers if top.outliers else 0
    spare = top.outliers.at_most if top.outliers else 0
    return Fold(index.total, kept_by(spec), rankings_of(top, spec.seed), layers, spare)


def kept_by(spec: JobSpec) -> int:
    """Hits the scan keeps of every unit: those asked for, and spare ones.

    Spare are those whose images may be left out as outliers.  Of a scan that only finds candidates
    they cover its inexactness: bfloat16 differs in the third digit.
    """
    top = spec.top
    if spec.compute.exact:
        return top.k + (top.outliers.at_most if top.outliers else 0)
    return 2 * top.k


def outliers_of(top: TopSpec, fold: Fold) -> tuple[LeftOut, ...]:
    """Of every layer; none where the spec leaves no outliers out."""
    return tuple(fold.norms.outliers(top.outliers.multiple)) if top.outliers else ()


def without_outliers(top: TopSpec, index: UnitIndex, fold: Fold) -> Fold:
    """The hits that are written."""
    outliers = outliers_of(top, fold)
    return fold.without(outliers, index, top.k) if outliers else fold
