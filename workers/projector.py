"""Project the hits of one lease: which images are run whole, what is kept of them, and batches.

An image is run forward as a whole where that is less work than the cones of its hits; else each hit
is run forward on its own cone (``workers.ascent``).  This is decided from the hits of the lease
alone, and every image is run by itself, or on a GPU in batches of one size, so that the bits do not
depend on which worker does it, nor on what it did before.  That is why switches of whole images may
be kept from lease to lease.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from deconvoy.spec import Method, Transform
from workers.ascent import Ascent
from workers.cones import Cone, Group
from workers.deconvnet import Deconvnet, Projection
from workers.graph import Layer, Network
from workers.images import Picture, chunks, normalise, on_device
from workers.lanes import Lanes
from workers.portions import portions_on
from workers.switches import Switches

HELD_IMAGES = 512
"""Whose hits are run on their cones, decoded at a time: 77 MB of 224 px."""

Pictures = Callable[[Sequence[int]], Iterator[Picture]]
"""Pictures of images, by id, in that order."""


@dataclass(frozen=True)
class Hits:
    """Of one layer."""

    image: Int64[np.ndarray, " hit"]
    """Ids."""
    unit: Int64[np.ndarray, " hit"]
    position: Int64[np.ndarray, "hit yx"]
    seed: Float[Tensor, " hit"]
    """The recorded activations."""


@dataclass(frozen=True)
class Batch:
    """Hits that are projected together."""

    hits: Int64[np.ndarray, " hit"]
    """Which of the lease's."""
    group: Group
    pictures: Sequence[Picture]
    picture_of_hit: Int64[np.ndarray, " hit"]
    switches: Switches | None
    """Of the pictures; None where each hit is run forward on its cone."""


def expected_reuse(leases: int, hits: int, images: int) -> float:
    """How many of a layer's leases an image is in that is in one at all, if hits lay evenly over
    the images.

    Not counted from the hits: what a lease computes must not depend on the hits of others, so that
    an extended run can take it over.

    Args:
        hits: of each lease.
        images: of the data set.
    """
    inside = 1 - (1 - 1 / max(2, images)) ** hits
    return leases * inside / (1 - (1 - inside) ** leases) if hits and leases else 1.0


