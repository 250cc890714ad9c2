"""What follows from a probe: its images with their own classes, the layers, and the work items.

Settled with the job: the images are listed and counted before anything is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from deconvoy.errors import RequestError
from deconvoy.places import is_drawn
from deconvoy.schema import MISSING_LABEL
from deconvoy.spec import DataSpec, JobSpec, ProbeSpec, Transform
from workers.choice import choose
from workers.datasets import Listing, list_images
from workers.folds import ProbeFits, require_enough
from workers.found import find
from workers.graph import Layer
from workers.labels import of_own_file
from workers.leases import ProbeAssignment
from workers.models import PackedModel, pack
from workers.scratch_items import require_trainable
from workers.shapes import CLASSES


@dataclass(frozen=True)
class Probing:
    """A probe with all that follows from it."""

    spec: ProbeSpec
    listing: Listing
    classes: tuple[str, ...]
    """Of the images, which are not those of the model."""
    layers: tuple[Layer, ...]
    random: PackedModel | None
    start: PackedModel | None
    """Where the network trained from scratch begins; None where none is."""
    seed: int

    @property
    def fits(self) -> ProbeFits:
        asked = self.spec
        return ProbeFits(
            asked.classifiers, asked.train, asked.test, asked.folds, asked.c, self.seed
        )

    @property
    def weights(self) -> int:
        """How many there are: those of the model, and random ones."""
        return 2 if self.random else 1

    @property
    def label(self) -> Int64[np.ndarray, " image"]:
        known = [MISSING_LABEL if label is None else label for label in self.listing.labels]
        return np.array(known, np.int64)

    def assignment(self) -> ProbeAssignment:
        return ProbeAssignment(
            self.listing.source,
            tuple(layer.name for layer in self.layers),
            self.spec.pool,
            self.spec.features,
            self.random,
            self.start,
        )


def probing_of(
    spec: JobSpec, layers: Sequence[Layer], logits: Layer, transform: Transform
) -> Probing | None:
    """What a spec's probe comes down to; None where it has none.

    Args:
        layers: of the job.
        logits: the network's output, whether or not it is one of them.

    Raises:
        RequestError: its images, their labels, a layer or the network do not fit.
    """
    asked = spec.probe
    if asked is None:
        return None
    try:
        classes = own_classes(asked.data)
        listing = list_images(asked.data, classes, len(classes))
    except RequestError as error:
        told = str(error)
        raise RequestError(
            f"analyses.probe.{told}" if told.startswith("data") else f"analyses.probe.data: {told}"
        ) from error
    chosen = tuple(layers)
    if asked.layers != "all":
        chosen = choose(layers, asked.layers, "analyses.probe.layers")
    anew = _anew(spec, asked)
    random = anew if asked.random_weights else None
    start = anew if asked.scratch else None
    probing = Probing(asked, listing, classes, chosen, random, start, spec.seed)
    require_enough(probing.label, classes, asked.train)
    if start is not None:
        require_trainable(spec, start, logits, transform, len(classes))
    return probing


def _anew(spec: JobSpec, asked: ProbeSpec) -> PackedModel | None:
    """The model with random weights, drawn by the seed; None where nothing needs it."""
    if not asked.random_weights and asked.scratch is None:
        return None
    if spec.model.name.startswith("object/"):
        field, remedy = "scratch", "leave it out"
        if asked.random_weights:
            field, remedy = "random_weights", "set it to false"
        raise RequestError(
            f"analyses.probe.{field} needs a model that can be made anew, and this one is an "
            f"object ({spec.model.name}): {remedy}."
        )
    plain = spec.model.model_copy(update={"weights": None, "checkpoints": ()})
    return pack(plain, spec.seed, spec.data.transform)


def own_classes(data: DataSpec) -> tuple[str, ...]:
    """Names of the classes that the images' labels tell, sorted; whole numbers by their size.

    Raises:
        RequestError: no image has a label.
    """
    names: set[str] = set()
    for place in data.places:
        raw = find(place).raw if place.labels is None else of_own_file(place.labels)
        names |= {str(label) for label in raw if label is not None}
    if not names:
        raise RequestError(
            "none of the images has a label, but a probe learns from labels: give class folders, "
            "or data.labels."
        )
    if names <= set(CLASSES) and all(is_drawn(place.uri) for place in data.places):
        return CLASSES  # however few were drawn
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))
