"""The worker's part in training from scratch: learn from the images of a fold, be judged by others.

The network keeps its own outputs, of which the first stand for the classes.  Every fold begins with
the same weights.  Deterministic, as ``workers.training`` is.

Source: Zeiler & Fergus (ECCV 2014, arXiv:1311.2901), section 5, tables 4 and 5.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from deconvoy.errors import ActivationInvalid
from deconvoy.spec import Transform
from workers.images import Picture, chunks, normalise, on_device
from workers.leases import ScratchLease, ScratchResult
from workers.models import PackedModel
from workers.probe import accuracy
from workers.training import Training

Read = Callable[[Sequence[str]], Iterator[Picture]]
"""Pictures in the order of their uris."""


class FirstOutputs(nn.Module):
    """The first outputs of a network alone, one for each class that is to be told apart."""

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__()
        self.network, self.count = network, count

    def forward(
        self, images: Float[Tensor, "image channel row col"]
    ) -> Float[Tensor, "image class"]:
        outputs: Float[Tensor, "image class"] = self.network(images).flatten(1)[:, : self.count]
        return outputs


def train_from_scratch(
    lease: ScratchLease,
    start: PackedModel,
    transform: Transform,
    device: torch.device,
    batch_size: int,
    read: Read,
    go_on: Callable[[int], None],
) -> ScratchResult:
    """Train a network from its start and judge it.

    Args:
        batch_size: images judged at a time; how many are learned from at a time the recipe says.
        go_on: told of the images of every batch; what it raises ends the work.

    Raises:
        ActivationInvalid: the loss, or an output at the end, is not finite.
    """
    model = FirstOutputs(start.build(), lease.classes).to(device)
    training = Training(
        model, _pixels(lease.train, transform, read, go_on), torch.from_numpy(lease.train_label),
        mean=transform.mean, std=transform.std, recipe=lease.recipe, seed=lease.seed, go_on=go_on,
    )  # fmt: skip
    for _ in range(lease.recipe.epochs):
        training.go_through()
    parts, pictures = [], read(lease.test)
    for uris in chunks(lease.test, batch_size):
        batch = torch.stack([next(pictures).pixels for _ in uris])
        parts.append(_told(model, normalise(on_device(batch, device), transform)))
        go_on(len(uris))
    return ScratchResult(accuracy(np.concatenate(parts), lease.test_label))


def _pixels(
    uris: Sequence[str], transform: Transform, read: Read, go_on: Callable[[int], None]
) -> UInt8[Tensor, "image channel row col"]:
    """Written one by one: there may be no room for all of them twice."""
    side = transform.crop
    found = torch.empty(len(uris), transform.channels, side, side, dtype=torch.uint8)
    for row, picture in enumerate(read(uris)):
        found[row] = picture.pixels
        go_on(1)
    return found


@torch.inference_mode()
def _told(
    model: nn.Module, images: Float[Tensor, "image channel row col"]
) -> Int64[np.ndarray, " image"]:
    """The class of the highest output of each image."""
    outputs = model(images)
    if not bool(torch.isfinite(outputs).all()):
        raise ActivationInvalid(
            "The network trained from scratch gives outputs that are not finite: lower "
            "analyses.probe.scratch.learning_rate."
        )
    found: Int64[np.ndarray, " image"] = outputs.argmax(1).cpu().numpy()
    return found
