"""Train a network by the paper's recipe, with a checkpoint wherever one is wanted.

A training can be put away after any epoch and taken up elsewhere.  Deterministic: every epoch
draws its order and its dropout from (seed, epoch) alone, so neither what the caller does between
epochs nor the state of torch's global generators changes a weight, and those generators are left as
they were.

Source: Zeiler & Fergus (ECCV 2014, arXiv:1311.2901), section 3.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from safetensors.torch import load, save, save_file
from torch import Tensor, nn
from torch.nn import functional

from deconvoy.errors import ActivationInvalid, RequestError
from workers.shapes import render

logger = logging.getLogger(__name__)

LEARNING_RATE = 1e-2
MOMENTUM = 0.9
MAX_FILTER_RMS = 1e-1
"""These three are the paper's."""

BATCH_SIZE = 16
"""The paper has 128; of a few thousand images that would make too few steps an epoch."""

EVALUATION_BATCH = 256
"""Large enough to keep two cores busy, small enough for any machine."""

MAX_BYTES = 8 * 2**30
"""Of decoded images in the memory of each worker."""

DEMO_IMAGES = 4096
DEMO_EPOCHS = 6
"""About a minute for ``zfnet_small`` on two cores, drawing the images included."""


@dataclass(frozen=True)
class EpochReport:
    """What one pass over the images came to."""

    epoch: int
    """Counted from 1, as in the paper's Fig. 4."""
    loss: float
    """Mean cross-entropy of the training images, with dropout, while the weights moved."""
    accuracy: float
    """Share of training images whose top output was right, under the same conditions."""
    learning_rate: float
    checkpoint: Path | None
    """The weights after this epoch, where they were kept."""


def draw_shapes(
    *, seed: int, size: int
) -> tuple[UInt8[Tensor, "image channel row col"], Int64[Tensor, " image"]]:
    """The first ``size`` images of the set ``seed`` and their labels."""
    drawn = [render(seed, index) for index in range(size)]
    pixels = torch.from_numpy(np.stack([shape.image for shape in drawn]))
    labels = torch.tensor([shape.label for shape in drawn])
    return pixels.permute(0, 3, 1, 2).contiguous(), labels


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the paper's, but for the length and the batch."""

    epochs: int = DEMO_EPOCHS
    batch_size: int = BATCH_SIZE
    learning_rate: float = LEARNING_RATE
    momentum: float = MOMENTUM
    max_filter_rms: float | None = MAX_FILTER_RMS
    """None: filters are not clipped."""
    rate_field: str = "learning_rate"
    """What a person calls the rate."""


