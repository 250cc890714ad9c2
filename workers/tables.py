"""What the arrays of a layer hold, by the fold: the driver writes it, ``verify`` compares with it.

Pure, and without torch.  Boxes, windows and pictures need the model and are not among them.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from deconvoy.schema import EXAMPLE_ARRAYS, OUTLIER_ARRAYS, ArrayField
from deconvoy.spec import TopSpec
from workers.examples import Entries, Ranking, bands_of_bins, lowest
from workers.outliers import LeftOut
from workers.topk import Fold, UnitSums

Arrays = Mapping[str, np.ndarray]


def sums_of(fold: Fold, units: slice) -> UnitSums:
    sums = fold.sums
    return UnitSums(sums.maxima[units], sums.active[units], sums.histogram[units])


def hit_arrays(fold: Fold, units: slice, label: Int64[np.ndarray, "unit rank"]) -> Arrays:
    """The hits of a layer's units.

    Args:
        label: of all units' hits.
    """
    return {
        "score": fold.score[units],
        "image": fold.image[units],
        "label": label[units],
        "position": fold.position[units],
    }


def sum_arrays(sums: UnitSums, images: int) -> Arrays:
    """What is known of every unit over the ``images`` readable ones."""
    return {
        "mean": sums.maxima / max(images, 1),
        "density": sums.active / max(images, 1),
        "histogram": sums.histogram,
    }


def entries_of(fold: Fold, units: slice, ranking: Ranking) -> Entries:
    """What a ranking has kept for a layer's units, counted from its first."""
    entries = fold.examples_of(ranking, units)
    return replace(entries, unit=entries.unit - np.int32(units.start))


def example_fields(ranking: Ranking) -> tuple[ArrayField, ...]:
    """The arrays a ranking is written to."""
    return tuple(f for f in EXAMPLE_ARRAYS if f.name.startswith(f"{ranking.name}_"))


def example_arrays(
    ranking: Ranking,
    entries: Entries,
    histogram: Int64[np.ndarray, "unit bin"],
    top: TopSpec,
    outputs: int,
) -> Arrays:
    """The arrays of a ranking, for one layer."""
    groups = outputs if ranking.name == "class" else 1
    if ranking.name == "band":
        assert top.bands is not None
        groups = top.bands.count
        band = bands_of_bins(histogram, groups)[entries.unit, entries.group]
        entries = replace(entries, group=band.astype(np.int32))
    kept, rank = lowest(entries, ranking.k)
    shape: tuple[int, ...] = (len(histogram), groups, ranking.k)
    place: tuple[np.ndarray, ...] = (kept.unit, kept.group, rank)
    if ranking.name == "bottom":
        shape, place = (len(histogram), ranking.k), (kept.unit, rank)
    found: dict[str, np.ndarray] = {}
    for field in example_fields(ranking):
        found[field.name] = np.full(shape, field.fill, field.dtype)
        found[field.name][place] = kept.score if field.name.endswith("score") else kept.image
    return found


def outlier_arrays(outliers: LeftOut, at_most: int) -> Arrays:
    """The images a layer's hits leave out, filled up to as many as may be."""
    found: dict[str, np.ndarray] = {}
    for field, values in zip(OUTLIER_ARRAYS, (outliers.image, outliers.norm), strict=True):
        found[field.name] = np.full(at_most, field.fill, field.dtype)
        found[field.name][: len(values)] = values
    return found


def outlier_limit(outliers: LeftOut) -> float | None:
    """As the attribute of the layer says it: JSON has no infinity."""
    return outliers.limit if np.isfinite(outliers.limit) else None
