"""Whether a scan in bfloat16 finds the nine strongest images of every unit that an exact one does.

Asked twice: of the run, in which every image that is a candidate of any unit is scanned again; and,
more sharply, of each unit and its own candidates alone, since over few images every one is the
candidate of some unit.  Hits that would be lost are counted, with how far they are above the
weakest of their nine, over the largest score of their layer.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.comparison import Comparison, photographs
from benchmarks.scan import K, scan_in_lanes
from deconvoy.spec import ModelSpec
from workers.job import trace
from workers.machine import cores
from workers.models import pack
from workers.topk import Hits, UnitIndex

SUBJECTS = {"alexnet": 1000, "vgg16": 1000 if torch.cuda.is_available() else 96}
"""And images: a processor that emulates bfloat16 takes half a second for one of vgg16."""

KEPT = 2 * K
BATCH = 16


def measure(folder: Path | None, count: int) -> Iterator[Comparison]:
    """A row a model.

    Args:
        folder: of photographs; None for noise.
        count: images, of models that are not slower than that.
    """
    for name, most in SUBJECTS.items():
        packed = pack(ModelSpec(name=f"torchvision/{name}"), seed=0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        exact, fast = trace(packed).to(device), trace(packed).cast(torch.bfloat16).to(device)
        images = photographs(folder, min(most, 5 * count), packed.transform).to(device)
        lanes = 1 if torch.cuda.is_available() else cores()
        batches = images[: len(images) // BATCH * BATCH].view(-1, BATCH, *images.shape[1:])
        with ThreadPoolExecutor(lanes) as pool:
            hits = scan_in_lanes(exact, batches, pool, lanes)
            candidates = scan_in_lanes(fast, batches, pool, lanes, KEPT)
        torch.set_num_threads(cores())
        lost = ~np.isin(hits.image, np.unique(candidates.image))
        own = _lost_by_own(hits, candidates)
        index = UnitIndex.of([layer.units for layer in exact.layers])
        margins = _margins(hits, own, index)
        yield Comparison(
            "final nine, bfloat16", name, "an exact scan", "run",
            ours=[float((~lost).sum())], theirs=[float(len(hits))], measured="hits",
            difference=float(margins.max(initial=0.0)),
            details={
                "images": len(batches) * BATCH,
                "candidates": KEPT,
                "lost": int(lost.sum()),
                "lost_by_own_candidates": int(own.sum()),
                "margins": margins.tolist(),
            },
        )  # fmt: skip


def _lost_by_own(hits: Hits, candidates: Hits) -> np.ndarray:
    """Hits whose image is no candidate of their own unit."""
    known = set(zip(candidates.unit.tolist(), candidates.image.tolist(), strict=True))
    pairs = zip(hits.unit.tolist(), hits.image.tolist(), strict=True)
    return np.array([pair not in known for pair in pairs], dtype=bool)


def _margins(hits: Hits, lost: np.ndarray, index: UnitIndex) -> np.ndarray:
    """Of the hits that are lost: above the weakest of their unit's nine, over the largest score of
    the layer."""
    found = []
    for layer in range(index.layers):
        units = index.units_of(layer)
        of_layer = (hits.unit >= units.start) & (hits.unit < units.stop)
        largest = hits.score[of_layer].max(initial=0.0)
        for at in np.flatnonzero(of_layer & lost):
            weakest = hits.score[hits.unit == hits.unit[at]].min()
            found.append(float(hits.score[at] - weakest) / float(largest))
    return np.array(found)
