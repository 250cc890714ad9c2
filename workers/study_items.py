"""Settle what a study needs before it starts: networks, images, labels, work items.

Settled again when it is resumed, and compared: a study goes on only with the images it began with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import nn

from deconvoy.errors import RequestError
from deconvoy.spec import ComputeSpec, DataSpec, ModelSpec, Transform
from deconvoy.store import RunStore
from deconvoy.study_spec import StudySpec
from workers.datasets import Listing, list_images
from workers.first_layer import first_convolution
from workers.job import versions
from workers.leases import LabelledImages, StudyAssignment, TrainingLease
from workers.models import OWN, pack
from workers.probe_items import own_classes
from workers.training import MAX_BYTES, Recipe


@dataclass(frozen=True)
class StudyJob:
    """A study with all that follows from it."""

    spec: StudySpec
    transform: Transform
    transform_from: str
    classes: tuple[str, ...]
    training: LabelledImages
    validation: LabelledImages
    fingerprints: tuple[str, ...]
    """Of the listings that images come from."""
    arguments: tuple[dict[str, Any], ...]
    """Of the factory, by network."""
    parameters: tuple[int, ...]
    """By network."""
    first_layers: tuple[tuple[int, ...], ...]
    """Shapes of the first filters: unit, row, col, channel; by network."""

    @property
    def compute(self) -> ComputeSpec:
        return self.spec.compute.for_workers()

    def items(self) -> dict[str, TrainingLease]:
        """By name: every repeat of every network."""
        pairs = [(n, r) for n in range(len(self.arguments)) for r in range(self.spec.repeats)]
        names = [f"study/item-{number:06d}" for number in range(len(pairs))]
        return {name: TrainingLease(name, *pair) for name, pair in zip(names, pairs, strict=True)}

    @property
    def recipe(self) -> Recipe:
        asked = self.spec.training
        return Recipe(
            asked.epochs, asked.batch_size, asked.learning_rate, asked.momentum,
            asked.max_filter_rms,
        )  # fmt: skip

    def assignment(self, url: str, threads: int) -> StudyAssignment:
        """What every worker is told; ``threads`` are those of the spec, whatever a worker gets."""
        spec = self.spec
        return StudyAssignment(
            base=spec.base,
            arguments=self.arguments,
            transform=self.transform,
            training=self.training,
            validation=self.validation,
            recipe=self.recipe,
            dropout=spec.training.dropout,
            kept_epochs=spec.training.kept_epochs,
            seed=spec.seed,
            url=RunStore(url).absolute,
            threads=spec.compute.threads_each,
            cuda=spec.compute.gpus_per_worker != 0,
        )

    def provenance(self) -> dict[str, Any]:
        """What the results depend on."""
        return {
            "model": self.spec.base,
            "listing_fingerprint": self.fingerprints[0],
            "validation_fingerprint": self.fingerprints[-1],
            "images": len(self.training),
            "validation_images": len(self.validation),
            "outputs": len(self.classes),
            "transform": self.transform.model_dump(mode="json"),
            "transform_from": self.transform_from,
            "dtype": "float32",
            "versions": versions(),
        }


def settle_study(spec: StudySpec) -> StudyJob:
    """List the images a study names, and count the weights of its networks.

    Raises:
        RequestError: whatever does not exist or does not fit.
    """
    packed = pack(ModelSpec(name=spec.base), spec.seed, spec.data.transform)
    _require_size(spec, packed.transform)
    _require_images_of_their_own(spec)
    classes = _classes(spec.data)
    own = spec.validation.transform if isinstance(spec.validation, DataSpec) else "auto"
    if own not in ("auto", spec.data.transform):
        raise RequestError(
            "validation.transform is not used, since images are judged as they are learned from: "
            "leave it out; data.transform holds for both."
        )
    listing = list_images(spec.data, classes, len(classes))
    images = _labelled(listing, spec.data, "data")
    _require_several_classes(images, classes)
    fingerprints = [listing.fingerprint]
    if isinstance(spec.validation, DataSpec):
        training = images
        _require_known(_classes(spec.validation, "validation", 1), classes)
        other = list_images(spec.validation, classes, len(classes))
        validation = _labelled(other, spec.validation, "validation")
        _require_others(training, validation)
        fingerprints.append(other.fingerprint)
    else:
        training, validation = _parted(images, spec.validation, spec.seed)
    _require_memory(len(training) + len(validation), packed.transform)
    arguments = tuple(
        {"num_classes": len(classes), **spec.arguments(network)}
        for network in range(len(spec.titles))
    )
    networks = [_sketch(spec.base, one) for one in arguments]
    return StudyJob(
        spec=spec,
        transform=packed.transform,
        transform_from=packed.transform_from,
        classes=classes,
        training=training,
        validation=validation,
        fingerprints=tuple(fingerprints),
        arguments=arguments,
        parameters=tuple(sum(p.numel() for p in network.parameters()) for network in networks),
        first_layers=tuple(
            (units, height, width, channels)
            for units, channels, height, width in (
                first_convolution(network).weight.shape for network in networks
            )
        ),
    )


def _sketch(base: str, arguments: dict[str, Any]) -> nn.Module:
    """A network without room for its numbers."""
    with torch.device("meta"):
        return OWN[base.removeprefix("deconvoy/")](**arguments)


def _require_images_of_their_own(spec: StudySpec) -> None:
    """No network is there yet that could tell an image wrong."""
    for field, data in ("data", spec.data), ("validation", spec.validation):
        if isinstance(data, DataSpec) and data.where is not None and data.where.wrong:
            raise RequestError(
                f"{field}.where.wrong asks for images that a model tells wrong, but a study begins "
                "with none: leave it out."
            )


def _classes(data: DataSpec, field: str = "data", least: int = 2) -> tuple[str, ...]:
    try:
        classes = own_classes(data)
    except RequestError as error:
        told = str(error).replace("a probe learns", "training learns").removeprefix("data.")
        raise RequestError(f"{field}: {told}") from error
    if len(classes) < least:
        raise RequestError(
            f"{field} has one class, {classes[0]!r}: networks learn to tell two or more apart."
        )
    return classes


def _require_known(found: Sequence[str], classes: Sequence[str]) -> None:
    """Names would else be taken by their order, and be those of other classes."""
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise RequestError(
            f"validation has images of {unknown[0]!r}, which is no class of data (there are: "
            f"{', '.join(classes[:8])}{', …' if len(classes) > 8 else ''}): leave them out, as by "
            "validation.where.classes, or give data of the same classes."
        )


def _labelled(listing: Listing, data: DataSpec, field: str) -> LabelledImages:
    labels: Sequence[int | None] = listing.labels
    without = [uri for uri, label in zip(listing.uris, labels, strict=True) if label is None]
    if without:
        raise RequestError(
            f"{field} has {len(without):,} of {len(listing):,} images without a label (the first "
            f"is {without[0]!r}): give every image one, or leave those out with "
            f"{field}.where.without."
        )
    known = np.array([-1 if label is None else label for label in labels], np.int64)
    return LabelledImages(listing.source, tuple(listing.uris), known, data.max_bad, field)


def _parted(
    images: LabelledImages, share: float, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    """Those to learn from and those to judge by, each in reading order: of every class the same
    share, as near as whole images allow, drawn by the seed."""
    count = round(share * len(images))
    if not 0 < count < len(images):
        raise RequestError(
            f"validation is {share:g} of {len(images)} images, which is {count}: at least one must "
            "be judged by and one learned from. Give it another share, or images of its own."
        )
    order = np.random.default_rng(np.random.SeedSequence([seed, 0])).permutation(len(images))
    order = order[np.argsort(_place_in_class(images.labels[order]), kind="stable")]
    drawn = np.sort(order[:count]), np.sort(order[count:])
    validation, training = (
        replace(
            images,
            uris=tuple(images.uris[number] for number in numbers),
            labels=images.labels[numbers],
        )
        for numbers in drawn
    )
    return training, validation


def _place_in_class(labels: Int64[np.ndarray, " image"]) -> Float64[np.ndarray, " image"]:
    """Of each image, how far behind it comes among those of its class: between 0 and 1."""
    place = np.empty(len(labels))
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        place[own] = (np.arange(len(own)) + 0.5) / len(own)
    return place


def _require_several_classes(images: LabelledImages, classes: Sequence[str]) -> None:
    """Of those that were chosen, as by ``where``."""
    (label, *others) = np.unique(images.labels)
    if not others:
        raise RequestError(
            f"All {len(images):,} images that {images.field} leaves are of one class, "
            f"{classes[label]!r}: networks learn to tell two or more apart."
        )


def _require_others(training: LabelledImages, validation: LabelledImages) -> None:
    """Who is judged by what was learned is judged by memory."""
    if training.source != validation.source:
        return
    both = set(training.uris) & set(validation.uris)
    if both:
        raise RequestError(
            f"validation has {len(both):,} of the images of data (one is {min(both)!r}), and a "
            "network that is judged by what it learned tells nothing: give other images, or a "
            "share (validation: 0.2), which is left out of learning."
        )


def _require_size(spec: StudySpec, transform: Transform) -> None:
    made = pack(ModelSpec(name=spec.base), spec.seed).transform
    if (transform.crop, transform.channels) != (made.crop, made.channels):
        raise RequestError(
            f"data.transform gives images of {transform.channels} × {transform.crop} × "
            f"{transform.crop}, but {spec.base} takes {made.channels} × {made.crop} × {made.crop}: "
            "give it that crop and three channels, or leave it out."
        )


def _require_memory(images: int, transform: Transform) -> None:
    needed = images * transform.channels * transform.crop**2
    if needed > MAX_BYTES:
        fitting = MAX_BYTES // (transform.channels * transform.crop**2)
        raise RequestError(
            f"{images:,} images take {needed / 2**30:.0f} GiB in the memory of each worker, and a "
            f"study keeps them there: {fitting:,} at most fit into its {MAX_BYTES // 2**30} GiB. "
            "Lower data.limit."
        )
