"""Verify the group of an analysis that has a row a work item: that all is there that its markers
promise, and fits together.

That the bytes are those that were written is checked with all other chunks.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from deconvoy.errors import DeconvoyError
from deconvoy.run import Run
from deconvoy.schema import (
    CORRESPONDENCE_ARRAYS,
    CORRESPONDENCE_GROUP,
    INVARIANCE_ARRAYS,
    INVARIANCE_GROUP,
    MISSING_LABEL,
    PROBE_ARRAYS,
    PROBE_FEATURES,
    PROBE_GROUP,
    PROBE_SCRATCH,
    features_path,
)
from deconvoy.spec import JobSpec, ProbeSpec
from workers.checksums import Chunks, Fault
from workers.parts import marker_path, number_of


class ImageGroup:
    """A group with a row an image: its arrays, and the rows that the markers promise."""

    group: str
    whole: tuple[str, ...]
    """Arrays that the driver writes when it makes the group."""

    def __init__(self, chunks: Chunks, attributes: dict[str, Any]) -> None:
        self.chunks, self.run, self.attributes = chunks, chunks.run, attributes
        self.spec = JobSpec.parse(attributes["spec"])
        self.told: dict[str, Any] = {}
        """The group's attributes, once it was found."""
        self.files = 0
        """Markers read."""

    def asked(self) -> bool:
        """Whether the spec has the analysis."""
        raise NotImplementedError

    def written(self) -> tuple[str, ...]:
        """Arrays that a work item writes a row of; known once the group was found."""
        raise NotImplementedError

    def fits(self) -> Iterator[Fault]:
        """What else must fit together."""
        raise NotImplementedError

    def faults(self) -> Iterator[Fault]:
        names = self.run.names(f"ledger/{self.group}")
        done = self.attributes["state"]["status"] == "done"
        if not self.asked() or not (names or done):
            return
        faults = list(self._absent())
        yield from faults
        if faults:
            return
        promised = dict[int, int]()
        for name in names:
            yield from self._marker(f"ledger/{self.group}/{name}", promised)
        ids = self.array("image")
        if ids is None:
            return
        yield from self._rows(promised, ids, done)
        yield from self.fits()
        if not self.chunks.broken and "results" in self.attributes:
            yield from self._targets(promised)

    def array(self, name: str) -> np.ndarray | None:
        return self.chunks.array_at(f"{self.group}/{name}")

    def _absent(self) -> Iterator[Fault]:
        place = f"{self.group}/zarr.json"
        if not self.run.exists(place):
            yield Fault(place, "is missing")
            return
        if self.group in self.chunks.unopened:
            yield Fault(place, "cannot be read")
            return
        self.told = dict(self.run.zarr()[self.group].attrs.asdict())
        for name in (*self.whole, *self.written()):
            if not self.run.exists(f"{self.group}/{name}/zarr.json"):
                yield Fault(f"{self.group}/{name}/zarr.json", "is missing")

    def _marker(self, path: str, promised: dict[int, int]) -> Iterator[Fault]:
        self.files += 1
        try:
            promised[number_of(path)] = int(json.loads(self.run.read(path))["image"])
        except (ValueError, KeyError, TypeError) as error:
            yield Fault(path, f"cannot be read: {error}")

    def _rows(self, promised: dict[int, int], ids: np.ndarray, done: bool) -> Iterator[Fault]:
        for name in self.written():
            for place in self.chunks.missing.get(f"{self.group}/{name}", ()):
                if place[0] in promised:
                    yield self.chunks.absent_at(f"{self.group}/{name}", place)
        for row, image in promised.items():
            if row >= len(ids):
                yield Fault(self._path(row), f"is of none of {len(ids)}")
            elif ids[row] != image:
                told = f"row {row} is image {ids[row]}, but its marker says {image}"
                yield Fault(f"{self.group}/image", told)
        for row in sorted(set(range(len(ids))) - set(promised)) if done else ():
            yield Fault(self._path(row), "is missing")

    def _path(self, row: int) -> str:
        return marker_path(f"{self.group}/item-{row:06d}")

    def _targets(self, promised: dict[int, int]) -> Iterator[Fault]:
        """The class that is watched is the image's label, where it has one."""
        rows = sorted(promised)
        target = self.array("target")
        if target is None or not rows:
            return
        try:
            images = Run(self.run.url).images_of(np.array([promised[row] for row in rows]))
        except DeconvoyError:  # the images table is broken, which is told elsewhere
            return
        for row, label in zip(rows, images["label"].to_pylist(), strict=True):
            if label not in (None, MISSING_LABEL) and target[row] != label:
                told = f"is {target[row]} of row {row}, but the image's label is {label}"
                yield Fault(f"{self.group}/target", told)


class Invariance(ImageGroup):
    """The group ``invariance``."""

    group = INVARIANCE_GROUP
    whole = ("transformation", "amount")

    def asked(self) -> bool:
        return self.spec.invariance is not None

    def written(self) -> tuple[str, ...]:
        return tuple(f.name for f in INVARIANCE_ARRAYS if f.name not in self.whole)

    def fits(self) -> Iterator[Fault]:
        """There are as many amounts as moves, and no distance is below zero."""
        arrays = [self.array(name) for name in ("transformation", "amount", "distance")]
        if any(array is None for array in arrays):
            return
        transformation, amount, distance = arrays
        assert transformation is not None and amount is not None and distance is not None
        if not len(transformation) == len(amount) == distance.shape[1]:
            yield Fault(
                f"{self.group}/amount", f"has not the {distance.shape[1]} steps of distance"
            )
        elif (distance < 0).any():
            yield Fault(f"{self.group}/distance", "is below zero somewhere")


