"""A layer's hits made ready for pages of units: rows by unit, class counts, what is projected.

Reading arrays anew for every unit costs milliseconds; a layer's tables are small and are kept.
"""

import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int32, Int64

from deconvoy.arrays import read
from deconvoy.errors import RunNotFound
from deconvoy.run import Run
from deconvoy.schema import MISSING_LABEL

KEPT_BYTES = 32 * 2**20
"""Of one run's layers, at most; those asked for longest ago go first.  The last one stays, whatever
its size."""

Row = dict[str, Any]


@dataclass(frozen=True)
class LayerHits:
    """The tables of one layer."""

    layer: str
    table: pa.Table
    """As of ``Run.table``: by unit, then rank."""
    first: Int64[np.ndarray, " unit_and_end"]
    """Row of each unit's first hit; one more at the end."""
    window: Int32[np.ndarray, "unit rank y0x0y1x1"]
    mean: Float64[np.ndarray, " unit"]
    histogram: Int64[np.ndarray, "unit bin"]
    """How many images have their maximum in each bin."""
    density: Float64[np.ndarray, " unit"]
    projected: Bool[np.ndarray, " unit"]

    @property
    def units(self) -> int:
        return len(self.density)

    @cached_property
    def nbytes(self) -> int:
        """Of memory, about."""
        arrays = (self.first, self.window, self.mean, self.histogram, self.density, self.projected)
        return int(self.table.nbytes) + sum(array.nbytes for array in arrays)

    def require(self, unit: int) -> None:
        """Raises RunNotFound: there is no such unit."""
        if not 0 <= unit < self.units:
            raise RunNotFound(
                f"Layer {self.layer!r} has units 0 to {self.units - 1}, so there is no unit {unit}."
            )

    def rows(self, unit: int) -> list[Row]:
        """A unit's hits, strongest first."""
        begin, end = self.first[unit : unit + 2].tolist()
        return list(self.table.slice(begin, end - begin).to_pylist())

    def empty(self, unit: int) -> bool:
        """Whether a unit has no hits."""
        return bool(self.first[unit] == self.first[unit + 1])

    def dead(self, unit: int) -> bool:
        """Whether no image activates a unit; one may be empty and alive, of outliers left out."""
        return self.empty(unit) and not self.density[unit]

    @cached_property
    def scores(self) -> Float64[np.ndarray, " unit"]:
        """Largest activation of each unit; −inf where there is no hit."""
        found = np.full(self.units, -np.inf)
        there = self.first[:-1] < self.first[1:]
        found[there] = self.table["score"].to_numpy()[self.first[:-1][there]]
        return found

    @cached_property
    def commonest(self) -> Int64[np.ndarray, "unit 2"]:
        """Class of most of each unit's hits, −1 where none has one, and how many are of it."""
        found = [self.classes(unit) for unit in range(self.units)]
        return np.array([counts[0] if counts else (MISSING_LABEL, 0) for counts in found], np.int64)

    @property
    def purity(self) -> Float64[np.ndarray, " unit"]:
        """Share of each unit's hits that are of its commonest class; 0 without hits."""
        return self.commonest[:, 1] / np.maximum(np.diff(self.first), 1)

    def classes(self, unit: int) -> list[tuple[int, int]]:
        """Label and count, commonest first, the better rank first among equals."""
        begin, end = self.first[unit : unit + 2].tolist()
        labels = self.table["label"].slice(begin, end - begin).to_pylist()
        return Counter(label for label in labels if label is not None).most_common()


class LayerCache:
    """Of one open run.

    Args:
        most_bytes: of memory that what is kept takes.
    """

    def __init__(self, run: Run, most_bytes: int = KEPT_BYTES) -> None:
        self._run, self._most = run, most_bytes
        self._lock = threading.Lock()
        self._readers: dict[str, threading.Lock] = {}
        self._hits: OrderedDict[str, LayerHits] = OrderedDict()
        self._rows: list[Row] | None = None

    def at_hand(self, layer: str) -> LayerHits | None:
        """A layer's tables, if they are read already: no waiting."""
        return self._hits.get(layer)

    def hits(self, layer: str) -> LayerHits:
        """Raises RunNotFound: no such layer, or its scan is not done."""
        with self._reading(layer):  # whoever asks for it at the same time waits, and reads nothing
            found = self._hits.get(layer) or _read(self._run, layer)
        with self._lock:
            self._hits[layer] = found
            self._hits.move_to_end(layer)
            while len(self._hits) > 1 and self._bytes() > self._most:
                self._hits.popitem(last=False)
        return found

    def _reading(self, layer: str) -> threading.Lock:
        """One a layer: reading one holds up nobody who asks for another."""
        with self._lock:
            return self._readers.setdefault(layer, threading.Lock())

    def _bytes(self) -> int:
        return sum(hits.nbytes for hits in self._hits.values())

    def rows(self) -> list[Row]:
        """Of ``Run.layers``, each with its ``Run.look``.  Raises RunNotFound: the scan is not
        done."""
        with self._reading(""):
            if self._rows is None:
                rows = self._run.layers().to_pylist()
                self._rows = [{**row, "look": self._run.look(row["layer"])} for row in rows]
            return self._rows


def _read(run: Run, layer: str) -> LayerHits:
    group = run.layer_group(layer)
    table = run.table(layer).combine_chunks()
    density = run.density(layer)
    units = len(density)
    first = np.searchsorted(table["unit"].to_numpy(), np.arange(units + 1))
    projected = np.zeros(units, bool)
    projected[run.projected_units(layer)] = True
    return LayerHits(
        layer,
        table,
        first,
        window=read(group, "window"),
        mean=read(group, "mean"),
        histogram=read(group, "histogram"),
        density=density,
        projected=projected,
    )
