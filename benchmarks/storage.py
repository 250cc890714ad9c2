"""How many bytes a run over every feature map of resnet50 stores, at default storage.

A random share of the units of every layer is projected and their pictures are scaled up; all the
rest of a run (tables, ledger, images, metadata) is there in full.  A number of bytes, so that the
speed of the machine does not matter; photographs compress less than ``shapes``.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.comparison import Comparison
from deconvoy.spec import JobSpec
from workers.executors.inline import InlineExecutor
from workers.pipeline import create, execute

MODEL = "resnet50"
LIMIT_GB = 15.0


def measure(folder: Path | None, limit: int, sample: float) -> Iterator[Comparison]:
    """One row.

    Args:
        folder: of photographs; None for ``shapes``.
        limit: images taken of it.
        sample: share of the units projected.
    """
    spec = JobSpec.parse(
        {
            "model": {"name": f"torchvision/{MODEL}"},
            "data": {"uri": str(folder) if folder else "shapes", "limit": limit},
            "analyses": [{"kind": "top"}, {"kind": "projection", "units": {"sample": sample}}],
        }
    )
    with tempfile.TemporaryDirectory(prefix="deconvoy-bench-") as folder:
        job, run = create(spec, str(Path(folder) / "run"))
        execute(job, run, InlineExecutor(), lambda advance: None)
        pictures, scaled = 0, 0.0
        for layer in job.projected_layers():
            own = [item for item in job.projection_items() if item.layer is layer]
            stored = _picture_bytes(run.root, layer.name)
            pictures += stored
            scaled += stored * layer.units / sum(len(item.units) for item in own)
        rest = run.bytes_used() - pictures
    units = sum(layer.units for layer in job.projected_layers())
    projected = sum(len(item.units) for item in job.projection_items())
    yield Comparison(
        "storage", MODEL, "what it may take", "run",
        ours=[(scaled + rest) / 1e9], theirs=[LIMIT_GB], at_least=1.0, measured="GB",
        details={"units": units, "projected": projected, "images": len(job.listing)},
    )  # fmt: skip


def _picture_bytes(root: Path, layer: str) -> int:
    from deconvoy.schema import layer_path

    group = root / layer_path(layer)
    files = [path for name in ("patch", "projection") for path in (group / name).rglob("c/**/*")]
    return sum(path.stat().st_size for path in files if path.is_file())
