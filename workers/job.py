"""Settle everything a job needs before it starts: model, images, layers, work items.

What is settled here is written into the run, and ``resume`` settles it again and compares: a run
goes on only with the weights, the images and the batch size it began with.
"""

import bisect
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn

from deconvoy.errors import ModelUnsupported, RequestError
from deconvoy.spec import ComputeSpec, Ids, JobSpec, Transform
from deconvoy.store import RunStore
from workers.boxes import Boxes, boxes_of, digest_of
from workers.choice import choose, chosen_units
from workers.correspondence_items import Corresponding, corresponding_of
from workers.datasets import ImageRef, Listing, list_images
from workers.evolution_items import Evolving, evolving_of
from workers.examples import Ranking, rankings_of
from workers.graph import Layer, Network
from workers.image_choice import require_readable
from workers.invariance_items import Moving, moving_of
from workers.leases import Assignment
from workers.models import PackedModel, pack
from workers.numerics import LAYOUTS
from workers.occlusion_items import Occluding, occluding_of
from workers.outliers import LeftOut
from workers.part_boxes import PartBoxes, digest_of_parts, part_boxes_of
from workers.portions import portions_on
from workers.probe_items import Probing, probing_of
from workers.projector import expected_reuse
from workers.topk import (
    Fold,
    UnitIndex,
    empty_fold,
    kept_by,
    outliers_of,
    without_outliers,
)
from workers.weights import first_line
from workers.writer import units_per_item

BATCH_LIMITS = (4, 128)

MAX_EXAMPLES = 5_000_000
"""Entries of rankings that the driver and a marker hold at most, of 40 bytes each."""


@dataclass(frozen=True)
class ProjectionItem:
    """One Zarr shard of pictures to fill."""

    name: str
    layer: Layer
    start: int
    stop: int
    units: Int64[np.ndarray, " unit"]
    """Those of it to compute."""
    reuse: float = 1.0
    """How many items of the layer an image of this one is in, about."""


