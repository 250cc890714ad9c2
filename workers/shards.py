"""The committed shards of a scan: the driver writes their markers and folds them in shard order.

A shard's images table is written first, its marker last: what has a marker is whole.
"""

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from deconvoy.errors import TooManyBadImages
from deconvoy.images_table import images_part
from deconvoy.schema import MISSING_LABEL, image_part_path
from deconvoy.store import RunStore
from workers.job import Job
from workers.leases import ScanResult
from workers.parts import number_of
from workers.topk import Partial

logger = logging.getLogger(__name__)

COMPACT_EVERY = 64
"""Folded shards after which their markers are replaced by one file."""

HELD_BYTES = 64 * 2**20
"""Of results in memory; what a thousand workers finish out of order is more, and is read again."""


class CommittedShards:
    """What is committed of a scan, and the sum of it."""

    def __init__(self, job: Job, run: RunStore) -> None:
        self.job, self.run = job, run
        self.fold = job.empty_fold()
        self.folded = 0
        """Shards folded so far: all before this one."""
        self._waiting: set[int] = set()
        """Committed shards that lie behind one that is not."""
        self._held: dict[int, Partial] = {}
        """Results of some that wait, so that their markers need not be read."""
        self._held_bytes = 0
        self._compacted = 0

    def take_up(self) -> None:
        """Fold what the markers hold."""
        names = self.run.names("ledger/scan")
        prefixes = [name for name in names if name.startswith("prefix-")]
        if prefixes:
            last = prefixes[-1]
            self.fold.add(self._read(last))
            self.folded = self._compacted = number_of(last) + 1
        parts = {number_of(name) for name in names if name.startswith("part-")}
        self._waiting = {part for part in parts if part >= self.folded}
        self._advance()

    def left(self) -> list[int]:
        return [p for p in range(self.folded, self.job.shards) if p not in self._waiting]

    def commit(self, part: int, result: ScanResult) -> None:
        """Write a shard's images and its marker, then fold it.

        Raises:
            TooManyBadImages: more are unreadable so far than ``data.max_bad`` allows.
        """
        for uri, reason in result.bad:
            logger.warning("Skipped %s: %s", uri, reason)
        sink = pa.BufferOutputStream()
        pq.write_table(result.images, sink, compression="zstd", write_page_checksum=True)
        self.run.write(image_part_path(part), sink.getvalue().to_pybytes())
        partial = result.partial.entering(self.fold.floor)
        self.run.write(f"ledger/scan/part-{part:06d}.npz", partial.to_bytes())
        if part == self.folded:
            self._fold(partial)
        else:
            self._waiting.add(part)
            if self._held_bytes + partial.nbytes <= HELD_BYTES:
                self._held[part] = partial
                self._held_bytes += partial.nbytes
        self._advance()
        self.judge(result.bad)

    def _advance(self) -> None:
        while self.folded in self._waiting:
            self._waiting.remove(self.folded)
            held = self._held.pop(self.folded, None)
            self._held_bytes -= 0 if held is None else held.nbytes
            self._fold(self._read(f"part-{self.folded:06d}.npz") if held is None else held)

    def _fold(self, partial: Partial) -> None:
        self.fold.add(partial)
        self.folded += 1
        if self.folded - self._compacted >= COMPACT_EVERY:
            self._compact()

    def _compact(self) -> None:
        """Replace the markers of all folded shards by one file; the old ones go last."""
        done = f"prefix-{self.folded - 1:06d}.npz"
        self.run.write(f"ledger/scan/{done}", self.fold.to_partial().to_bytes())
        names = self.run.names("ledger/scan")
        old = [name for name in names if name != done and number_of(name) < self.folded]
        self.run.delete(*(f"ledger/scan/{name}" for name in old))
        self._compacted = self.folded

    def _read(self, name: str) -> Partial:
        return Partial.from_bytes(self.run.read(f"ledger/scan/{name}"), name)

    def judge(self, bad: Sequence[tuple[str, str]] = ()) -> None:
        """Raises TooManyBadImages."""
        allowed = self.job.spec.data.max_bad * len(self.job.listing)
        skipped = self.fold.skipped
        if skipped > allowed:
            shown = "; ".join(f"{uri}: {reason}" for uri, reason in bad[:3])
            raise TooManyBadImages(
                f"{skipped} of {len(self.job.listing)} images are unreadable, more than "
                f"data.max_bad = {self.job.spec.data.max_bad:g} allows"
                f"{f' ({shown})' if shown else ''}: mend or remove them, or raise "
                "data.max_bad, and start a new run."
            )

    def labels_of(self, ids: Int64[np.ndarray, "unit rank"]) -> Int64[np.ndarray, "unit rank"]:
        """Output indices of the images' true classes, or where the data carries no labels of the
        predicted ones; ``MISSING_LABEL`` where there is no image or no label."""
        distinct, place = np.unique(ids, return_inverse=True)
        known = distinct[distinct >= 0]
        labels = self._true_labels(known) if self.job.listing.labelled else self._predicted(known)
        none = np.full(len(distinct) - len(known), MISSING_LABEL)  # −1 is sorted first
        found: Int64[np.ndarray, "unit rank"] = np.concatenate([none, labels])[place]
        return found.reshape(ids.shape)

    def _true_labels(self, ids: Int64[np.ndarray, " image"]) -> Int64[np.ndarray, " image"]:
        places = map(self.job.place_of, ids.tolist())
        labels = [self.job.listing.labels[place] for place in places]
        return np.array([MISSING_LABEL if label is None else label for label in labels], np.int64)

    def _predicted(self, ids: Int64[np.ndarray, " image"]) -> Int64[np.ndarray, " image"]:
        """Ids count the images of all parts of the images table through; parts are read once."""
        parts, rows = np.divmod(ids, self.job.spec.compute.shard_size)
        predicted = np.empty(len(ids), np.int64)
        for part in np.unique(parts):
            table = images_part(self.run, image_part_path(int(part)), ["predicted"])
            wanted = parts == part
            predicted[wanted] = table["predicted"].take(pa.array(rows[wanted])).to_numpy()
        return predicted