class Correspondences:
    """The group ``correspondence``: the draws that the markers promise."""

    def __init__(self, chunks: Chunks, attributes: dict[str, Any]) -> None:
        self.chunks, self.run, self.attributes = chunks, chunks.run, attributes
        self.files = 0
        """Markers read."""

    def faults(self) -> Iterator[Fault]:
        asked = JobSpec.parse(self.attributes["spec"]).correspondence
        done = self.attributes["state"]["status"] == "done"
        place = f"{CORRESPONDENCE_GROUP}/zarr.json"
        if asked is None or (not self.run.exists(place) and not done):
            return
        arrays = [f"{CORRESPONDENCE_GROUP}/{f.name}/zarr.json" for f in CORRESPONDENCE_ARRAYS]
        absent = [path for path in (place, *arrays) if not self.run.exists(path)]
        yield from (Fault(path, "is missing") for path in absent)
        if absent or CORRESPONDENCE_GROUP in self.chunks.unopened:
            return
        told: dict[str, Any] = dict(self.run.zarr()[CORRESPONDENCE_GROUP].attrs.asdict())
        array: Any = self.run.zarr()[f"{CORRESPONDENCE_GROUP}/delta"]
        wanted = range(-(-array.shape[1] // array.chunks[1]))
        for part, name in enumerate(told.get("parts", ())):
            there = {number for number in wanted if self._committed(name, number)}
            for number in sorted(set(wanted) - there) if done else ():
                yield Fault(_marker(name, number), "is missing")
            for field in ("delta", "deviation"):
                path = f"{CORRESPONDENCE_GROUP}/{field}"
                for at in self.chunks.missing.get(path, ()):
                    if at[0] == part and at[1] in there:
                        yield self.chunks.absent_at(path, at)

    def _committed(self, part: str, number: int) -> bool:
        self.files += 1
        return self.run.exists(_marker(part, number))


def _marker(part: str, number: int) -> str:
    return marker_path(f"{CORRESPONDENCE_GROUP}/{part}/item-{number:06d}")


class Probes:
    """The group ``probe``: features, fits and trainings that the markers promise."""

    def __init__(self, chunks: Chunks, attributes: dict[str, Any]) -> None:
        self.chunks, self.run, self.attributes = chunks, chunks.run, attributes
        self.files = 0
        """Markers read."""

    def faults(self) -> Iterator[Fault]:
        asked = JobSpec.parse(self.attributes["spec"]).probe
        done = self.attributes["state"]["status"] == "done"
        place = f"{PROBE_GROUP}/zarr.json"
        if asked is None or (not self.run.exists(place) and not done):
            return
        fields = (*PROBE_ARRAYS, PROBE_SCRATCH) if asked.scratch else PROBE_ARRAYS
        arrays = [f"{PROBE_GROUP}/{field.name}/zarr.json" for field in fields]
        absent = [path for path in (place, *arrays) if not self.run.exists(path)]
        yield from (Fault(path, "is missing") for path in absent)
        if absent or PROBE_GROUP in self.chunks.unopened:
            return
        told: dict[str, Any] = dict(self.run.zarr()[PROBE_GROUP].attrs.asdict())
        for number, weights in enumerate(told.get("weights", ())):
            yield from self._features(weights, told["layers"], done)
            yield from self._fits(number, weights, len(told["layers"]), done)
        if asked.scratch:
            yield from self._scratch(asked, done)

    def _features(self, weights: str, layers: Sequence[str], done: bool) -> Iterator[Fault]:
        there = self._committed(f"probe-features/{weights}")
        for layer in layers:
            path = f"{features_path(weights, layer)}/{PROBE_FEATURES.name}"
            if not self.run.exists(f"{path}/zarr.json"):
                yield Fault(f"{path}/zarr.json", "is missing")
                continue
            for place in self.chunks.missing.get(path, ()):
                if place[0] in there:
                    yield self.chunks.absent_at(path, place)
        array: Any = self.run.zarr()[f"{PROBE_GROUP}/read"]
        items = -(-array.shape[1] // array.chunks[1])
        yield from self._unmarked(f"probe-features/{weights}", items, there, done)

    def _fits(self, number: int, weights: str, layers: int, done: bool) -> Iterator[Fault]:
        there = self._committed(f"probe/{weights}")
        for name in ("accuracy", "converged"):
            path = f"{PROBE_GROUP}/{name}"
            for place in self.chunks.missing.get(path, ()):
                if place[0] == number and place[1] in there:
                    yield self.chunks.absent_at(path, place)
        yield from self._unmarked(f"probe/{weights}", layers, there, done)

    def _scratch(self, asked: ProbeSpec, done: bool) -> Iterator[Fault]:
        there, path = self._committed("probe-scratch"), f"{PROBE_GROUP}/{PROBE_SCRATCH.name}"
        for size, fold in self.chunks.missing.get(path, ()):
            if size * asked.folds + fold in there:
                yield self.chunks.absent_at(path, (size, fold))
        yield from self._unmarked("probe-scratch", len(asked.train) * asked.folds, there, done)

    def _unmarked(self, stage: str, items: int, there: set[int], done: bool) -> Iterator[Fault]:
        for number in sorted(set(range(items)) - there) if done else ():
            yield Fault(marker_path(f"{stage}/item-{number:06d}"), "is missing")

    def _committed(self, stage: str) -> set[int]:
        names = self.run.names(marker_path(f"{stage}/x").rpartition("/")[0])
        self.files += len(names)
        return {number_of(name) for name in names}
