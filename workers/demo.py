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
    Analysis,
    CorrespondenceSpec,
    DataSpec,
    DrawnImages,
    EvolutionSpec,
    Ids,
    InvarianceSpec,
    JobSpec,
    ModelSpec,
    OcclusionSpec,
    ProbeSpec,
    ProjectionSpec,
    Steps,
    TopSpec,
)
from deconvoy.study_spec import EditSpec, RecipeSpec, StudySpec
from workers.machine import cores
from workers.training import DEMO_EPOCHS, DEMO_IMAGES, EpochReport, draw_shapes, train
from workers.zfnet import SHAPES_MEAN, SHAPES_STD, zfnet_small

TRAINING_SEED = 1
IMAGES_SEED = 2
IMAGES = 2000
"""Analysed; of another seed than those trained on."""

STUDY_IMAGES = 2048
"""That a study learns from."""

PROBE_SEED = 9

OCCLUDED = 16
"""Images of these under a grey square."""

PATCH, STRIDE = 16, 4
"""Of 64 pixels: what is smaller hides too little of these large things to shake the model."""

SPEC_NAME, STUDY_NAME = "demo.yaml", "study.yaml"
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
    def study_spec(self) -> Path:
        return self.root / STUDY_NAME

    @property
    def study(self) -> Path:
        """The run of the study; only of a full demo, as are tables and the report."""
        return self.root / "study"

    @property
    def tables(self) -> Path:
        return self.root / "tables"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def figures(self) -> Path:
        return self.root / "figures"


@dataclass(frozen=True)
class Trained:
    checkpoints: tuple[Path, ...]
    """After every epoch."""
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
    for part in (folder.checkpoints, folder.run, folder.study, folder.figures, folder.tables):
        shutil.rmtree(part, ignore_errors=True)
    for file in (folder.report, folder.study_spec):
        file.unlink(missing_ok=True)
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
            epochs=DEMO_EPOCHS,
            seed=TRAINING_SEED,
            on_epoch=tell,
            checkpoints=folder.checkpoints,
        )
    finally:
        torch.set_num_threads(before)
    kept = tuple(report.checkpoint for report in reports if report.checkpoint is not None)
    return Trained(kept, reports[-1].accuracy)


def write_spec(folder: Folder, trained: Trained, full: bool = False) -> JobSpec:
    """The demo's job, also written as an example to copy from.

    Args:
        full: with every analysis there is.
    """
    *before, last = map(str, trained.checkpoints)
    analyses: tuple[Analysis, ...] = (
        TopSpec(kind="top"),
        ProjectionSpec(kind="projection", layers=("*",)),
        OcclusionSpec(
            kind="occlusion", images=DrawnImages(sample=OCCLUDED), patch=PATCH, stride=STRIDE
        ),
    )
    spec = JobSpec(
        name="demo",
        model=ModelSpec(
            name="deconvoy/zfnet_small", weights=last, checkpoints=tuple(before) if full else ()
        ),
        data=DataSpec(uri=f"shapes?size={IMAGES}&seed={IMAGES_SEED}"),
        analyses=(*analyses, *_further()) if full else analyses,
    )
    _write(spec, folder.spec)
    return spec


def _further() -> tuple[Analysis, ...]:
    """What the paper does besides: its figures 4 and 5, tables 1 and 4 to 7."""
    return (
        EvolutionSpec(kind="evolution", units=Ids(ids=tuple(range(16)))),
        InvarianceSpec(
            kind="invariance",
            images=DrawnImages(sample=8),
            translation=Steps(first=-16, last=16, count=17),
            scale=Steps(first=0.6, last=1.8, count=13),
            border="reflect",
        ),
        CorrespondenceSpec(
            kind="correspondence",
            images=DrawnImages(sample=20),
            parts=("left_eye", "right_eye", "nose", "mouth"),
        ),
        ProbeSpec(
            kind="probe",
            data=DataSpec(uri=f"shapes?size=600&seed={PROBE_SEED}"),
            train=(1, 5, 20),
            test=20,
            folds=3,
        ),
    )


def write_study_spec(folder: Folder) -> StudySpec:
    """The study of a full demo: the paper's Table 3, on fewer images than the demo's network had,
    since eight are trained; twice, without which nobody knows what a difference means."""
    spec = StudySpec(
        kind="study",
        name="demo-study",
        seed=TRAINING_SEED,
        base="deconvoy/zfnet_small",
        data=DataSpec(uri=f"shapes?size={STUDY_IMAGES}&seed={TRAINING_SEED}"),
        validation=DataSpec(uri=f"shapes?size=1000&seed={IMAGES_SEED}"),
        edits=(
            EditSpec(remove=(3, 4)),
            EditSpec(remove=(7,)),
            EditSpec(remove=(6, 7)),
            EditSpec(remove=(3, 4, 6, 7)),
            EditSpec(widths={6: 128, 7: 128}),
            EditSpec(widths={6: 512, 7: 512}),
            EditSpec(widths={3: 128, 4: 256, 5: 128}),
        ),
        repeats=2,
        training=RecipeSpec(epochs=DEMO_EPOCHS),
    )
    _write(spec, folder.study_spec)
    return spec


def _write(spec: JobSpec | StudySpec, path: Path) -> None:
    fields = spec.model_dump(mode="json", exclude_unset=True)
    path.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
