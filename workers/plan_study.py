"""Foretell a study: a few steps of every network are timed, and the rest is counted."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from deconvoy.errors import DiskTooSmall
from deconvoy.spec import ModelSpec
from deconvoy.store import RunStore
from deconvoy.study_spec import StudySpec
from workers.machine import cores
from workers.models import pack
from workers.study_items import StudyJob
from workers.training import EVALUATION_BATCH, Training

STEPS = 4
"""Of each network, of which the first is not counted."""

CURVE_BYTES = 40
"""Of an epoch: three numbers and an error."""

OVERHEAD_BYTES = 20_000
"""Of a network's group and markers."""


@dataclass(frozen=True)
class PlannedNetwork:
    name: str
    parameters: int
    seconds: float
    """Of all its repeats, by one worker."""


@dataclass(frozen=True)
class StudyPlan:
    """What a study would do and take on this machine."""

    job: StudyJob
    networks: tuple[PlannedNetwork, ...]
    workers: int
    seconds: float
    bytes: int
    memory: int
    """Of the decoded images, in each worker."""

    def to_json(self) -> dict[str, Any]:
        job = self.job
        return {
            "kind": "study",
            "model": job.spec.base,
            "transform": job.transform.model_dump(mode="json"),
            "transform_from": job.transform_from,
            "classes": len(job.classes),
            "images": len(job.training),
            "validation_images": len(job.validation),
            "epochs": job.spec.training.epochs,
            "repeats": job.spec.repeats,
            "workers": self.workers,
            "threads": job.spec.compute.threads_each,
            "networks": [network.__dict__ for network in self.networks],
            "seconds": self.seconds,
            "bytes": self.bytes,
            "memory": self.memory,
        }


def plan_study(job: StudyJob, measuring: Callable[[], None] = lambda: None) -> StudyPlan:
    """Time a few steps of every network, with noise for images."""
    measuring()
    spec, trainings = job.spec, job.spec.repeats
    before = torch.get_num_threads()
    torch.set_num_threads(spec.compute.threads_each)
    try:
        each = [_seconds(job, dict(arguments)) * trainings for arguments in job.arguments]
    finally:
        torch.set_num_threads(before)
    networks = tuple(
        PlannedNetwork(name, parameters, seconds)
        for name, parameters, seconds in zip(spec.titles, job.parameters, each, strict=True)
    )
    workers = _workers(spec)
    # As long as the longest takes, or as all take together.
    seconds = max(max(each) / trainings, sum(each) / workers)
    images = len(job.training) + len(job.validation)
    pixels = images * job.transform.channels * job.transform.crop**2
    return StudyPlan(job, networks, workers, seconds, most_bytes_of_study(job), pixels)


def _device_of(spec: StudySpec) -> torch.device:
    cuda = spec.compute.gpus_per_worker != 0 and torch.cuda.is_available()
    return torch.device("cuda" if cuda else "cpu")


def _workers(spec: StudySpec) -> int:
    """As many as this machine has room for, where the spec leaves it open."""
    asked, each = spec.compute.workers, spec.compute.gpus_per_worker
    if asked != "auto":
        return asked
    if _device_of(spec).type == "cpu":
        return max(1, cores() // spec.compute.threads_each)
    return max(1, int(torch.cuda.device_count() / (1 if each == "auto" else each)))


def _now(device: torch.device) -> float:
    """The time, after all that the device was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _seconds(job: StudyJob, arguments: dict[str, Any]) -> float:
    """Of one training, by one worker."""
    spec, side, channels = job.spec, job.transform.crop, job.transform.channels
    device = _device_of(spec)
    model = pack(ModelSpec(name=spec.base, arguments=arguments), spec.seed).build().to(device)
    batch = min(spec.training.batch_size, len(job.training))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pixels = torch.randint(256, (batch * STEPS, channels, side, side), dtype=torch.uint8)
    times: list[float] = []
    training = Training(
        model, pixels, torch.zeros(len(pixels), dtype=torch.int64), mean=job.transform.mean,
        std=job.transform.std, recipe=replace(job.recipe, batch_size=batch), seed=0,
        go_on=lambda _: times.append(_now(device)),
    )  # fmt: skip
    training.go_through()
    step = statistics.median(b - a for a, b in zip(times, times[1:], strict=False))
    forward = _forward_seconds(model, job, pixels, device)
    judged = spec.training.epochs * len(job.validation) + len(job.training)
    steps = spec.training.epochs * -(-len(job.training) // batch)
    return steps * step + judged * forward


@torch.no_grad()
def _forward_seconds(
    model: nn.Module, job: StudyJob, pixels: torch.Tensor, device: torch.device
) -> float:
    """Of one image, as errors are counted."""
    images = pixels[: min(len(pixels), EVALUATION_BATCH)].to(device) / 255
    model(images)
    began = _now(device)
    model(images)
    return (_now(device) - began) / len(images)


def most_bytes_of_study(job: StudyJob) -> int:
    """What a run stores, and at most has besides while it is worked on: weights and momentum of
    every training that is under way."""
    spec = job.spec
    kept = len(spec.training.kept_epochs) * spec.repeats * sum(job.parameters) * 4
    under_way = 2 * 4 * sum(job.parameters) * spec.repeats
    curves = CURVE_BYTES * spec.training.epochs * len(job.items())
    return kept + under_way + curves + OVERHEAD_BYTES * (len(job.items()) + len(job.arguments))


def require_room_for_study(job: StudyJob, run: RunStore) -> None:
    """Refuse a study that its disk cannot hold.

    Raises:
        DiskTooSmall: says what is needed, what is free, and what to do.
    """
    room, needed = run.bytes_free(), most_bytes_of_study(job)
    if room is not None and needed > room + run.bytes_used():
        fewer = len(job.spec.training.kept_epochs) > 1
        raise DiskTooSmall(
            f"The study needs about {needed / 1e9:.1f} GB, but {run.url!r} has room for "
            f"{(room + run.bytes_used()) / 1e9:.1f} GB: free some space or choose another --out"
            f"{'; or keep fewer weights (training.checkpoints: last)' if fewer else ''}."
        )
