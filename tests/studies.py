"""Small studies: a handful of images, two networks."""

from pathlib import Path
from typing import Any

from deconvoy.study_spec import StudySpec
from tests.runs import ignore
from workers.executors.inline import InlineExecutor
from workers.undertaking import create, execute, reopen


def spec_of(**changes: Any) -> StudySpec:
    """Two networks, each trained twice for three epochs on a handful of images."""
    fields: dict[str, Any] = {
        "kind": "study",
        "base": "deconvoy/zfnet_small",
        "data": {"uri": "shapes?size=24&seed=1"},
        "validation": {"uri": "shapes?size=12&seed=2"},
        "edits": [{"remove": [3, 4], "widths": {6: 32, 7: 32}}],
        "repeats": 2,
        "training": {"epochs": 3, "batch_size": 8, "checkpoints": [1]},
    }
    return StudySpec.parse(fields | changes)


def long_study() -> StudySpec:
    """Trainings of some seconds, on two workers, so that a kill finds them at work."""
    return spec_of(
        data={"uri": "shapes?size=480&seed=1"},
        training={"epochs": 4, "batch_size": 16, "checkpoints": [1]},
        compute={"workers": 2, "gpus_per_worker": 0.0},
    )


def run_study(spec: StudySpec, url: Path, observe: Any = ignore) -> dict[str, Any]:
    job, run = create(spec, str(url))
    return execute(job, run, InlineExecutor(), observe)


def resume_study(url: Path) -> None:
    job, run = reopen(str(url))
    execute(job, run, InlineExecutor(), ignore)