@dataclass(frozen=True)
class Job:
    """A job spec with all that follows from it."""

    spec: JobSpec
    packed: PackedModel
    listing: Listing
    layers: tuple[Layer, ...]
    """Chosen ones, in execution order."""
    outputs: int
    batch_size: int
    occluding: Occluding | None = None
    moving: Moving | None = None
    evolving: Evolving | None = None
    boxes: Boxes | None = None
    """Where objects are, where the data says so."""
    corresponding: Corresponding | None = None
    probing: Probing | None = None
    part_boxes: PartBoxes | None = None
    """Where their parts are, where the data says so."""

    @property
    def compute(self) -> ComputeSpec:
        return self.spec.compute

    @property
    def transform(self) -> Transform:
        return self.packed.transform

    @property
    def transform_from(self) -> str:
        return self.packed.transform_from

    @property
    def k(self) -> int:
        return self.spec.top.k

    @property
    def rankings(self) -> tuple[Ranking, ...]:
        return rankings_of(self.spec.top, self.spec.seed)

    @property
    def spare(self) -> int:
        """Hits the scan keeps besides k: images of a layer that may be left out as outliers."""
        return self.spec.top.outliers.at_most if self.spec.top.outliers else 0

    def empty_fold(self) -> Fold:
        return empty_fold(self.spec, self.index)

    def outliers(self, fold: Fold) -> tuple[LeftOut, ...]:
        """Of every layer; none where the spec leaves no outliers out."""
        return outliers_of(self.spec.top, fold)

    def without_outliers(self, fold: Fold) -> Fold:
        """The hits that are written."""
        return without_outliers(self.spec.top, self.index, fold)

    def example_entries(self) -> int:
        """At most so many entries of all rankings together."""
        return sum(self.index.total * r.groups(self.outputs) * r.k for r in self.rankings)

    @property
    def index(self) -> UnitIndex:
        return UnitIndex.of([layer.units for layer in self.layers])

    @property
    def shards(self) -> int:
        return len(self._spans)

    @cached_property
    def _spans(self) -> list[tuple[int, int]]:
        return self.listing.shards(self.spec.compute.shard_size)

    def shard(self, part: int) -> tuple[int, int]:
        """Places in the listing: the first image of a shard, and one past its last."""
        return self._spans[part]

    def refs(self, part: int) -> list[ImageRef]:
        """The images of a shard.  Their ids count from the shard's number times its size, so that
        the part of the images table follows from an id; they need not be dense."""
        start, stop = self.shard(part)
        first = part * self.spec.compute.shard_size
        return [self.ref(first + row) for row in range(stop - start)]

    def ref(self, image_id: int) -> ImageRef:
        """An image by its id."""
        place, listing = self.place_of(image_id), self.listing
        return ImageRef(image_id, listing.uris[place], listing.labels[place])

    def place_of(self, image_id: int) -> int:
        """Where an image is in the listing."""
        part, row = divmod(image_id, self.spec.compute.shard_size)
        return self.shard(part)[0] + row

    def id_of(self, place: int) -> int:
        """Of the image at a place in the listing."""
        part = bisect.bisect_right(self._spans, place, key=lambda span: span[0]) - 1
        return part * self.spec.compute.shard_size + place - self.shard(part)[0]

    @property
    def labels_from(self) -> str:
        """Where the classes of the hits come from, for people."""
        found = self.listing.labels_from
        if not self.listing.labelled:
            return f"{found}; the predicted class is used"
        known = sum(label is not None for label in self.listing.labels)
        images = len(self.listing)
        return found if known == images else f"{found}, for {known:,} of {images:,} images"

    @property
    def unprojected(self) -> str:
        """Why nothing is projected although it is asked for, for people; empty where that is not
        so."""
        if self.spec.projection is None or self.projected_layers():
            return ""
        reasons = [
            f"{layer.name}: {layer.obstacle or 'neurons, which are projected only where named'}"
            for layer in self.layers
        ]
        more = f"; and {len(reasons) - 3:,} more layers" if reasons[3:] else ""
        return f"none can be made ({'; '.join(reasons[:3])}{more})"

    @property
    def weights_from(self) -> str:
        """Where the weights come from, for people: random ones are easily taken for trained."""
        model = self.spec.model
        if model.weights is not None:
            return model.weights
        own = not model.name.startswith(("torchvision/", "deconvoy/"))
        how = "as the factory makes them; random ones by" if own else "random,"
        return f"none given: {how} seed {self.spec.seed}"

    def assignment(self, url: str, threads: int) -> Assignment:
        return Assignment(
            model=self.packed,
            source=self.listing.source,
            transform=self.packed.transform,
            layers=tuple(layer.name for layer in self.layers),
            k=self.k,
            batch_size=self.batch_size,
            shard_size=self.spec.compute.shard_size,
            storage=self.spec.storage,
            url=RunStore(url).absolute,
            threads=threads,
            method=self.spec.method,
            distinct=self.spec.data.distinct,
            only_wrong=self.spec.data.where is not None and self.spec.data.where.wrong,
            rankings=self.rankings,
            spare=self.spare,
            kept=kept_by(self.spec),
            precision=self.spec.compute.precision,
            labelled=self.listing.labelled,
            probing=self.probing.assignment() if self.probing else None,
            checkpoints=self.evolving.checkpoints if self.evolving else (),
            cuda=self.spec.compute.gpus_per_worker != 0,
        )

    def projected_layers(self) -> tuple[Layer, ...]:
        """Layers the projection analysis names.

        Raises:
            ModelUnsupported: one of them cannot be projected; names the operation.
        """
        asked = self.spec.projection
        if asked is None:
            return ()
        if asked.layers == "maps":
            return tuple(layer for layer in self.layers if layer.is_map and not layer.obstacle)
        chosen = choose(self.layers, asked.layers, "analyses.projection.layers")
        for layer in chosen:
            if layer.obstacle:
                raise ModelUnsupported(
                    f"Layer {layer.name!r} cannot be projected: {layer.obstacle}. Leave it out of "
                    "analyses.projection.layers; its top images are found all the same."
                )
        return chosen

    def projection_items(self) -> list[ProjectionItem]:
        """Work items of the projection, layer by layer; cut from the data alone."""
        asked = self.spec.projection
        items: list[ProjectionItem] = []
        for layer in self.projected_layers():
            assert asked is not None
            units = chosen_units(layer, asked, self.spec.seed)
            size = units_per_item(layer, self.k, self.spec.storage)
            cuts = [np.flatnonzero(units // size == part) for part in np.unique(units // size)]
            # Of the first place alone: it stays when a run is extended, and so do the bits.
            images = (self.listing.sizes or (len(self.listing),))[0]
            reuse = expected_reuse(len(cuts), self.k * len(units) // max(1, len(cuts)), images)
            for inside in (units[cut] for cut in cuts):
                start = int(inside[0]) // size * size
                stop = min(start + size, layer.units)
                name = f"projection/{layer.name}/item-{start // size:06d}"
                items.append(ProjectionItem(name, layer, start, stop, inside, reuse))
        if (
            asked is not None
            and isinstance(asked.units, Ids)
            and self.projected_layers()
            and not items
        ):
            raise RequestError(
                f"analyses.projection.units.ids {list(asked.units.ids)}: none of the layers to be "
                "projected has such a unit; units are counted from 0."
            )
        return items

    def require_doable(self) -> None:
        """Refuse, before anything is written or measured, what no run of this job could do.

        Raises:
            ModelUnsupported: a layer cannot be projected; names the operation.
            RequestError: a unit or an image that the spec names is not there, or cannot be read.
        """
        self.projection_items()
        analyses = {
            "occlusion": self.occluding,
            "invariance": self.moving,
            "correspondence": self.corresponding,
        }
        for kind, analysis in analyses.items():
            named = analysis.named if analysis else ()
            require_readable(named, self.listing, self.packed.transform, kind)

    def _candidates_from(self) -> dict[str, Any]:
        """How candidates are found, where the scan itself is not exact."""
        compute = self.spec.compute
        if compute.exact:
            return {}
        return {
            "candidates": {
                "dtype": compute.precision,
                "layout": "channels_last",
                "kept": kept_by(self.spec),
            }
        }

    def _checkpoints_sha256(self) -> list[str]:
        return [packed.sha256 for packed in self.evolving.checkpoints] if self.evolving else []

    def _digests(self) -> dict[str, str]:
        """Of the files that say where objects and their parts are, where there are any."""
        digests = {
            "boxes_sha256": digest_of(self.boxes),
            "parts_sha256": digest_of_parts(self.part_boxes),
        }
        return {name: digest for name, digest in digests.items() if digest}

    def provenance(self) -> dict[str, Any]:
        """What the results depend on."""
        return {
            "model": self.packed.name,
            "model_sha256": self.packed.sha256,
            "listing_fingerprint": self.listing.fingerprint,
            "images": len(self.listing),
            "places": list(self.listing.sizes or (len(self.listing),)),
            "outputs": self.outputs,
            "labels_from": self.labels_from,
            "transform": self.packed.transform.model_dump(mode="json"),
            "transform_from": self.packed.transform_from,
            "batch_size": self.batch_size,
            "dtype": "float32",
            "layout": LAYOUTS,
            **({"checkpoints_sha256": shas} if (shas := self._checkpoints_sha256()) else {}),
            **({"probe_fingerprint": self.probing.listing.fingerprint} if self.probing else {}),
            **self._digests(),
            **self._candidates_from(),
            "versions": versions(),
        }


def automatic_batch(network: Network, device_type: str) -> int:
    """As many images as a worker's device likes to have at once."""
    portions = portions_on(device_type)
    pixels = math.prod(network.input_shape[1:])
    largest = max(math.prod(step.shape) for step in network.steps if step.depends)
    low, high = BATCH_LIMITS
    fitting = min(portions.scan_pixels // pixels, portions.map_bytes // (4 * largest))
    return max(low, min(high, fitting))


def settle(
    spec: JobSpec,
    packed: PackedModel | None = None,
    batch_size: int | None = None,
    listing: Listing | None = None,
) -> Job:
    """Load, trace and list what a spec names.

    Args:
        listing: images at hand instead of those the spec names.
        packed: a model at hand instead of the one the spec names.
        batch_size: that of a run being resumed.

    Raises:
        RequestError: whatever does not exist or does not fit.
    """
    packed = packed or pack(spec.model, spec.seed, spec.data.transform)
    network = trace(packed)
    outputs = network.layers[-1].units
    if packed.classes and len(packed.classes) != outputs:
        if spec.model.classes is not None:
            raise RequestError(
                f"model.classes has {len(packed.classes)} names, but the model has {outputs} "
                "outputs: give one name for each output, in order."
            )
        packed = replace(packed, classes=())
    if listing is None:
        listing = list_images(spec.data, packed.classes, outputs)
    else:
        _require_outputs(listing, outputs)
    if spec.data.where is not None and spec.data.where.wrong and not listing.labelled:
        raise RequestError(
            f"data.where.wrong needs labels, but there are {listing.labels_from}: give data.labels."
        )
    if not packed.classes and listing.names:
        packed = replace(packed, classes=listing.names)
    layers = network.layers
    if spec.layers != "all":
        layers = choose(layers, spec.layers, "layers")
    asked = spec.compute.batch_size
    if asked == "auto":
        gpus = spec.compute.gpus_per_worker
        on_gpu = torch.cuda.is_available() if gpus == "auto" else gpus > 0
        asked = automatic_batch(network, "cuda" if on_gpu else "cpu")
    chosen = batch_size or asked
    occluding = occluding_of(spec, packed.transform, network, layers, listing)
    moving = moving_of(spec, packed.transform, network, listing)
    evolving = evolving_of(spec, packed, layers)
    boxes = boxes_of(spec.data, listing)
    parts = part_boxes_of(spec.data, listing)
    corresponding = corresponding_of(
        spec.correspondence, packed.transform, network, layers, listing, parts
    )
    job = Job(
        spec=spec,
        packed=packed,
        listing=listing,
        layers=tuple(layers),
        outputs=outputs,
        batch_size=chosen,
        occluding=occluding,
        moving=moving,
        evolving=evolving,
        boxes=boxes,
        corresponding=corresponding,
        probing=probing_of(spec, layers, network.layers[-1], packed.transform),
        part_boxes=parts,
    )
    if job.example_entries() > MAX_EXAMPLES:
        raise RequestError(
            f"analyses.top would keep up to {job.example_entries():,} images besides the strongest "
            f"({job.index.total:,} units, {outputs:,} classes), more than {MAX_EXAMPLES:,}: name "
            "fewer layers, or lower per_class, bottom or bands."
        )
    return job


def _require_outputs(listing: Listing, outputs: int) -> None:
    for number, label in enumerate(listing.labels):
        if label is not None and not 0 <= label < outputs:
            raise RequestError(
                f"labels[{number}] is {label}, but the model has {outputs} outputs: a label is an "
                f"output index from 0 to {outputs - 1}, or None."
            )


def trace(packed: PackedModel, model: nn.Module | None = None) -> Network:
    """The traced network at the size its transform gives.

    Raises:
        ModelUnsupported: it cannot be traced, or does not take images of that size.
    """
    side, channels = packed.transform.crop, packed.transform.channels
    try:
        return Network(model or packed.build(), (channels, side, side))
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise ModelUnsupported(
            f"{packed.name} does not run on images of {channels} × {side} × {side}: "
            f"{first_line(error)}. Set data.transform to the size it was made for."
        ) from error


LIBRARIES = ("deconvoy", "torch", "torchvision", "numba", "numpy", "pillow", "zarr")


def versions(*more: str) -> Mapping[str, str]:
    """Versions the bits may depend on, and of ``more`` packages."""
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found
