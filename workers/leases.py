"""What the driver sends to a worker and what comes back: plain data that pickles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Float64, Int32, Int64

from deconvoy.spec import Method, StorageSpec, Transform
from workers.datasets import ImageRef
from workers.examples import Floor, Ranking
from workers.folds import ProbeFits
from workers.grids import Grid
from workers.models import PackedModel
from workers.sources import Source
from workers.topk import Hits, Partial
from workers.training import Recipe
from workers.transformations import Border, Move


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
    method: Method = "deconvnet"
    """Of the projections of hits."""
    distinct: bool = False
    """Images with the same pixels count once among the hits."""
    only_wrong: bool = False
    """Leave out images that are predicted to be what they are labelled."""
    rankings: tuple[Ranking, ...] = ()
    """What is kept besides the strongest hits."""
    spare: int = 0
    """Hits the scan keeps besides: images of a layer that may be left out as outliers."""
    kept: int = 0
    """Hits of every unit that the scan keeps: k, and spare ones."""
    precision: str = "float32"
    """Of the scan; other than float32 it only finds candidates."""
    labelled: bool = True
    """Whether the data carries labels; where not, an image counts for its predicted class."""
    cuda: bool = True
    """Compute on a GPU where there is one."""
    probing: "ProbeAssignment | None" = None
    checkpoints: tuple[PackedModel, ...] = ()
    """The same model as it was before, in training order."""
    roots: tuple[str, ...] | None = None
    """Below which alone images may be read (``deconvoy.fence``); None: anywhere."""


@dataclass(frozen=True)
class ProbeAssignment:
    """What a worker needs to know of a probe."""

    source: Source
    layers: tuple[str, ...]
    pool: str | int
    features: int
    random: PackedModel | None
    """The model with random weights, where it is probed, too."""
    start: PackedModel | None = None
    """The same, where it is trained from there."""


@dataclass(frozen=True)
class ScanLease:
    """Scan these images."""

    item: str
    images: Sequence[ImageRef]
    floor: Float32[np.ndarray, " unit"]
    attempt: int = 0
    example_floors: Mapping[str, Floor] = field(default_factory=dict)
    """By ranking."""
    candidates: bool = False
    """Find candidates the fast way, more than are asked for."""

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
    """How many leases of the layer an image is in, about: ``expected_reuse``."""

    def granted(self, attempt: int) -> "ProjectionLease":
        return replace(self, attempt=attempt)


@dataclass(frozen=True)
class ProjectionResult:
    projections: int
    images: int
    """Distinct images decoded and forwarded."""


@dataclass(frozen=True)
class OcclusionLease:
    """Slide a grey square over one image, and write its row of the arrays."""

    item: str
    row: int
    image: int
    label: int | None
    """Its class; None where unknown: then the most probable one is watched."""
    grid: Grid
    fill: tuple[float, ...]
    """0–255, a number a channel."""
    top5: bool = False
    boxes: Float64[np.ndarray, "box x0y0x1y1"] | None = None
    """Of its objects, in the file's pixels; None where the run keeps none."""
    most_boxes: int = 0
    """Rows there are for them."""
    attempt: int = 0

    def granted(self, attempt: int) -> "OcclusionLease":
        return replace(self, attempt=attempt)


@dataclass(frozen=True)
class UnitOcclusionLease:
    """Slide a square over the receptive fields of these units' hits, and write their shard."""

    item: str
    layer: str
    start: int
    image: Int64[np.ndarray, "unit rank"]
    position: Int32[np.ndarray, "unit rank yx"]
    patch: int
    stride: int
    shape: tuple[int, int]
    """Of a hit's grid, at most."""
    fill: tuple[float, ...]
    attempt: int = 0

    def granted(self, attempt: int) -> "UnitOcclusionLease":
        return replace(self, attempt=attempt)


@dataclass(frozen=True)
class OcclusionResult:
    positions: int
    """Of the square."""


@dataclass(frozen=True)
class InvarianceLease:
    """Move one image in every way, and write its row of the arrays."""

    item: str
    row: int
    image: int
    label: int | None
    """Its class; None where unknown: then the most probable one is watched."""
    moves: tuple[Move, ...]
    border: Border
    fill: tuple[float, ...]
    """0–255, a number a channel."""
    attempt: int = 0

    def granted(self, attempt: int) -> "InvarianceLease":
        return replace(self, attempt=attempt)


@dataclass(frozen=True)
class InvarianceResult:
    moves: int


@dataclass(frozen=True)
class EvolutionScanLease:
    """Scan these images by the network of every checkpoint."""

    item: str
    images: Int64[np.ndarray, " image"]
    """Ids; all were read by the scan."""
    floor: Float32[np.ndarray, "checkpoint unit"]
    attempt: int = 0

    def granted(self, attempt: int) -> "EvolutionScanLease":
        return replace(self, attempt=attempt)


@dataclass(frozen=True)
class EvolutionScanResult:
    hits: tuple[Hits, ...]
    """Of each checkpoint."""


@dataclass(frozen=True)
class EvolutionProjectionLease:
    """Project the strongest hit of these units at every checkpoint and at the end, and write the
    Zarr shard they fill."""

    item: str
    layer: str
    start: int
    """First unit of the Zarr shard."""
    stop: int
    units: Int64[np.ndarray, " unit"]
    score: Float32[np.ndarray, "unit checkpoint"]
    """The last one is the end."""
    image: Int64[np.ndarray, "unit checkpoint"]
    position: Int32[np.ndarray, "unit checkpoint yx"]
    attempt: int = 0

    def granted(self, attempt: int) -> "EvolutionProjectionLease":
        return replace(self, attempt=attempt)


