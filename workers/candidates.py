"""Candidates: a fast scan finds images that may be among the strongest, an exact one decides.

A scan in bfloat16 (``compute.precision``) is faster, but differs in the third digit.  So it keeps
more hits of every unit than are asked for, and all images that any unit has among them are scanned
once more, exactly.  What is stored are the strongest of those, with the bits of an exact scan over
everything, unless an image that is among them was not even a candidate; ``Judgement`` says for how
many units that cannot be ruled out.

Means, densities, histograms and predicted classes are those of the fast scan.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from deconvoy.schema import MISSING_IMAGE
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


@dataclass(frozen=True)
class Judgement:
    """How far the candidates can be trusted."""

    images: int
    """That were scanned again."""
    largest_difference: float
    """Between a candidate's score and its exact one, over the largest of its layer."""
    open_units: int
    """Units of which an image that was no candidate could be among the strongest: the score of the
    last candidate and the largest difference seen in its layer reach the last of the strongest."""
    faint_units: int
    """Units of which all candidates are hits, with room left: they could lack some that are no
    stronger than the largest difference seen in their layer."""


def judge(candidates: Fold, exact: Fold, index: UnitIndex) -> Judgement:
    """Compare a fast scan's candidates with the exact hits among their images."""
    errors, scores = _errors(candidates, exact), np.abs(_finite(exact.score))
    last, ninth = (fold.score[:, -1].astype(np.float64) for fold in (candidates, exact))
    is_open, relative = np.zeros(len(errors), dtype=bool), 0.0
    full = np.isfinite(last)
    for layer in range(index.layers):
        units = index.units_of(layer)
        error, largest = float(errors[units].max()), float(scores[units].max())
        relative = max(relative, error / largest if largest else 0.0)
        # With room left, every image that excited the unit in the fast scan is a candidate.
        is_open[units] = full[units] & (last[units] + error >= ninth[units])
    faint = ~full & ~np.isfinite(ninth)
    images = len(candidate_images(candidates))
    return Judgement(images, relative, int(is_open.sum()), int(faint.sum()))


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
