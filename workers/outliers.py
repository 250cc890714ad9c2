"""Leave images out of a layer's hits that excite all of it: test cards, text, adversarial patterns.

In every layer an image has a norm, the Euclidean one of its image maxima.  Outliers are images of a
norm above a multiple of the median image's.  The median comes from a histogram and the outliers
from a ranking, so both fold exactly; and the scan keeps as many hits more than asked for as images
may be left out, so the strongest of the others are all there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Int64

from workers.examples import Entries, Maxima, lowest

NORM_EDGES: Float64[np.ndarray, " edge"] = 2.0 ** (np.arange(-640, 641) / 32)
"""Inner edges of the norms' histogram: 32 bins an octave, so a median is right to 2 %."""

NORM_BINS = len(NORM_EDGES) + 1


@dataclass(frozen=True)
class Norms:
    """The norms of some images in every layer."""

    histogram: Int64[np.ndarray, "layer bin"]
    largest: Entries
    """Images of the largest norms; ``unit`` is the layer's number, ``key`` minus the norm."""

    @staticmethod
    def none(layers: int = 0) -> "Norms":
        return Norms(np.zeros((layers, NORM_BINS), np.int64), Entries.none())

    def plus(self, other: "Norms", at_most: int) -> "Norms":
        largest = lowest(Entries.joined([self.largest, other.largest]), at_most)[0]
        return Norms(self.histogram + other.histogram, largest)

    def median(self) -> Float64[np.ndarray, " layer"]:
        """Of every layer: the lower edge of the bin that holds the middle image; 0 where that image
        excites nothing."""
        middle = (self.histogram.sum(1, keepdims=True) + 1) // 2
        bin_ = (self.histogram.cumsum(1) >= middle).argmax(1)
        found: Float64[np.ndarray, " layer"] = np.where(bin_ > 0, NORM_EDGES[bin_ - 1], 0.0)
        return found

    def outliers(self, multiple: float) -> "Iterator[LeftOut]":
        """Of every layer.  Where the median image excites nothing, no image is an outlier."""
        for layer, median in enumerate(self.median()):
            limit = float(multiple * median) if median > 0 else np.inf
            own = self.largest.take((self.largest.unit == layer) & (-self.largest.key > limit))
            order = np.lexsort((own.image, own.key))
            yield LeftOut(limit, own.image[order], own.content[order], -own.key[order])


@dataclass(frozen=True)
class LeftOut:
    """Images left out of the hits of one layer, largest norm first."""

    limit: float
    """Norm above which an image is left out."""
    image: Int64[np.ndarray, " outlier"]
    content: Int64[np.ndarray, " outlier"]
    """As of hits: where equal images count once, all of them are left out."""
    norm: Float64[np.ndarray, " outlier"]


@dataclass
class NormScan:
    """The running result of one lane of a shard."""

    layers: Sequence[slice]
    """Units of each layer."""
    at_most: int
    norms: Norms = field(init=False)

    def __post_init__(self) -> None:
        self.norms = Norms.none(len(self.layers))

    def add(self, batch: Maxima) -> None:
        scores = batch.scores[batch.eligible].astype(np.float64)
        ids, content = batch.ids[batch.eligible], batch.content[batch.eligible]
        # Row by row: a norm must not depend on which images share the batch.
        norm = np.array(
            [[np.sqrt(np.square(row[units]).sum()) for units in self.layers] for row in scores]
        ).reshape(len(ids), len(self.layers))
        histogram = np.zeros((len(self.layers), NORM_BINS), np.int64)
        layer = np.broadcast_to(np.arange(len(self.layers)), norm.shape)
        np.add.at(histogram, (layer, np.searchsorted(NORM_EDGES, norm, side="right")), 1)
        image, content = (np.repeat(column, len(self.layers)) for column in (ids, content))
        found = Entries(
            layer.ravel().astype(np.int32), np.zeros(norm.size, np.int32), -norm.ravel(),
            norm.ravel().astype(np.float32), image, content,
        )  # fmt: skip
        self.norms = self.norms.plus(Norms(histogram, found), self.at_most)
