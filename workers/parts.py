"""How a data set is cut into parts: the shards of the scan, and the files named by their number."""

from collections.abc import Sequence

from deconvoy.schema import layer_path


def spans(places: Sequence[int], size: int) -> list[tuple[int, int]]:
    """First image and one past the last of every shard; each place begins a new one, so that a
    place that is added leaves the shards before it as they were.

    Args:
        places: images of each place.
        size: images of a shard.
    """
    found: list[tuple[int, int]] = []
    begin = 0
    for count in places:
        end = begin + count
        found += [(start, min(start + size, end)) for start in range(begin, end, size)]
        begin = end
    return found


def number_of(name: str) -> int:
    """The number in a file's or an item's name: ``part-000012.npz`` → 12."""
    return int(name.rpartition("-")[2].partition(".")[0])


def marker_path(item: str) -> str:
    """Path of an item's marker; the layer's name, if it has one, is escaped as in its group's
    path: ``projection/a.b/item-000001`` → ``ledger/projection/a.b/item-000001.json``."""
    stage, _, rest = item.partition("/")
    layer, _, name = rest.rpartition("/")
    folder = [layer_path(layer).removeprefix("layers/")] if layer else []
    return "/".join(["ledger", stage, *folder, f"{name}.json"])
