"""The worker's part in evolution: the networks of the checkpoints, one or a few at a time.

A shard's images are decoded once and scanned by one network after the other.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from deconvoy.spec import Method, Transform
from workers.graph import Layer, Network
from workers.models import PackedModel
from workers.projector import Projector

KEPT_BYTES = 2 * 2**30
"""Of parameters of networks that are kept for the next lease."""


@dataclass(frozen=True)
class Checkpoint:
    """A network as it was at a checkpoint."""

    network: Network
    layers: Sequence[Layer]
    """Of the scan."""
    projector: Projector


class Checkpoints:
    """Builds networks when they are asked for, and keeps the last ones within a limit of bytes."""

    def __init__(
        self,
        packed: Sequence[PackedModel],
        layers: Sequence[str],
        input_shape: tuple[int, int, int],
        transform: Transform,
        device: torch.device,
        method: Method,
    ) -> None:
        self._method = method
        self._packed, self._layers, self._shape = packed, layers, input_shape
        self._transform, self._device = transform, device
        self._kept: OrderedDict[int, Checkpoint] = OrderedDict()

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, number: int) -> Checkpoint:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        network = Network(self._packed[number].build(), self._shape).to(self._device)
        made = Checkpoint(
            network,
            [network.layer(name) for name in self._layers],
            Projector(network, self._transform, self._device, self._method),
        )
        self._kept[number] = made
        each = max(1, len(self._packed[number].tensors))
        while len(self._kept) > max(1, KEPT_BYTES // each):
            self._kept.popitem(last=False)
        return made

    def __iter__(self) -> Iterator[Checkpoint]:
        return (self[number] for number in range(len(self)))