class Training:
    """One network on its way.

    Args:
        model: trained in place, on the device it is on; in evaluation mode between epochs.
        mean: per channel, of images in 0 … 1; so is ``std``.
        go_on: told of the images of every batch; what it raises ends the epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        images: UInt8[Tensor, "image channel row col"],
        labels: Int64[Tensor, " image"],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        recipe: Recipe,
        seed: int,
        go_on: Callable[[int], None] = lambda _: None,
    ) -> None:
        least = 2 if learns_from_several(model) else 1
        _check(images, labels, recipe.epochs, recipe.batch_size, least)
        self._model, self._recipe, self._seed, self._go_on = model, recipe, seed, go_on
        self._batches = Batches(images, labels, tuple(mean), tuple(std), recipe.batch_size, least)
        self._optimizer = torch.optim.SGD(
            model.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum
        )
        self.epoch = 0
        """How many are done."""

    def go_through(self) -> EpochReport:
        """Train for the next epoch.

        Raises:
            ActivationInvalid: the loss, or a weight, is not finite any more.
        """
        recipe, self.epoch = self._recipe, self.epoch + 1
        rate = decayed(recipe.learning_rate, self.epoch, recipe.epochs)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss, right = self._pass()
        logger.info(
            "epoch %d of %d: loss %.3f, accuracy %.3f", self.epoch, recipe.epochs, loss, right
        )
        return EpochReport(self.epoch, loss, right, rate, None)

    def _pass(self) -> tuple[float, float]:
        """One pass over the images in a new order; mean loss and share of right answers."""
        model, recipe, device = self._model, self._recipe, _device(self._model)
        filters = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
        total, right, count = 0.0, 0, len(self._batches.labels)
        model.train()
        with _seeded(device, self._seed, self.epoch):
            for pixels, truth in self._batches.in_order(torch.randperm(count)):
                truth = truth.to(device)
                logits = model(pixels.to(device))
                loss = functional.cross_entropy(logits, truth)
                self._optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self._optimizer.step()
                if recipe.max_filter_rms is not None:
                    for weight in filters:
                        clip_filters_(weight, recipe.max_filter_rms)
                total += loss.item() * len(truth)
                right += int((logits.argmax(1) == truth).sum())
                self._go_on(len(truth))
        model.eval()
        mean_loss = total / count
        # The last step may spoil weights that no loss has seen yet.
        whole = all(bool(weight.isfinite().all()) for weight in model.parameters())
        if not math.isfinite(mean_loss) or not whole:
            told = f"the loss is {mean_loss:g}" if whole else "weights are not finite"
            raise ActivationInvalid(
                f"Training diverged in epoch {self.epoch}: {told}. Lower {recipe.rate_field} "
                f"(now {recipe.learning_rate:g})."
            )
        return mean_loss, right / count

    def state(self, told: Mapping[str, str]) -> bytes:
        """All that the next epoch depends on, as safetensors.

        Args:
            told: kept with it.
        """
        tensors = {f"model.{name}": value for name, value in self._model.state_dict().items()}
        for name, parameter in self._model.named_parameters():
            buffer = self._optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{name}"] = buffer
        whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        return save(whole, {"epoch": str(self.epoch), **told})

    def take_up(self, state: bytes) -> dict[str, str]:
        """Go on from there; returns what was kept with it."""
        # The format's head: eight bytes that tell the length of a JSON text, then that text.
        head = json.loads(state[8 : 8 + int.from_bytes(state[:8], "little")])
        told: dict[str, str] = head["__metadata__"]
        tensors = load(state)
        self._model.load_state_dict(
            {
                name.removeprefix("model."): value
                for name, value in tensors.items()
                if name.startswith("model.")
            }
        )
        for name, parameter in self._model.named_parameters():
            buffer = tensors.get(f"momentum.{name}")
            if buffer is not None:
                self._optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter.device)
        self.epoch = int(told.pop("epoch"))
        return told


def train(
    model: nn.Module,
    images: UInt8[Tensor, "image channel row col"],
    labels: Int64[Tensor, " image"],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    epochs: int = DEMO_EPOCHS,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    on_epoch: Callable[[EpochReport], None] | None = None,
    checkpoints: Path | None = None,
    checkpoint_epochs: Sequence[int] | None = None,
) -> list[EpochReport]:
    """Train ``model`` in place, on the device it is on; it is left in evaluation mode.

    ``mean`` and ``std`` are per channel in 0 … 1.  Checkpoints go to the folder ``checkpoints`` as
    ``epoch-001.safetensors`` …, after ``checkpoint_epochs`` or, if that is None, every epoch.
    """
    wanted = _checkpoint_epochs(epochs, checkpoints, checkpoint_epochs)
    recipe = Recipe(epochs, batch_size, learning_rate)
    training = Training(model, images, labels, mean=mean, std=std, recipe=recipe, seed=seed)
    reports = []
    for epoch in range(1, epochs + 1):
        report = training.go_through()
        if checkpoints is not None and epoch in wanted:
            report = replace(report, checkpoint=save_checkpoint(model, checkpoints, epoch))
        reports.append(report)
        if on_epoch is not None:
            on_epoch(report)
    return reports


def decayed(learning_rate: float, epoch: int, epochs: int) -> float:
    """The rate of an epoch (from 1): a straight line from ``learning_rate`` down to nearly 0.

    The paper lowers it by hand whenever the validation error stalls; with the few epochs we have,
    steps chosen beforehand come too early for one start and too late for another.
    """
    return learning_rate * (epochs + 1 - epoch) / epochs


@torch.no_grad()
def clip_filters_(
    weight: Float[Tensor, "filter channel row col"], max_rms: float = MAX_FILTER_RMS
) -> None:
    """Scale every filter whose root mean square exceeds ``max_rms`` back to it, in place (§3)."""
    rms = weight.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    weight.mul_((max_rms / rms).clamp(max=1))


def accuracy(
    model: nn.Module,
    images: UInt8[Tensor, "image channel row col"],
    labels: Int64[Tensor, " image"],
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> float:
    """Share of the images whose highest output is their label; the model's mode is put back."""
    was_training = model.training
    model.eval()
    try:
        first, _ = _right(model, Batches(images, labels, tuple(mean), tuple(std), EVALUATION_BATCH))
    finally:
        model.train(was_training)
    return first / len(labels)


