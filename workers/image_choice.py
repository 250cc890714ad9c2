"""Choose images of a data set for an analysis: by name, or some of those that could be read.

Named ones are settled with the job, so that what does not fit is refused before anything is
computed; which images can be read is known after the scan.
"""

import random
from collections.abc import Sequence

import pyarrow.compute as pc

from deconvoy.errors import ImageUnreadable, RequestError
from deconvoy.images_table import images_part
from deconvoy.schema import image_part_path
from deconvoy.spec import DrawnImages, NamedImages, Transform
from deconvoy.store import RunStore
from workers.datasets import Listing


def places_of(ids: Sequence[int | str], listing: Listing, kind: str) -> tuple[int, ...]:
    """Places in the listing of images named as in ``data.where.ids``, each once.

    Args:
        kind: of the analysis that names them, for people.

    Raises:
        RequestError: there is no such image.
    """
    first = listing.sizes[0] if listing.sizes else len(listing)
    numbers = listing.numbers or range(first)
    known: dict[int | str, int] = {uri: place for place, uri in enumerate(listing.uris)}
    known |= {number: place for place, number in enumerate(numbers)}
    for name in ids:
        if name not in known:
            left = ", of which data.where and data.limit leave some out" if listing.numbers else ""
            raise RequestError(
                f"analyses.{kind}.images.ids has {name!r}, but the job's {len(listing):,} images"
                f" are named like {listing.uris[0]!r} or numbered in sorted path order from 0"
                f"{left}: name one of them."
            )
    return tuple(dict.fromkeys(known[name] for name in ids))


def count_of(images: DrawnImages | NamedImages, named: Sequence[int], images_there: int) -> int:
    """How many images that is, at most."""
    return len(named) if isinstance(images, NamedImages) else min(images.sample, images_there)


def require_readable(
    places: Sequence[int], listing: Listing, transform: Transform, kind: str
) -> None:
    """Read the images that an analysis names itself, before a long scan.

    Raises:
        RequestError: one cannot be read; says why.
    """
    for place in places:
        uri = listing.uris[place]
        try:
            listing.source.read(uri, transform)
        except ImageUnreadable as error:
            raise unusable(uri, str(error), kind) from error


def unusable(uri: str, reason: str, kind: str) -> RequestError:
    """What to raise of an image that the spec names and the scan leaves out."""
    return RequestError(
        f"analyses.{kind}.images.ids names {uri!r}, which cannot be used: {reason}. Mend it or "
        "leave it out, and start a new run."
    )


def drawn(readable: Sequence[int], count: int, seed: int, kind: str) -> list[int]:
    """So many of the ids, in order; the same for any order of workers."""
    if count >= len(readable):
        return list(readable)
    return sorted(random.Random(f"{seed}/{kind}").sample(list(readable), count))


def left_out(run: RunStore, ids: Sequence[int], shard_size: int) -> dict[int, str]:
    """Those of the images that the scan left out, and why."""
    found = dict[int, str]()
    for part in sorted({image_id // shard_size for image_id in ids}):
        table = images_part(run, image_part_path(part), ["id", "skipped"])
        table = table.filter(pc.is_valid(table["skipped"]))
        found |= dict(zip(table["id"].to_pylist(), table["skipped"].to_pylist(), strict=True))
    return {image_id: found[image_id] for image_id in ids if image_id in found}
