"""Candidates: a fast scan finds images that may be among the strongest, an exact one decides.

A scan in another layout or type (``compute.layout``, ``compute.precision``) is faster, but differs
in the last bits, or in bfloat16 in the third digit.  So it keeps more hits of every unit than are
asked for, and all images that any unit has among them are scanned once more, exactly.  What is
stored are the strongest of those, with the bits of an exact scan over everything, unless an image
that is among them was not even a candidate; ``Judgement`` says for how many units that cannot be
ruled out.

Means, densities, histograms and predicted classes are those of the fast scan.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from deconvoy.schema import MISSING_IMAGE
from deconvoy.store import RunStore
from workers.job import Job
from workers.leases import ScanLease, ScanResult
from workers.parts import spans
from workers.stages import Work
from workers.topk import Fold, Partial, UnitIndex


def candidate_images(candidates: Fold) -> Int64[np.ndarray, " image"]:
    """Ids of all images that any unit has among its candidates, in reading order."""
    found: Int64[np.ndarray, " image"] = np.unique(candidates.image)
    images: Int64[np.ndarray, " image"] = found[found != MISSING_IMAGE]
    return images


def decided(candidates: Fold, partials: Iterable[Partial], k: int) -> Fold:
    """The exact hits, with the sums of the fast scan."""
    fold = candidates.bare(k)
    for partial in partials:
        fold.add_hits(partial.hits)
    return fold


class Rescan:
    """The exact scan of the images that hold candidates, part by part."""

    def __init__(self, job: Job, run: RunStore, candidates: Fold) -> None:
        self._job, self._run = job, run
        self._candidates = candidates
        self._images = candidate_images(candidates)
        self._parts = spans([len(self._images)], job.spec.compute.shard_size)
        self.fold = decided(candidates, (), job.k)

    def work(self) -> Work:
        """What is left of it; parts that are committed are folded now."""
        names = {f"rescan/part-{part:06d}": part for part in range(len(self._parts))}
        left = [name for name in names if not self._run.exists(_path(name))]
        for name in names:
            if name not in left:
                self._fold(name)

        def lease_of(name: str) -> ScanLease:
            begin, end = self._parts[names[name]]
            refs = [self._job.ref(image) for image in self._images[begin:end].tolist()]
            return ScanLease(name, refs, self.fold.floor)

        def commit(name: str, result: ScanResult) -> int:
            self._run.write(_path(name), result.partial.to_bytes())
            self._fold(name)
            return size(name)

        def size(name: str) -> int:
            begin, end = self._parts[names[name]]
            return end - begin

        done = len(self._images) - sum(map(size, left))
        return Work("rescan", left, lease_of, commit, done, len(self._images))

    def _fold(self, name: str) -> None:
        self.fold.add_hits(Partial.from_bytes(self._run.read(_path(name)), name).hits)

    def judgement(self) -> "Judgement":
        return judge(self._candidates, self.fold, self._job.index)


def _path(name: str) -> str:
    return f"ledger/{name}.npz"


@dataclass(frozen=True)
class Judgement:
    """How far the candidates can be trusted."""

    images: int
    """That were scanned again."""
    largest_difference: float
    """Between a candidate's score and its exact one, over the largest of its layer."""
    open_units: int
    """Units of which an image that was no candidate could be among the strongest: the score of the
    last candidate and the largest difference of its layer reach the last of the strongest."""


def judge(candidates: Fold, exact: Fold, index: UnitIndex) -> Judgement:
    """Compare a fast scan's candidates with the exact hits among their images."""
    errors, scores = _errors(candidates, exact), np.abs(_finite(exact.score))
    last, ninth = (fold.score[:, -1].astype(np.float64) for fold in (candidates, exact))
    is_open, relative = np.zeros(len(errors), dtype=bool), 0.0
    for layer in range(index.layers):
        units = index.units_of(layer)
        error, largest = float(errors[units].max()), float(scores[units].max())
        relative = max(relative, error / largest if largest else 0.0)
        # With fewer candidates than there was room for, every image that excites the unit is one.
        is_open[units] = np.isfinite(last[units]) & (last[units] + error >= ninth[units])
    return Judgement(len(candidate_images(candidates)), relative, int(is_open.sum()))


def _errors(candidates: Fold, exact: Fold) -> Float64[np.ndarray, " unit"]:
    """The largest difference of the two scores over the hits that both have."""
    found = np.zeros(len(exact.score))
    first, second = _finite(candidates.score), _finite(exact.score)
    for rank in range(exact.k):
        image = exact.image[:, rank, None]
        same: Bool[np.ndarray, "unit rank"] = (candidates.image == image) & (image != MISSING_IMAGE)
        apart = np.abs(first - second[:, rank, None])
        found = np.maximum(found, np.where(same, apart, 0.0).max(axis=1))
    return found


def _finite(score: Float32[np.ndarray, "unit rank"]) -> Float64[np.ndarray, "unit rank"]:
    """With zeros for what is missing."""
    finite: Float64[np.ndarray, "unit rank"] = np.where(np.isfinite(score), score, 0.0).astype("f8")
    return finite
