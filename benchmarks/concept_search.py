"""How fast the scan is beside zennit-crp, which finds the strongest images of every channel, too.

Its ``FeatureVisualization`` runs every image forward and back, since besides the activations it
ranks the relevances of channels to the image's class; ours does not compute those.  The best of
several batch sizes is taken.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from crp.attribution import CondAttribution
from crp.concepts import ChannelConcept
from crp.visualization import FeatureVisualization
from jaxtyping import Float
from torch import Tensor, nn
from zennit.composites import EpsilonPlusFlat

from benchmarks.comparison import Comparison, in_turns, photographs, timed
from benchmarks.scan import K, scan_in_lanes
from deconvoy.spec import ModelSpec
from workers.job import trace
from workers.machine import cores
from workers.models import pack
from workers.topk import Hits, UnitIndex

MODEL = "alexnet"
IMAGES = 64
BATCH = 16
BATCHES = (8, 16, 32)
TURNS = 3


def measure(folder: Path | None) -> Iterator[Comparison]:
    """One row."""
    packed = pack(ModelSpec(name=f"torchvision/{MODEL}"), seed=0)
    network, model = trace(packed), packed.build().eval()
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    images = photographs(folder, IMAGES, packed.transform)
    layers = [layer.name for layer in network.layers if layer.is_map]
    batches = images.view(-1, BATCH, *images.shape[1:])
    tried = {size: timed(partial(_search, model, images, layers, size)) for size in BATCHES}
    size = min(tried, key=lambda size: tried[size])
    with ThreadPoolExecutor(cores()) as pool:
        ours = partial(scan_in_lanes, network, batches, pool, cores())
        theirs = partial(_search, model, images, layers, size)
        seconds = in_turns({"ours": ours, "theirs": theirs}, TURNS)
        index = UnitIndex.of([layer.units for layer in network.layers])
        difference = _difference(ours(), index, theirs())
    yield Comparison(
        "scan", MODEL, f"zennit-crp, batches of {size}", "image",
        ours=[t / IMAGES for t in seconds["ours"]],
        theirs=[t / IMAGES for t in seconds["theirs"]],
        difference=difference,
        details={"tried_s_an_image": {str(n): t / IMAGES for n, t in tried.items()}},
    )  # fmt: skip


class _Pictures:
    """A data set as it wants one: image and class."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._images[index].clone(), 0


def _search(
    model: nn.Module,
    images: Float[Tensor, "image channel row col"],
    layers: Sequence[str],
    size: int,
) -> list[np.ndarray]:
    """The activations of the strongest images of every channel, a table (rank, channel) a layer."""
    torch.set_num_threads(cores())
    with tempfile.TemporaryDirectory(prefix="deconvoy-bench-") as place:
        search = FeatureVisualization(
            CondAttribution(model),
            _Pictures(images),
            {layer: ChannelConcept() for layer in layers},
            max_target="max",
            abs_norm=False,
            path=place,
        )
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            search.run(EpsilonPlusFlat(), 0, len(images), batch_size=size)
        return [np.load(next(Path(place).glob(f"ActMax*/{layer}_*rel.npy"))) for layer in layers]


def _difference(hits: Hits, index: UnitIndex, theirs: Sequence[np.ndarray]) -> float:
    """Of the scores by rank, over the layer's largest."""
    largest = 0.0
    for layer, scores in enumerate(theirs):
        units = index.units_of(layer)
        own = np.zeros((units.stop - units.start, K))
        for unit in range(units.start, units.stop):
            found = np.sort(hits.score[hits.unit == unit])[::-1]
            own[unit - units.start, : len(found)] = found
        largest = max(largest, float(np.abs(own - scores[:K].T).max() / scores.max()))
    return largest