@dataclass(frozen=True)
class CorrespondenceLease:
    """Cover one box in each of some images, in several ways, and write how differently they
    change."""

    item: str
    part: int
    """Row of the arrays."""
    start: int
    """First draw."""
    images: Int64[np.ndarray, " image"]
    """Ids."""
    boxes: Int32[np.ndarray, "draw image 4"]
    """y0, x0, y1, x1 in pixels of the preprocessed image."""
    fill: tuple[float, ...]
    """0–255, a number a channel."""
    attempt: int = 0

    def granted(self, attempt: int) -> "CorrespondenceLease":
        return replace(self, attempt=attempt)


@dataclass(frozen=True)
class CorrespondenceResult:
    images: int
    """Covered, of all draws together."""


@dataclass(frozen=True)
class ProbeFeaturesLease:
    """Write the features of some images of a probe's data, of every layer."""

    item: str
    weights: int
    """0: those of the model; 1: random ones."""
    start: int
    """First row."""
    uris: tuple[str, ...]
    attempt: int = 0

    def granted(self, attempt: int) -> "ProbeFeaturesLease":
        return replace(self, attempt=attempt)


@dataclass(frozen=True)
class ProbeLease:
    """Classify by the features of one layer, in every way that is asked for."""

    item: str
    weights: int
    layer: int
    """Row of the arrays."""
    fits: ProbeFits
    attempt: int = 0

    def granted(self, attempt: int) -> "ProbeLease":
        return replace(self, attempt=attempt)


@dataclass(frozen=True)
class ProbeResult:
    done: int
    """Images, or fits."""


@dataclass(frozen=True)
class ScratchLease:
    """Train the whole network on these images of a probe's data, and judge it by others."""

    item: str
    classes: int
    """The first so many outputs stand for them."""
    recipe: Recipe
    seed: int
    """Of the order of the images, and of dropout."""
    train: tuple[str, ...]
    """Uris, as those of ``test``."""
    train_label: Int64[np.ndarray, " learned"]
    test: tuple[str, ...]
    test_label: Int64[np.ndarray, " judged"]
    attempt: int = 0

    def granted(self, attempt: int) -> "ScratchLease":
        return replace(self, attempt=attempt)


@dataclass(frozen=True)
class ScratchResult:
    accuracy: float
    """Mean over the classes, 0–1."""


@dataclass(frozen=True)
class LabelledImages:
    """Images of which all labels are known."""

    source: Source
    uris: tuple[str, ...]
    labels: Int64[np.ndarray, " image"]
    max_bad: float
    """Share of unreadable ones above which nothing can be learned."""
    field: str
    """Of the spec, that they come from."""

    def __len__(self) -> int:
        return len(self.uris)


@dataclass(frozen=True)
class StudyAssignment:
    """All a worker needs to know for a whole study."""

    base: str
    arguments: tuple[Mapping[str, Any], ...]
    """Of the factory, by network."""
    transform: Transform
    training: LabelledImages
    validation: LabelledImages
    recipe: Recipe
    dropout: float
    kept_epochs: tuple[int, ...]
    """After which weights are kept."""
    seed: int
    url: str
    """Of the run."""
    threads: int
    cuda: bool = True
    """Compute on a GPU where there is one."""
    roots: tuple[str, ...] | None = None
    """Below which alone images may be read (``deconvoy.fence``); None: anywhere."""


AnyAssignment = Assignment | StudyAssignment


@dataclass(frozen=True)
class TrainingLease:
    """Train one network, from its start or from where another attempt left off."""

    item: str
    network: int
    repeat: int
    attempt: int = 0

    def granted(self, attempt: int) -> "TrainingLease":
        return replace(self, attempt=attempt)


@dataclass(frozen=True)
class TrainingResult:
    loss: Float64[np.ndarray, " epoch"]
    running_error: Float64[np.ndarray, " epoch"]
    validation_error: Float64[np.ndarray, "epoch top"]
    training_error: Float64[np.ndarray, " top"]
    filter: Float32[np.ndarray, "unit row col channel"]
    rms: Float64[np.ndarray, " unit"]
    peak: Float32[np.ndarray, " unit"]
    frequency: Float64[np.ndarray, "unit band"]
    images: int
    """Read, learned from and judged, of all epochs together."""
    skipped: tuple[int, int]
    """Unreadable images, for training and for validation."""
    weights: dict[str, str]
    """sha256 of the weights that were kept, by path in the run."""
    diverged: int = 0
    """Epoch in which loss or weights were not finite any more, from which on everything here is
    NaN; 0 if they always were."""


JobLease = (
    ScanLease
    | ProjectionLease
    | OcclusionLease
    | UnitOcclusionLease
    | InvarianceLease
    | EvolutionScanLease
    | EvolutionProjectionLease
    | CorrespondenceLease
    | ProbeFeaturesLease
    | ProbeLease
    | ScratchLease
)
Lease = JobLease | TrainingLease
Result = (
    ScanResult
    | ProjectionResult
    | OcclusionResult
    | InvarianceResult
    | EvolutionScanResult
    | CorrespondenceResult
    | ProbeResult
    | ScratchResult
    | TrainingResult
)
