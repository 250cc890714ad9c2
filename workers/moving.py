"""The worker's part in invariance: move an image, compare its features, and write its row."""

from collections.abc import Callable, Sequence

import numpy as np

from deconvoy.schema import INVARIANCE_GROUP
from deconvoy.spec import Transform
from deconvoy.store import RunStore
from workers.graph import Layer, Network
from workers.groups import write_row
from workers.images import Picture
from workers.invariance import invariance
from workers.lanes import Lanes
from workers.leases import InvarianceLease, InvarianceResult
from workers.occlusion import softmax


class Mover:
    """What a worker needs to answer leases of invariance."""

    def __init__(
        self,
        network: Network,
        layers: Sequence[Layer],
        transform: Transform,
        batch_size: int,
        lanes: Lanes,
        advance: Callable[[int], None],
    ) -> None:
        self._network, self._layers, self._transform = network, layers, transform
        self._batch_size = max(2, batch_size)
        self._lanes, self._advance = lanes, advance

    def image(self, lease: InvarianceLease, picture: Picture, run: RunStore) -> InvarianceResult:
        """Move one image and write its row."""
        found = invariance(
            self._network,
            self._layers,
            picture.pixels,
            lease.moves,
            lease.border,
            lease.fill,
            self._transform,
            self._batch_size,
            self._lanes,
            self._advance,
        )
        clean = softmax(found.clean_logits[None])[0]
        clean_label = int(found.clean_logits.argmax())
        target = clean_label if lease.label is None else lease.label
        arrays = {
            "target": np.array(target),
            "probability": softmax(found.logits)[:, target],
            "clean_probability": np.array(clean[target]),
            "label": found.logits.argmax(1),
            "clean_label": np.array(clean_label),
            "distance": found.distance,
            "norm": found.norm,
            "image": np.array(lease.image),
        }
        write_row(run, INVARIANCE_GROUP, lease.row, arrays)
        return InvarianceResult(len(lease.moves))
