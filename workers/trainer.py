"""The worker of a study: trains one network a lease, and puts it away after every epoch.

A plain class; executors carry it as they carry ``workers.actor``.  What is put away lies in the
run, so another worker takes it up there and comes to the same bits.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from safetensors.torch import save
from torch import Tensor, nn

from deconvoy.errors import ActivationInvalid, ImageUnreadable, JobStopped, TooManyBadImages
from deconvoy.schema import checkpoint_path
from deconvoy.spec import ModelSpec
from deconvoy.store import RunStore
from deconvoy.study import BANDS
from workers.first_layer import bands_of, filters_of, peaks_of, rms_of
from workers.leases import LabelledImages, StudyAssignment, TrainingLease, TrainingResult
from workers.machine import about, cores
from workers.models import pack
from workers.training import EVALUATION_BATCH, Batches, Training, top_errors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pixels:
    """Images in memory."""

    pixels: UInt8[Tensor, "image channel row col"]
    labels: Int64[Tensor, " image"]
    skipped: int


@dataclass
class _Curves:
    """What was found after every epoch."""

    loss: list[float] = field(default_factory=list)
    running_error: list[float] = field(default_factory=list)
    validation_error: list[list[float]] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)
    """sha256 of those that were kept, by path."""


class Trainer:
    """One worker of a study."""

    def __init__(self, assignment: StudyAssignment) -> None:
        self._study = assignment
        self._run = RunStore(assignment.url)
        cuda = assignment.cuda and torch.cuda.is_available()
        self._device = torch.device("cuda" if cuda else "cpu")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self._done = 0
        self._stopping = threading.Event()

    def whoami(self) -> dict[str, Any]:
        return about(str(self._device), self._study.threads)

    def progress(self) -> int:
        """Images read, learned from and judged within the lease at hand."""
        return self._done

    def stop(self) -> None:
        """Give the lease at hand up after the batch under way; it raises JobStopped."""
        self._stopping.set()

    def work(self, lease: TrainingLease) -> TrainingResult:
        """Train one network to its end, or until it diverges: that, too, is a result.

        Raises:
            TooManyBadImages: more cannot be read than ``max_bad`` allows.
        """
        # Of this thread, which need not be the one that built the trainer.
        torch.set_num_threads(self._study.threads)
        self._done = 0
        study = self._study
        images, _ = self.training, self.validation  # both are read now
        each = len(study.training) + len(study.validation)
        model = self._model(lease)
        training = Training(
            model, images.pixels, images.labels, mean=study.transform.mean,
            std=study.transform.std, recipe=study.recipe, seed=study.seed + lease.repeat,
            go_on=self._go_on,
        )  # fmt: skip
        curves = self._take_up(lease, training)
        self._done = (1 + training.epoch) * each  # what was read before or put away counts, too
        try:
            return self._trained(lease, model, training, curves)
        except ActivationInvalid as error:
            logger.warning("Network %d, repeat %d: %s", lease.network, lease.repeat, error)
            return self._diverged(model, training.epoch, curves)

    def _trained(
        self, lease: TrainingLease, model: nn.Module, training: Training, curves: _Curves
    ) -> TrainingResult:
        """What becomes of a network.

        Raises:
            ActivationInvalid: it diverged.
        """
        study, images, others = self._study, self.training, self.validation
        while training.epoch < study.recipe.epochs:
            report = training.go_through()
            errors = self.errors(model, others)
            curves.loss.append(report.loss)
            curves.running_error.append(1 - report.accuracy)
            curves.validation_error.append(list(errors))
            if training.epoch in study.kept_epochs:
                path, digest = self._keep(lease, model, training.epoch)
                curves.weights[path] = digest
            if training.epoch < study.recipe.epochs:
                self._put_away(lease, training, curves)
        filters = filters_of(model)
        return TrainingResult(
            loss=np.array(curves.loss),
            running_error=np.array(curves.running_error),
            validation_error=np.array(curves.validation_error),
            training_error=np.array(self.errors(model, images)),
            filter=filters,
            rms=rms_of(filters),
            peak=peaks_of(model, self.batches(others)),
            frequency=bands_of(filters),
            images=self._images,
            skipped=(images.skipped, others.skipped),
            weights=curves.weights,
        )

    def _diverged(self, model: nn.Module, epoch: int, curves: _Curves) -> TrainingResult:
        """What is known of a network until then."""
        study, filters = self._study, filters_of(model)
        images, others = self.training, self.validation

        def filled(values: list[Any], *shape: int) -> np.ndarray:
            found = np.full((study.recipe.epochs, *shape), np.nan)
            if values:
                found[: len(values)] = values
            return found

        units = len(filters)
        return TrainingResult(
            loss=filled(curves.loss),
            running_error=filled(curves.running_error),
            validation_error=filled(curves.validation_error, 2),
            training_error=np.full(2, np.nan),
            filter=np.full_like(filters, np.nan),
            rms=np.full(units, np.nan),
            peak=np.full(units, np.nan, np.float32),
            frequency=np.full((units, len(BANDS) + 1), np.nan),
            images=self._images,
            skipped=(images.skipped, others.skipped),
            weights=curves.weights,
            diverged=epoch,
        )

    @property
    def _images(self) -> int:
        """Read, learned from and judged by one training."""
        study = self._study
        return work_of(study.recipe.epochs, len(study.training) + len(study.validation))

    # Images -----------------------------------------------------------------------------------

    @cached_property
    def training(self) -> Pixels:
        """Images to learn from; read when they are first asked for."""
        return self._read(self._study.training)

    @cached_property
    def validation(self) -> Pixels:
        """Images to judge by; read when they are first asked for."""
        return self._read(self._study.validation)

    def _read(self, images: LabelledImages) -> Pixels:
        transform, count = self._study.transform, len(images)
        # There may be no room for all of them twice, so each is put in its place, and those behind
        # a bad one are moved up.
        shape = (count, transform.channels, transform.crop, transform.crop)
        pixels = torch.empty(shape, dtype=torch.uint8)

        def read(number: int) -> ImageUnreadable | None:
            if self._stopping.is_set():
                raise JobStopped("The worker was told to stop.")
            self._done += 1  # by several threads, so it may count too few: for people and patience
            try:
                pixels[number] = images.source.read(images.uris[number], transform).pixels
            except ImageUnreadable as error:
                return error
            return None

        with ThreadPoolExecutor(min(cores(), 8), "decode") as pool:
            found = list(pool.map(read, range(count)))
        bad = [number for number, error in enumerate(found) if error is not None]
        good = [number for number, error in enumerate(found) if error is None]
        if len(bad) > images.max_bad * count or not good:
            first = bad[0]
            raise TooManyBadImages(
                f"{len(bad)} of {count} images of {images.field} are unreadable, more than "
                f"max_bad = {images.max_bad:g} allows (the first is {images.uris[first]!r}: "
                f"{found[first]}): mend or remove them, or raise max_bad, and start a new run."
            )
        for place, number in enumerate(good if bad else ()):
            pixels[place] = pixels[number]
        return Pixels(pixels[: len(good)], torch.from_numpy(images.labels[good]), len(bad))

    # Networks ---------------------------------------------------------------------------------

    def _model(self, lease: TrainingLease) -> nn.Module:
        study = self._study
        spec = ModelSpec(name=study.base, arguments=dict(study.arguments[lease.network]))
        model = pack(spec, study.seed + lease.repeat).build()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = study.dropout
        return model.to(self._device)

    def errors(self, model: nn.Module, images: Pixels) -> tuple[float, float]:
        """Shares of images told wrong, as ``top_errors`` has it."""
        transform = self._study.transform
        return top_errors(
            model, images.pixels, images.labels, mean=transform.mean, std=transform.std,
            go_on=self._go_on,
        )  # fmt: skip

    def batches(self, images: Pixels) -> Iterator[Float[Tensor, "image channel row col"]]:
        """Images, normalised."""
        transform = self._study.transform
        batches = Batches(
            images.pixels, images.labels, transform.mean, transform.std, EVALUATION_BATCH
        )
        for pixels, _ in batches.in_order(torch.arange(len(images.labels))):
            yield pixels
            self._go_on(len(pixels))

    def _go_on(self, count: int) -> None:
        if self._stopping.is_set():
            raise JobStopped("The worker was told to stop.")
        self._done += count

    # What lies in the run ---------------------------------------------------------------------

    def _keep(self, lease: TrainingLease, model: nn.Module, epoch: int) -> tuple[str, str]:
        """Where the weights went, and their sha256."""
        weights = {
            name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
        }
        path, content = checkpoint_path(lease.network, lease.repeat, epoch), save(weights)
        self._run.write(path, content)
        return path, hashlib.sha256(content).hexdigest()

    def _put_away(self, lease: TrainingLease, training: Training, curves: _Curves) -> None:
        content = training.state({"curves": json.dumps(curves.__dict__)})
        self._run.write(state_path(lease.item), hashlib.sha256(content).digest() + content)

    def _take_up(self, lease: TrainingLease, training: Training) -> _Curves:
        """Where another attempt left off; what is there and not whole is not trusted."""
        path = state_path(lease.item)
        if not self._run.exists(path):
            return _Curves()
        digest, content = _cut(self._run.read(path), hashlib.sha256().digest_size)
        if hashlib.sha256(content).digest() != digest:
            logger.warning("%s is damaged: this network is trained from its start.", path)
            return _Curves()
        told = json.loads(training.take_up(content)["curves"])
        return _Curves(**told)


def work_of(epochs: int, images: int) -> int:
    """Of one training: all are read, learned from or judged in every epoch, and judged at the
    end."""
    return (1 + epochs + 1) * images


def _cut(content: bytes, at: int) -> tuple[bytes, bytes]:
    return content[:at], content[at:]


def state_path(item: str) -> str:
    """Path of a training that was put away: ``study/item-000001`` →
    ``ledger/study/state-000001.safetensors``, after 32 bytes of its sha256."""
    return f"ledger/{item.replace('item-', 'state-')}.safetensors"
