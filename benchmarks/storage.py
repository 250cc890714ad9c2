"""How many bytes a run over every feature map of resnet50 stores, at default storage.

A random share of the units of every layer is projected and their pictures are scaled up; all the
rest of a run (tables, ledger, images, metadata) is there in full.  A number of bytes, so that the
speed of the machine does not matter; photographs compress less than ``shapes``.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deconvoy.spec import JobSpec
from workers.executors.inline import InlineExecutor
from workers.pipeline import create, execute

TARGET_GB = 15.0


def measure(images: str | None, limit: int, sample: float) -> Iterator[dict[str, Any]]:
    """One row.

    Args:
        images: a folder of photographs; None for ``shapes``.
        limit: images taken of it.
        sample: share of the units projected.
    """
    spec = JobSpec.parse(
        {
            "model": {"name": "torchvision/resnet50"},
            "data": {"uri": images or "shapes", "limit": limit},
            "analyses": [{"kind": "top"}, {"kind": "projection", "units": {"sample": sample}}],
        }
    )
    with tempfile.TemporaryDirectory(prefix="deconvoy-bench-") as folder:
        began = time.perf_counter()
        job, run = create(spec, str(Path(folder) / "run"))
        execute(job, run, InlineExecutor(), lambda advance: None)
        seconds = time.perf_counter() - began
        pictures, scaled = 0, 0.0
        for layer in job.projected_layers():
            own = [item for item in job.projection_items() if item.layer is layer]
            stored = _picture_bytes(run.root, layer.name)
            pictures += stored
            scaled += stored * layer.units / sum(len(item.units) for item in own)
        rest = run.bytes_used() - pictures
    yield {
        "model": spec.model.name,
        "units": sum(layer.units for layer in job.projected_layers()),
        "projected": sum(len(item.units) for item in job.projection_items()),
        "images": len(job.listing),
        "seconds": seconds,
        "pictures_gb": pictures / 1e9,
        "rest_gb": rest / 1e9,
        "scaled_gb": (scaled + rest) / 1e9,
        "target_gb": TARGET_GB,
    }


def _picture_bytes(root: Path, layer: str) -> int:
    from deconvoy.schema import layer_path

    group = root / layer_path(layer)
    files = [path for name in ("patch", "projection") for path in (group / name).rglob("c/**/*")]
    return sum(path.stat().st_size for path in files if path.is_file())
