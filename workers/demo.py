"""The demo: train a small ZFNet on ``shapes`` and make ready the job that looks into it.

Everything is computed here and now; the folder it leaves holds the checkpoints, the job spec (an
example to copy from), the run and its figures.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from deconvoy.errors import RunExists
from deconvoy.spec import (
    DataSpec,
    DrawnImages,
    JobSpec,
    ModelSpec,
    OcclusionSpec,
    ProjectionSpec,
    TopSpec,
)
from workers.machine import cores
from workers.training import DEMO_EPOCHS, DEMO_IMAGES, EpochReport, draw_shapes, train
from workers.zfnet import SHAPES_MEAN, SHAPES_STD, zfnet_small

TRAINING_SEED = 1
IMAGES_SEED = 2
IMAGES = 2000
"""Analysed; of another seed than those trained on."""

OCCLUDED = 16
"""Images of these under a grey square."""

PATCH, STRIDE = 16, 4
"""Of 64 pixels: what is smaller hides too little of these large things to shake the model."""

SPEC_NAME = "demo.yaml"
MARK = ".deconvoy-demo"


@dataclass(frozen=True)
class Folder:
    """Where the parts of a demo lie."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def spec(self) -> Path:
        return self.root / SPEC_NAME

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def figures(self) -> Path:
        return self.root / "figures"


@dataclass(frozen=True)
class Trained:
    checkpoint: Path
    accuracy: float
    """Share of training images right in the last epoch, with dropout."""


def prepare(out: Path) -> Folder:
    """Make room for a demo; an earlier demo there is replaced, nothing else ever is.

    Raises:
        RunExists: the folder holds something that is no demo.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / MARK).is_file():
            raise RunExists(f"{str(out)!r} holds something that is no demo: choose another --out.")
    folder = Folder(out)
    for part in (folder.checkpoints, folder.run, folder.figures):
        shutil.rmtree(part, ignore_errors=True)
    folder.checkpoints.mkdir(parents=True)
    folder.figures.mkdir()
    (out / MARK).write_text("made by `deconvoy demo`, which may replace what it made\n")
    return folder


def train_small(folder: Folder, say: Callable[[str], None]) -> Trained:
    """Train ``zfnet_small`` from scratch, keeping a checkpoint each epoch."""
    say(f"training a small ZFNet on {DEMO_IMAGES:,} drawn images, {DEMO_EPOCHS} epochs")
    before = torch.get_num_threads()
    torch.set_num_threads(cores())
    try:
        images, labels = draw_shapes(seed=TRAINING_SEED, size=DEMO_IMAGES)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(TRAINING_SEED)
            model = zfnet_small()

        def tell(report: EpochReport) -> None:
            say(f"  epoch {report.epoch}: loss {report.loss:.2f}, {report.accuracy:.0%} right")

        reports = train(
            model,
            images,
            labels,
            mean=SHAPES_MEAN,
            std=SHAPES_STD,
            seed=TRAINING_SEED,
            on_epoch=tell,
            checkpoints=folder.checkpoints,
        )
    finally:
        torch.set_num_threads(before)
    last = reports[-1]
    assert last.checkpoint is not None
    return Trained(last.checkpoint, last.accuracy)


def write_spec(folder: Folder, checkpoint: Path) -> JobSpec:
    """The demo's job, also written as an example to copy from."""
    spec = JobSpec(
        name="demo",
        model=ModelSpec(name="deconvoy/zfnet_small", weights=str(checkpoint)),
        data=DataSpec(uri=f"shapes?size={IMAGES}&seed={IMAGES_SEED}"),
        analyses=(
            TopSpec(kind="top"),
            ProjectionSpec(kind="projection", layers=("*",)),
            OcclusionSpec(
                kind="occlusion", images=DrawnImages(sample=OCCLUDED), patch=PATCH, stride=STRIDE
            ),
        ),
    )
    fields = spec.model_dump(mode="json", exclude_unset=True)
    folder.spec.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
    return spec