def top_errors(
    model: nn.Module,
    images: UInt8[Tensor, "image channel row col"],
    labels: Int64[Tensor, " image"],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    go_on: Callable[[int], None] = lambda _: None,
) -> tuple[float, float]:
    """Shares of the images whose label is not the highest output, and not among the five highest
    (of fewer outputs: among all).  The model is in evaluation mode.

    Args:
        go_on: told of the images of every batch.

    Raises:
        ActivationInvalid: an output is not finite.
    """
    batches = Batches(images, labels, tuple(mean), tuple(std), EVALUATION_BATCH)
    first, five = _right(model, batches, go_on)
    return (len(labels) - first) / len(labels), (len(labels) - five) / len(labels)


@torch.no_grad()
def _right(
    model: nn.Module, batches: "Batches", go_on: Callable[[int], None] = lambda _: None
) -> tuple[int, int]:
    """Images whose label is the highest output, and is among the five highest."""
    device, first, five = _device(model), 0, 0
    for pixels, truth in batches.in_order(torch.arange(len(batches.labels))):
        logits = model(pixels.to(device)).cpu()
        if not bool(logits.isfinite().all()):
            raise ActivationInvalid("The network gives outputs that are not finite.")
        found = logits.topk(min(5, logits.shape[1])).indices == truth[:, None]
        first += int(found[:, 0].sum())
        five += int(found.any(1).sum())
        go_on(len(truth))
    return first, five


def save_checkpoint(model: nn.Module, folder: Path, epoch: int) -> Path:
    """Write the weights to ``epoch-001.safetensors`` …; a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"epoch-{epoch:03d}.safetensors"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    weights = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    try:
        save_file(weights, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


@dataclass(frozen=True)
class Batches:
    """Images and labels, handed out normalised and in any order."""

    images: UInt8[Tensor, "image channel row col"]
    labels: Int64[Tensor, " image"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    least: int = 1
    """A last batch of fewer joins the one before it."""

    def in_order(
        self, order: Int64[Tensor, " image"]
    ) -> Iterator[tuple[Float[Tensor, "image channel row col"], Int64[Tensor, " image"]]]:
        parts = list(torch.split(order, self.size))
        if len(parts) > 1 and len(parts[-1]) < self.least:
            parts[-2:] = [torch.cat(parts[-2:])]
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        std = torch.tensor(self.std).view(-1, 1, 1)
        for chosen in parts:
            yield (self.images[chosen] / 255 - mean) / std, self.labels[chosen]


@contextmanager
def _seeded(device: torch.device, seed: int, epoch: int) -> Iterator[None]:
    """Global generators set from (seed, epoch) inside, and as they were before outside."""
    state = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # Not torch.manual_seed: it would reseed GPUs that are not ours to put back.
        torch.default_generator.manual_seed(state)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(state)
        yield


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def learns_from_several(model: nn.Module) -> bool:
    """Whether it takes two images or more at a time to learn: a variance over one is none."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def _check(images: Tensor, labels: Tensor, epochs: int, batch_size: int, least: int) -> None:
    if len(images) != len(labels) or len(images) == 0:
        raise RequestError(
            f"Training got {len(images)} images and {len(labels)} labels: "
            "there must be at least one image, and one label for each."
        )
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise RequestError(f"Training got {name}={value}: it must be 1 or more.")
    if min(len(images), batch_size) < least:
        raise RequestError(
            f"Training got {len(images)} images and batch_size={batch_size}, but a network with "
            f"BatchNorm learns from {least} images or more at a time: give it more."
        )


def _checkpoint_epochs(
    epochs: int, checkpoints: Path | None, checkpoint_epochs: Sequence[int] | None
) -> frozenset[int]:
    """The epochs to keep, checked before any time is spent on training."""
    if checkpoint_epochs is None:
        return frozenset(range(1, epochs + 1))
    if checkpoints is None:
        raise RequestError(
            f"checkpoint_epochs={list(checkpoint_epochs)} without a folder: pass checkpoints, too."
        )
    outside = sorted(epoch for epoch in checkpoint_epochs if not 1 <= epoch <= epochs)
    if outside:
        raise RequestError(
            f"checkpoint_epochs has {outside}: a training of {epochs} epochs keeps 1 to {epochs}."
        )
    return frozenset(checkpoint_epochs)
