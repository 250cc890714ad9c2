"""How much memory the scan takes over n and over 10 n images: about the same.

Each measurement is a process of its own, since peak memory never comes down again.
``python -m benchmarks.memory IMAGES`` prints the peak of one.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.comparison import Comparison
from deconvoy.spec import JobSpec

MODEL = "zfnet_small"
IMAGES = (1000, 10_000)
GROWTH = 1.1
"""At most."""


def measure() -> Iterator[Comparison]:
    """One row."""
    few, many = ([_peak(images)] for images in IMAGES)
    yield Comparison(
        "peak memory", MODEL, f"{IMAGES[1]:,} images beside {IMAGES[0]:,}", "run",
        ours=many, theirs=few, at_least=1 / GROWTH, measured="MB",
    )  # fmt: skip


def _peak(images: int) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", str(images)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def _scan(images: int) -> float:
    """The peak of this process in MB."""
    from workers.executors.inline import InlineExecutor
    from workers.machine import keep_freed_memory
    from workers.pipeline import create, execute

    keep_freed_memory()
    spec = JobSpec.parse(
        {
            "model": {"name": f"deconvoy/{MODEL}"},
            "data": {"uri": f"shapes?size={images}"},
            "analyses": [{"kind": "top"}],
        }
    )
    with tempfile.TemporaryDirectory(prefix="deconvoy-bench-") as folder:
        job, run = create(spec, str(Path(folder) / "run"))
        execute(job, run, InlineExecutor(), lambda advance: None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    print(_scan(int(sys.argv[1])))
