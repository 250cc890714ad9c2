"""Verify what evolution wrote: that its markers can be read, and that all they promise is there.

That the bytes are those that were written is checked with all other chunks.
"""

import json
from collections.abc import Iterator
from typing import Any

from deconvoy.errors import DeconvoyError
from deconvoy.schema import EVOLUTION_ARRAYS, EVOLUTION_GROUP, evolution_path
from deconvoy.spec import JobSpec
from workers.checksums import Chunks, Fault
from workers.evolution_marker import from_bytes
from workers.parts import number_of

PICTURES = ("patch", "projection", "scale", "projected")


class Evolutions:
    """The group ``evolution``, and the markers of both of its stages."""

    def __init__(self, chunks: Chunks, attributes: dict[str, Any]) -> None:
        self.chunks, self.run, self.attributes = chunks, chunks.run, attributes
        self.files = 0
        """Markers read."""

    def faults(self) -> Iterator[Fault]:
        if JobSpec.parse(self.attributes["spec"]).evolution is None:
            return
        done = self.attributes["state"]["status"] == "done"
        yield from self._scanned(done)
        place = f"{EVOLUTION_GROUP}/zarr.json"
        if not self.run.exists(place):
            if done:
                yield Fault(place, "is missing")
            return
        if EVOLUTION_GROUP in self.chunks.unopened:
            yield Fault(place, "cannot be read")
            return
        told: dict[str, Any] = dict(self.run.zarr()[EVOLUTION_GROUP].attrs.asdict())
        if "layers" not in told:  # it is being made
            return
        for layer in told["layers"]:
            names = [f.name for f in EVOLUTION_ARRAYS if f.name not in PICTURES]
            yield from self._absent(layer, names)
        for layer in told["projected"]:
            absent = list(self._absent(layer, PICTURES))
            yield from absent or self._pictures(layer)

    def _scanned(self, done: bool) -> Iterator[Fault]:
        names = self.run.names("ledger/evolution-scan")
        count = len(self.attributes["provenance"].get("checkpoints_sha256", ()))
        for name in names:
            self.files += 1
            path = f"ledger/evolution-scan/{name}"
            try:
                from_bytes(self.run.read(path), name, count)
            except DeconvoyError as error:
                yield Fault(path, str(error))
        if done and not names:
            yield Fault("ledger/evolution-scan", "is missing")

    def _absent(self, layer: str, names: Any) -> Iterator[Fault]:
        for name in names:
            path = f"{evolution_path(layer)}/{name}/zarr.json"
            if not self.run.exists(path):
                yield Fault(path, "is missing")

    def _pictures(self, layer: str) -> Iterator[Fault]:
        """Shards that markers promise; what is silent at every checkpoint has none but flags."""
        folder = f"ledger/{evolution_path(layer)}"
        committed: set[int] = set()
        for name in self.run.names(folder):
            self.files += 1
            try:
                marker = json.loads(self.run.read(f"{folder}/{name}"))
                committed |= set(marker["units"])
                filled = bool(marker["projections"])
            except (ValueError, KeyError, TypeError) as error:
                yield Fault(f"{folder}/{name}", f"cannot be read: {error}")
                continue
            for array in PICTURES if filled else ("projected",):
                path = f"{evolution_path(layer)}/{array}"
                for place in self.chunks.missing.get(path, ()):
                    if place[0] == number_of(name):
                        yield self.chunks.absent_at(path, place)
        path = f"{evolution_path(layer)}/projected"
        flags = self.chunks.array_at(path)
        if flags is None:
            return
        there = set(flags.nonzero()[0].tolist())
        for unit in sorted(there ^ committed)[:1]:
            says = "but no marker says so" if unit in there else "and its marker says it is"
            state = "is projected" if unit in there else "is not projected"
            yield Fault(path, f"unit {unit} {state}, {says}")