class Projector:
    """Projects the hits of one network's layers."""

    def __init__(
        self,
        network: Network,
        transform: Transform,
        device: torch.device,
        method: Method = "deconvnet",
    ) -> None:
        self._network, self._transform, self._device = network, transform, device
        self._method: Method = method
        self.deconvnet = Deconvnet(network)
        self._cones: dict[str, tuple[Cone, Ascent]] = {}
        self._portions = portions_on(device.type)
        self._kept = _Kept(self._portions.switch_bytes)

    def batches(
        self, layer: Layer, hits: Hits, reuse: float, pictures: Pictures, in_lanes: Lanes
    ) -> Iterator[Batch]:
        """All hits, with the switches of images that are run whole.

        Args:
            reuse: how many leases of the layer an image is in, about.
        """
        cone, ascent = self._cone(layer)
        whole = self._whole(layer, hits, reuse)
        for which in np.flatnonzero(whole), np.flatnonzero(~whole):
            which = which[np.argsort(hits.image[which], kind="stable")]
            distinct, first = np.unique(hits.image[which], return_index=True)
            ends = [*first[1:].tolist(), len(which)]
            shared = bool(len(which)) and bool(whole[which[0]])
            fitting = self._portions.switch_bytes // self._switch_bytes(cone)
            for part in chunks(range(len(distinct)), max(8, fitting) if shared else HELD_IMAGES):
                own = which[int(first[part[0]]) : ends[part[-1]]]
                ids = distinct[part[0] : part[-1] + 1]
                found = list(pictures(ids.tolist()))
                switches = self._switches(ids, found, ascent, in_lanes) if shared else None
                row = np.searchsorted(ids, hits.image[own])
                number_bytes = None if shared else 4
                for group in cone.batches(hits.position[own], number_bytes):
                    yield Batch(own[group.hits], group, found, row[group.hits], switches)

    @torch.no_grad()
    def project(
        self, layer: Layer, hits: Hits, batch: Batch
    ) -> Iterator[tuple[Int64[np.ndarray, " hit"], Projection]]:
        """One batch, in parts: which of the lease's hits, and their projections."""
        cone, ascent = self._cone(layer)
        at, own = batch.hits, hits.position[batch.hits]
        row = torch.from_numpy(batch.picture_of_hit)
        switches: Any = batch.switches
        if switches is None:
            used, place = np.unique(batch.picture_of_hit, return_inverse=True)
            images = self._normalised([batch.pictures[i] for i in used.tolist()])
            row = torch.from_numpy(place).to(self._device)
            switches = ascent.switches(images, row, batch.group, own)
        unit = torch.from_numpy(hits.unit[at]).to(self._device)
        seed = hits.seed[torch.from_numpy(at)].to(self._device)
        for part, projection in self.deconvnet.parts(
            cone, batch.group, switches, row.to(self._device), unit, own, seed, self._method
        ):
            yield at[part], projection

    def forget(self) -> None:
        """What is kept from lease to lease to be faster."""
        self._kept = _Kept(self._portions.switch_bytes)

    def cone(self, layer: Layer) -> Cone:
        return self._cone(layer)[0]

    def _cone(self, layer: Layer) -> tuple[Cone, Ascent]:
        if layer.name not in self._cones:
            cone = Cone(self._network, layer)
            self._cones[layer.name] = cone, Ascent(self._network, cone, self._method)
        return self._cones[layer.name]

    def _switch_bytes(self, cone: Cone) -> int:
        return self._network.switch_bytes(cone.path, self._method)

    def _whole(self, layer: Layer, hits: Hits, reuse: float) -> Bool[np.ndarray, " hit"]:
        """Whether each hit's image is run as a whole: its hits' cones together are more work."""
        cone, ascent = self._cone(layer)
        if not ascent.path or not ascent.possible:
            return np.ones(len(hits.unit), bool)
        work = np.zeros(len(hits.unit))
        for group in cone.groups(hits.position):
            work[group.hits] = ascent.of_a_hit(group)
        _, row = np.unique(hits.image, return_inverse=True)
        again = 1.0
        needed = len(np.unique(hits.image)) * self._switch_bytes(cone)
        if needed <= self._portions.switch_bytes:
            again = reuse
        found: Bool[np.ndarray, " hit"] = np.bincount(row, work)[row] * again >= ascent.whole
        return found

    @torch.no_grad()
    def _switches(
        self,
        ids: Int[np.ndarray, " image"],
        pictures: Sequence[Picture],
        ascent: Ascent,
        in_lanes: Lanes,
    ) -> Switches:
        """Of whole images, as many at a time as the device takes."""
        if not ascent.path:
            return Switches({})
        known = [self._kept.get(image, ascent.recorded) for image in ids.tolist()]
        missing = [row for row, switches in enumerate(known) if switches is None]
        size = self._portions.images

        def forward(rows: Sequence[int]) -> list[Switches]:
            images = self._normalised([pictures[row] for row in rows])
            if len(rows) < size:
                images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, size - len(rows)))
            with torch.no_grad():
                switches = self._network.switches(images, ascent.path, self._method)
                return switches.each(len(rows))

        parts = list(chunks(missing, size))
        for rows, found in zip(parts, in_lanes(forward, parts), strict=True):
            for row, switches in zip(rows, found, strict=True):
                known[row] = switches
                self._kept.put(int(ids[row]), switches)
        return Switches.joined([switches for switches in known if switches is not None])

    def _normalised(self, pictures: Sequence[Picture]) -> Float[Tensor, "image channel row col"]:
        pixels = torch.stack([picture.pixels for picture in pictures])
        return normalise(on_device(pixels, self._device), self._transform)


class _Kept:
    """The switches of the images used last, by image id."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._known: OrderedDict[int, Switches] = OrderedDict()
        self._lock = Lock()

    def get(self, image: int, steps: Iterable[int]) -> Switches | None:
        """Those of some steps; None unless all are known."""
        with self._lock:
            known = self._known.get(image)
            if known is None or not set(steps) <= set(known.codes):
                return None
            self._known.move_to_end(image)
        return Switches({step: known.codes[step] for step in steps})

    def put(self, image: int, switches: Switches) -> None:
        with self._lock:
            before = self._known.pop(image, None)
            if before is not None:
                self._bytes -= before.nbytes
            self._known[image] = switches
            self._bytes += switches.nbytes
            while self._bytes > self._most_bytes and self._known:
                _, oldest = self._known.popitem(last=False)
                self._bytes -= oldest.nbytes
