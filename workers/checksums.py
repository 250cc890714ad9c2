"""Read every chunk of a run: which arrays are whole, which bytes changed, which chunks are absent.

A chunk that is all fill may have no file, so an absent one is no fault by itself; ``verify`` knows
which of them were promised.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr

from deconvoy.errors import RunUnreachable
from deconvoy.schema import layer_path
from deconvoy.store import RunStore


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong."""

    place: str
    """File or array below the run, or the hit."""
    reason: str


@dataclass
class Chunks:
    """What reading all chunks of a run has shown."""

    run: RunStore
    read: int = 0
    """Chunks with a file."""
    files: int = 0
    """Metadata files."""
    missing: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    """Chunks without a file, by array."""
    broken: set[str] = field(default_factory=set)
    """Arrays that cannot be read whole; they are told once."""
    unopened: set[str] = field(default_factory=set)
    """Groups and arrays whose metadata cannot be read."""
    present: set[str] = field(default_factory=set)
    """All files there are."""

    def faults(self) -> Iterator[Fault]:
        """Read everything there is."""
        self.present = set(self.run.paths())
        for file in sorted(path for path in self.present if path.split("/")[-1] == "zarr.json"):
            path = file.removesuffix("zarr.json").rstrip("/")
            self.files += 1
            try:
                node: Any = zarr.open(self.run.zarr_store(), path=path, mode="r")
            except RunUnreachable:
                raise
            except Exception as error:  # JSON, Zarr and key errors alike
                self.broken.add(path)
                self.unopened.add(path)
                yield Fault(f"{path}/zarr.json", f"cannot be read: {error}")
                continue
            if isinstance(node, zarr.Array):
                yield from self._chunks_of(path, node)

    def _chunks_of(self, path: str, array: zarr.Array[Any]) -> Iterator[Fault]:
        step = array.shards or array.chunks
        grid = [range(-(-size // width)) for size, width in zip(array.shape, step, strict=True)]
        for place in itertools.product(*grid):
            key = f"{path}/{_chunk_key(array, place)}"
            if key not in self.present:
                self.missing.setdefault(path, []).append(place)
                continue
            self.read += 1
            slices = (slice(i * w, (i + 1) * w) for i, w in zip(place, step, strict=True))
            try:
                array[tuple(slices)]
            except RunUnreachable:
                raise
            except Exception as error:  # each codec raises its own
                self.broken.add(path)
                yield Fault(key, f"its bytes are not those that were written: {error}")

    def array(self, layer: str, name: str) -> np.ndarray | None:
        """An array whole; None where it cannot be read, which was told."""
        return self.array_at(f"{layer_path(layer)}/{name}")

    def array_at(self, path: str) -> np.ndarray | None:
        """The same of an array anywhere below the run."""
        if path in self.broken or not self.run.exists(f"{path}/zarr.json"):
            return None
        array: Any = self.run.zarr()[path]
        return np.asarray(array[...])

    def absent(self, layer: str, name: str, place: tuple[int, ...]) -> Fault:
        return self.absent_at(f"{layer_path(layer)}/{name}", place)

    def absent_at(self, path: str, place: tuple[int, ...]) -> Fault:
        """The same of an array anywhere below the run."""
        array: Any = self.run.zarr()[path]
        return Fault(f"{path}/{_chunk_key(array, place)}", "is missing, but the ledger promises it")

    def absent_of(self, layer: str, name: str) -> list[tuple[int, ...]]:
        """Chunks of a layer's array that have no file."""
        return self.missing.get(f"{layer_path(layer)}/{name}", [])


def _chunk_key(array: Any, place: tuple[int, ...]) -> str:
    return str(array.metadata.encode_chunk_key(place))
