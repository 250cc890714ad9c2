"""What the driver sends to a worker and what comes back: plain data that pickles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int32, Int64

from deconvoy.spec import StorageSpec, Transform
from workers.datasets import ImageRef
from workers.examples import Floor, Ranking
from workers.models import PackedModel
from workers.sources import Source
from workers.topk import Partial


@dataclass(frozen=True)
class Assignment:
    """All a worker needs to know for the whole job."""

    model: PackedModel
    source: Source
    transform: Transform
    layers: tuple[str, ...]
    """Of the scan, in execution order."""
    k: int
    """Hits of every unit."""
    batch_size: int
    shard_size: int
    storage: StorageSpec
    url: str
    """Of the run."""
    threads: int
    distinct: bool = False
    """Images with the same pixels count once among the hits."""
    only_wrong: bool = False
    """Leave out images that are predicted to be what they are labelled."""
    rankings: tuple[Ranking, ...] = ()
    """What is kept besides the strongest hits."""
    spare: int = 0
    """Hits the scan keeps besides: images of a layer that may be left out as outliers."""
    labelled: bool = True
    """Whether the data carries labels; where not, an image counts for its predicted class."""
    cuda: bool = True
    """Compute on a GPU where there is one."""


@dataclass(frozen=True)
class ScanLease:
    """Scan these images."""

    item: str
    images: Sequence[ImageRef]
    floor: Float32[np.ndarray, " unit"]
    attempt: int = 0
    example_floors: Mapping[str, Floor] = field(default_factory=dict)
    """By ranking."""

    def granted(self, attempt: int) -> "ScanLease":
        return replace(self, attempt=attempt)


@dataclass(frozen=True)
class ScanResult:
    partial: Partial
    images: pa.Table
    """Columns of ``deconvoy.schema.IMAGE_COLUMNS``."""
    bad: tuple[tuple[str, str], ...]
    """The first unreadable images and why."""


@dataclass(frozen=True)
class ProjectionLease:
    """Project the hits of these units of one layer, and write the Zarr shards they fill."""

    item: str
    layer: str
    start: int
    """First unit of the Zarr shard."""
    stop: int
    units: Int64[np.ndarray, " unit"]
    """Those to compute."""
    score: Float32[np.ndarray, "unit rank"]
    image: Int64[np.ndarray, "unit rank"]
    position: Int32[np.ndarray, "unit rank yx"]
    attempt: int = 0
    reuse: float = 1.0
    """How many leases of the layer an image is in, on average; from the hits alone."""

    def granted(self, attempt: int) -> "ProjectionLease":
        return replace(self, attempt=attempt)


@dataclass(frozen=True)
class ProjectionResult:
    projections: int
    images: int
    """Distinct images decoded and forwarded."""


def reuse_of(images: Sequence[Int64[np.ndarray, "_ rank"]]) -> float:
    """How many of a layer's leases an image is in, on average.

    Args:
        images: those of the hits of each lease; -1 where there is none.
    """
    own = [np.unique(part[part >= 0]) for part in images]
    distinct = len(np.unique(np.concatenate(own))) if own else 0
    return sum(map(len, own)) / distinct if distinct else 1.0
