"""List the images of a data set, with their labels.

An image is known by its place in the listing, which is in sorted path order: ids increase in
reading order.  Listing reads no pixels.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deconvoy.errors import RequestError
from deconvoy.spec import DataSpec, Place
from workers import labels as labelling
from workers.found import Found, find
from workers.labels import Labels
from workers.parts import spans
from workers.shapes import CLASSES
from workers.sources import JoinedSource, ShapesSource, Source, joined_uri, split_joined


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
    sizes: tuple[int, ...] = ()
    """Images of each place, where there are several."""
    numbers: Sequence[int] = ()
    """Of each image of the first place, its number among all that lie there; empty where all of
    them are taken, so that numbers count the listing."""

    def __len__(self) -> int:
        return len(self.uris)

    @property
    def labelled(self) -> bool:
        """Whether the true class of any image is known."""
        return any(label is not None for label in self.labels)

    def shards(self, size: int) -> list[tuple[int, int]]:
        """First image and one past the last of every shard."""
        return spans(self.sizes or (len(self),), size)


def list_images(data: DataSpec, classes: Sequence[str], outputs: int) -> Listing:
    """The images a data spec names.

    Args:
        classes: names of the model's outputs; may be empty.
        outputs: how many the model has.

    Raises:
        RequestError: nothing there, no image in it, or labels that fit nothing.
    """
    _require_places(data)
    listings: list[Listing] = []
    for number, place in enumerate(data.places):
        found = find(place)
        labels = _labels_of(place, found, classes, outputs)
        # What names mean in the first place they mean in the next, too.
        classes = labels.names or classes
        chosen = _chosen(data, number, found, labels, classes, outputs)
        digest = hashlib.sha256()
        for i in chosen:
            digest.update(f"{found.uris[i]}\0{found.tags[i]}\0{labels.indices[i]}\n".encode())
        listings.append(
            Listing(
                found.source,
                [found.uris[i] for i in chosen],
                [labels.indices[i] for i in chosen],
                digest.hexdigest(),
                labels.told,
                labels.names,
                numbers=chosen if len(chosen) < len(found.uris) else (),
            )
        )
    return listings[0] if len(listings) == 1 else _joined(listings)


def _joined(listings: Sequence[Listing]) -> Listing:
    for uri in listings[0].uris:
        if split_joined(uri)[0]:
            raise RequestError(
                f"The name of the image {uri!r} reads like one of a further place of data.uri: "
                "rename it, or put its place anywhere but first."
            )
    told = dict.fromkeys(listing.labels_from for listing in listings)
    fingerprints = "\n".join(listing.fingerprint for listing in listings)
    return Listing(
        JoinedSource(tuple(listing.source for listing in listings)),
        [joined_uri(n, uri) for n, listing in enumerate(listings) for uri in listing.uris],
        [label for listing in listings for label in listing.labels],
        hashlib.sha256(fingerprints.encode()).hexdigest(),
        "; ".join(told),
        next((listing.names for listing in listings if listing.names), ()),
        tuple(len(listing) for listing in listings),
        listings[0].numbers,
    )


def _labels_of(place: Place, found: Found, classes: Sequence[str], outputs: int) -> Labels:
    if place.labels is not None:
        return labelling.of_file(place.labels, found.uris, classes, outputs)
    if isinstance(found.source, ShapesSource):
        if list(classes) == list(CLASSES) or outputs == len(CLASSES):
            return Labels([i % len(CLASSES) for i in range(len(found.uris))], "the generator")
        return Labels([None] * len(found.uris), _NOT_SHAPES)
    named = found.uris if found.named else None
    return labelling.resolve(found.raw, classes, outputs, found.names_are, named)


_NOT_SHAPES = "none: the model's outputs are not the classes of shapes"


def _chosen(
    data: DataSpec,
    number: int,
    found: Found,
    labels: Labels,
    classes: Sequence[str],
    outputs: int,
) -> list[int]:
    """Places in the listing of those that ``where`` and ``limit`` leave of the place ``number``."""
    places = list(range(len(found.uris)))
    if data.where is not None:
        places = list(_where(data, number, found, labels, classes, outputs))
        if not places:
            raise RequestError(
                f"data.where leaves none of the {len(found.uris):,} images of "
                f"{data.places[number].uri!r}: take a condition away."
            )
    if data.limit is None or data.limit >= len(places):
        return places
    return [places[i * len(places) // data.limit] for i in range(data.limit)]


def _where(
    data: DataSpec,
    number: int,
    found: Found,
    labels: Labels,
    classes: Sequence[str],
    outputs: int,
) -> Iterator[int]:
    where = data.where
    assert where is not None
    wanted = None
    if where.classes is not None:
        wanted = {_output(name, classes, outputs) for name in where.classes}
    ids = _of_place(data, number, where.ids or ())
    # A place that ids names no image of stays whole, so that one more place can be added.
    only = _places(ids, "ids", number, found) if ids or where.ids == () else None
    without = _places(_of_place(data, number, where.without), "without", number, found)
    for place in range(len(found.uris)):
        in_class = wanted is None or labels.indices[place] in wanted
        if in_class and place not in without and (only is None or place in only):
            yield place


def _of_place(data: DataSpec, number: int, named: Sequence[int | str]) -> list[int | str]:
    """Those that name images of a place, as they are called there."""
    each = [_place_and_name(data, name) for name in named]
    return [name for place, name in each if place == number]


def _place_and_name(data: DataSpec, name: int | str) -> tuple[int, int | str]:
    # Of one place alone, a file may be called "+1:x".
    return (0, name) if isinstance(name, int) or len(data.places) == 1 else split_joined(name)


def _require_places(data: DataSpec) -> None:
    where, count = data.where, len(data.places)
    if where is None:
        return
    for field, named in (("ids", where.ids or ()), ("without", where.without)):
        for name in named:
            number = _place_and_name(data, name)[0]
            if number >= count:
                raise RequestError(
                    f"data.where.{field} has {name!r}, but data.uri has {count} places: images of "
                    f"the last one are named +{count - 1}:path."
                )


def _places(named: Sequence[int | str], field: str, number: int, found: Found) -> set[int]:
    """Places in the listing of images named by their place or their path."""
    count = len(found.uris)
    place_of = {uri: place for place, uri in enumerate(found.uris)} if named else {}
    places = {name: name if isinstance(name, int) else place_of.get(name, count) for name in named}
    for name, place in places.items():
        if place >= count:
            told = name if isinstance(name, int) else joined_uri(number, name)
            raise RequestError(
                f"data.where.{field} has {told!r}, but there are {count:,} images"
                f"{f' in place {number} of data.uri' if number else ''}, counted from 0 in sorted "
                f"path order, and named like {joined_uri(number, found.uris[0])!r}."
            )
    return set(places.values())


def _output(name: str | int, classes: Sequence[str], outputs: int) -> int:
    if isinstance(name, int):
        if not 0 <= name < outputs:
            raise RequestError(
                f"data.where.classes: {name} is no output: the model has {outputs}, counted from 0."
            )
        return name
    if name in classes:
        return list(classes).index(name)
    raise RequestError(
        f"data.where.classes: {name!r} is no class of the model: give an output index or one of "
        f"{', '.join(list(classes)[:5]) or 'its class names (it has none)'}"
        f"{' …' if len(classes) > 5 else '.'}"
    )
