"""Verify what occlusion wrote: that everything its markers promise is there and fits together.

That the bytes are those that were written is checked with all other chunks; that the numbers are
the model's is asked by ``workers.replay_occlusion``.
"""

import fnmatch
import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote

import numpy as np

from deconvoy.occlusion import square_starts
from deconvoy.schema import UNIT_OCCLUSION, layer_path
from deconvoy.spec import JobSpec
from workers.checksums import Chunks, Fault
from workers.parts import marker_path, number_of
from workers.verify_groups import ImageGroup

WRITTEN = (
    "target", "probability", "clean_probability", "label", "clean_label", "unit", "activity",
    "clean_activity", "picture", "projection", "scale", "image",
)  # fmt: skip
"""Arrays that a work item writes in any case."""


class ImageOcclusion(ImageGroup):
    """The group ``occlusion``: its grid, and the rows that the markers promise."""

    group = "occlusion"
    whole = ("y", "x")

    def asked(self) -> bool:
        return self.spec.occlusion is not None

    def written(self) -> tuple[str, ...]:
        boxes = ("box",) if self.told.get("boxes") else ()
        five = self.spec.occlusion is not None and self.spec.occlusion.top5
        return (*WRITTEN, *(("top5", "top5_probability") if five else ()), *boxes)

    def fits(self) -> Iterator[Fault]:
        for name, length in zip(self.whole, self.told["size"], strict=True):
            stored = self.array(name)
            starts = square_starts(0, length, self.told["patch"], self.told["stride"])
            if stored is not None and not np.array_equal(stored, starts):
                yield Fault(f"{self.group}/{name}", "is not the grid of its patch and stride")


class UnitOcclusions:
    """The arrays ``layers/<name>/occlusion``: shards that the markers promise, numbers where the
    boxes say."""

    def __init__(self, chunks: Chunks, attributes: dict[str, Any]) -> None:
        self.chunks, self.run, self.attributes = chunks, chunks.run, attributes
        self.files = 0
        """Markers read."""

    def faults(self) -> Iterator[Fault]:
        if "results" not in self.attributes:
            return
        folders = {unquote(name) for name in self.run.names("ledger/unit-occlusion")}
        done = self.attributes["state"]["status"] == "done"
        for layer in self.attributes["layers"]:
            if layer in folders or (done and layer in self._asked()):
                yield from self._faults_of(layer, done)

    def _asked(self) -> list[str]:
        """Layers whose hits the spec has covered."""
        asked = JobSpec.parse(self.attributes["spec"]).occlusion
        layers: Sequence[str] = self.attributes["layers"]
        if asked is None or asked.units is None:
            return []
        if asked.units != "maps":
            match = fnmatch.fnmatchcase
            return [n for n in layers if any(n == p or match(n, p) for p in asked.units)]
        return [name for name in layers if self._is_map(name)]

    def _is_map(self, layer: str) -> bool:
        path = layer_path(layer)
        if path in self.chunks.unopened or not self.run.exists(f"{path}/zarr.json"):
            return False
        told: dict[str, Any] = dict(self.run.zarr()[path].attrs.asdict())
        return bool(told["height"] * told["width"] > 1)

    def _faults_of(self, layer: str, done: bool) -> Iterator[Fault]:
        path = f"{layer_path(layer)}/{UNIT_OCCLUSION.name}"
        if not self.run.exists(f"{path}/zarr.json"):
            yield Fault(f"{path}/zarr.json", "is missing")
            return
        if path in self.chunks.unopened:
            return
        array: Any = self.run.zarr()[path]
        item = int((array.shards or array.chunks)[0])
        folder = marker_path(f"unit-occlusion/{layer}/x").rpartition("/")[0]
        names = self.run.names(folder)
        self.files += len(names)
        committed = [number_of(name) for name in names]
        for number, name in zip(committed, names, strict=True):
            yield from self._marker(f"{folder}/{name}", [number * item, (number + 1) * item], array)
        for place in self.chunks.missing.get(path, ()):
            if place[0] in committed:
                yield self.chunks.absent_at(path, place)
                return
        if done:
            for number in sorted(set(range(-(-array.shape[0] // item))) - set(committed)):
                name = f"unit-occlusion/{layer}/item-{number:06d}"
                yield Fault(marker_path(name), "is missing")
        if path not in self.chunks.broken:
            yield from self._numbers(layer, path, array, committed, item)

    def _marker(self, path: str, units: list[int], array: Any) -> Iterator[Fault]:
        try:
            told = json.loads(self.run.read(path))["units"]
        except (ValueError, KeyError, TypeError) as error:
            yield Fault(path, f"cannot be read: {error}")
            return
        promised = [units[0], min(units[1], array.shape[0])]
        if told != promised:
            yield Fault(path, f"is of the units {told}, but its shard holds {promised}")

    def _numbers(
        self, layer: str, path: str, array: Any, committed: Sequence[int], item: int
    ) -> Iterator[Fault]:
        """There are numbers exactly where a hit's box has squares."""
        tables = [self.chunks.array(layer, name) for name in ("image", "box")]
        if tables[0] is None or tables[1] is None:
            return
        told = dict(array.attrs.asdict())
        for number in committed:
            units = slice(number * item, (number + 1) * item)
            there = ~np.isnan(array[units])
            wanted = np.zeros(there.shape, bool)
            for unit, rank in zip(*(tables[0][units] >= 0).nonzero(), strict=True):
                y0, x0, y1, x1 = tables[1][units][unit, rank].tolist()
                rows, cols = (
                    len(square_starts(0, n, min(told["patch"], n), told["stride"])) if n else 0
                    for n in (y1 - y0, x1 - x0)
                )
                wanted[unit, rank, :rows, :cols] = True
            if (there != wanted).any():
                unit, rank = np.argwhere((there != wanted).any((2, 3)))[0]
                place = f"unit {units.start + unit}, rank {rank + 1}"
                yield Fault(path, f"has not the grid of its box at {place}")
                return
