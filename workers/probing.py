"""The worker's part in a probe: write features of images, and classify by those of a layer."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deconvoy.schema import features_path
from deconvoy.spec import Transform
from deconvoy.store import RunStore
from workers.graph import Layer, Network
from workers.images import Picture, chunks, normalise, on_device
from workers.lanes import Lanes
from workers.leases import ProbeAssignment, ProbeFeaturesLease, ProbeLease, ProbeResult
from workers.pooling import cells, pooled
from workers.probe import fit
from workers.probe_writer import (
    WEIGHTS,
    read_features,
    read_labels,
    write_features,
    write_fits,
)


class Prober:
    """What a worker needs to answer leases of a probe."""

    def __init__(
        self,
        probing: ProbeAssignment,
        networks: Sequence[Network],
        transform: Transform,
        batch_size: int,
        lanes: Lanes,
        advance: Callable[[int], None],
    ) -> None:
        self._probing, self._networks, self._transform = probing, networks, transform
        self._batch_size, self._lanes, self._advance = batch_size, lanes, advance

    def features(
        self,
        lease: ProbeFeaturesLease,
        pictures: Sequence[Picture | None],
        run: RunStore,
    ) -> ProbeResult:
        """Write the rows of some images, of every layer.

        Args:
            pictures: None: it could not be read.
        """
        network = self._networks[lease.weights]
        layers = [network.layer(name) for name in self._probing.layers]
        grids = {
            layer.name: cells(layer, self._probing.pool, self._probing.features) for layer in layers
        }

        def run_batch(batch: Sequence[Picture | None]) -> dict[str, np.ndarray]:
            found = _features(network, grids, self._input(batch), len(batch))
            self._advance(len(batch))
            return found

        parts = list(self._lanes(run_batch, chunks(pictures, self._batch_size)))
        for layer in layers:
            rows = np.concatenate([part[layer.name] for part in parts])
            place = features_path(WEIGHTS[lease.weights], layer.name)
            write_features(run, place, lease.start, rows)
        there = np.array([picture is not None for picture in pictures])
        write_features(run, None, lease.start, there, lease.weights)
        return ProbeResult(len(pictures))

    def _input(self, batch: Sequence[Picture | None]) -> Tensor:
        """Padded to the size of a batch; black where there is no image."""
        side = self._transform.crop
        shape = self._batch_size, self._transform.channels, side, side
        pixels = torch.zeros(shape, dtype=torch.uint8)
        for row, picture in enumerate(batch):
            if picture is not None:
                pixels[row] = picture.pixels
        return normalise(on_device(pixels, self._networks[0].device), self._transform)

    def classify(self, lease: ProbeLease, run: RunStore) -> ProbeResult:
        """Fit everything that is asked for by the features of one layer, and write its row."""
        fits = lease.fits
        name = self._probing.layers[lease.layer]
        features = read_features(run, features_path(WEIGHTS[lease.weights], name))
        label = read_labels(run, lease.weights)
        asked = list(np.ndindex(fits.shape))

        def fit_one(place: tuple[int, int, int]) -> Any:
            kind, size, fold = place
            images = fits.images(label, size, fold)
            found = fit(features, label, images, fits.classifiers[kind], fits.c)
            self._advance(1)
            return found

        found = list(self._lanes(fit_one, asked))
        accuracy = np.array([one.accuracy for one in found]).reshape(fits.shape)
        converged = np.array([one.converged for one in found]).reshape(fits.shape)
        write_fits(run, lease.weights, lease.layer, accuracy, converged)
        return ProbeResult(len(found))


@torch.inference_mode()
def _features(
    network: Network, grids: dict[str, int | None], images: Tensor, count: int
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def see(layer: Layer, values: Tensor) -> None:
        if layer.name in grids:
            found[layer.name] = pooled(values, layer, grids[layer.name])[:count].cpu().numpy()

    network.forward(images, see)
    return found
