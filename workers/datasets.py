"""List the images of a data set, with their labels.

An image is known by its place in the listing, which is in sorted path order: ids increase in
reading order.  Listing reads no pixels.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deconvoy.errors import RequestError
from deconvoy.spec import DataSpec, WhereSpec
from workers import labels as labelling
from workers.found import Found, find
from workers.labels import Labels
from workers.shapes import CLASSES
from workers.sources import ShapesSource, Source


@dataclass(frozen=True)
class ImageRef:
    """One image of a listing."""

    id: int
    uri: str
    label: int | None


@dataclass(frozen=True)
class Listing:
    """All images of a job."""

    source: Source
    uris: Sequence[str]
    labels: Sequence[int | None]
    fingerprint: str
    """sha256 over the name, label, size and time of change (or ETag) of every file."""
    labels_from: str
    """How labels were found, for people."""
    names: tuple[str, ...] = ()
    """Of the model's outputs, where the data has them."""

    def __len__(self) -> int:
        return len(self.uris)

    @property
    def labelled(self) -> bool:
        """Whether the true class of any image is known."""
        return any(label is not None for label in self.labels)

    def refs(self, start: int, stop: int) -> list[ImageRef]:
        return [ImageRef(i, self.uris[i], self.labels[i]) for i in range(start, stop)]


def list_images(data: DataSpec, classes: Sequence[str], outputs: int) -> Listing:
    """The images a data spec names.

    Args:
        classes: names of the model's outputs; may be empty.
        outputs: how many the model has.

    Raises:
        RequestError: nothing there, no image in it, or labels that fit nothing.
    """
    found = find(data)
    labels = _labels_of(data, found, classes, outputs)
    chosen = _chosen(data, found, labels, classes or labels.names)
    uris = [found.uris[i] for i in chosen]
    indices = [labels.indices[i] for i in chosen]
    digest = hashlib.sha256()
    for i in chosen:
        digest.update(f"{found.uris[i]}\0{found.tags[i]}\0{labels.indices[i]}\n".encode())
    return Listing(found.source, uris, indices, digest.hexdigest(), labels.told, labels.names)


def _labels_of(data: DataSpec, found: Found, classes: Sequence[str], outputs: int) -> Labels:
    if data.labels is not None:
        return labelling.of_file(data.labels, found.uris, classes, outputs)
    if isinstance(found.source, ShapesSource):
        if list(classes) == list(CLASSES) or outputs == len(CLASSES):
            return Labels([i % len(CLASSES) for i in range(len(found.uris))], "the generator")
        return Labels([None] * len(found.uris), _NOT_SHAPES)
    return labelling.resolve(found.raw, classes, outputs, found.names_are)


_NOT_SHAPES = "none: the model's outputs are not the classes of shapes"


def _chosen(data: DataSpec, found: Found, labels: Labels, classes: Sequence[str]) -> list[int]:
    """Places in the listing of those that ``where`` and ``limit`` leave."""
    places = list(range(len(found.uris)))
    if data.where is not None:
        places = list(_where(data.where, found, labels, classes))
        if not places:
            raise RequestError(
                f"data.where leaves none of the {len(found.uris):,} images of {data.uri!r}: "
                "take a condition away."
            )
    if data.limit is None or data.limit >= len(places):
        return places
    return [places[i * len(places) // data.limit] for i in range(data.limit)]


def _where(where: WhereSpec, found: Found, labels: Labels, classes: Sequence[str]) -> Iterator[int]:
    wanted = None
    if where.classes is not None:
        wanted = {_output(name, classes) for name in where.classes}
    ids = None if where.ids is None else set(where.ids)
    if ids is not None and max(ids, default=-1) >= len(found.uris):
        raise RequestError(
            f"data.where.ids has {max(ids)}, but there are {len(found.uris):,} images, counted "
            "from 0 in sorted path order."
        )
    for place in range(len(found.uris)):
        in_class = wanted is None or labels.indices[place] in wanted
        if in_class and (ids is None or place in ids):
            yield place


def _output(name: str | int, classes: Sequence[str]) -> int:
    if isinstance(name, int):
        return name
    if name in classes:
        return list(classes).index(name)
    raise RequestError(
        f"data.where.classes: {name!r} is no class of the model: give an output index or one of "
        f"{', '.join(list(classes)[:5]) or 'its class names (it has none)'}"
        f"{' …' if len(classes) > 5 else '.'}"
    )
