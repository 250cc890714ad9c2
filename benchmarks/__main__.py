"""Measure and print one table: ``python -m benchmarks [--only scan,memory] [--images FOLDER]``.

The same as ``make bench``.  Results go to ``benchmarks/results`` as JSON, a file a benchmark, with
what they were measured on.  Without a folder of photographs, noise is taken.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison import Comparison
from workers.job import versions
from workers.machine import cores, keep_freed_memory
from workers.numerics import fast_types

RESULTS = Path(__file__).parent / "results"

PEERS = ("captum", "zennit", "zennit-crp")

Rows = Iterator[Comparison]


def main() -> None:
    arguments = _arguments()
    torch.backends.cudnn.allow_tf32 = False  # as a worker has it; matrix products never do
    keep_freed_memory()  # as a worker on Ray does; the peers have it, too
    benchmarks = _benchmarks(arguments)
    chosen = (
        arguments.only.split(",") if arguments.only else [n for n in benchmarks if n != "storage"]
    )
    unknown = set(chosen) - set(benchmarks)
    if unknown:
        raise SystemExit(
            f"--only: there is no benchmark {', '.join(sorted(unknown))}; "
            f"there are {', '.join(benchmarks)}."
        )
    headed = False
    for name in chosen:
        before, rows = os.getloadavg()[0], []
        for row in benchmarks[name]():
            if not headed:
                print("| " + " | ".join(row.shown()) + " |\n" + "|---" * len(row.shown()) + "|")
            headed = True
            print("| " + " | ".join(row.shown().values()) + " |", flush=True)
            rows.append(row.to_json())
        _write(arguments.into, name, rows, before)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", help="names of benchmarks, comma between")
    parser.add_argument("--images", type=Path, help="a folder of photographs")
    parser.add_argument("--count", type=int, default=200, help="images of it; fewer are faster")
    parser.add_argument(
        "--sample", type=float, default=0.1, help="share of the units of whole jobs"
    )
    parser.add_argument(
        "--into", type=Path, default=RESULTS, help="a folder for the JSON (benchmarks/results)"
    )
    arguments = parser.parse_args()
    if arguments.images is not None and not arguments.images.is_dir():
        parser.error(f"--images {str(arguments.images)!r} is no folder.")
    return arguments


def _benchmarks(arguments: argparse.Namespace) -> Mapping[str, Callable[[], Rows]]:
    """By name.  Each is imported when it runs: some need peers that the others do not."""
    folder, count, sample = arguments.images, arguments.count, arguments.sample

    def load(name: str) -> Any:
        return import_module(f"benchmarks.{name}")

    return {
        "scan": lambda: load("scan").measure(),
        "candidates": lambda: load("candidates").measure(folder, count),
        "concept_search": lambda: load("concept_search").measure(folder),
        "projection": lambda: load("projection").measure(folder, count),
        "occlusion": lambda: load("occlusion").measure(folder),
        "end_to_end": lambda: load("end_to_end").measure(folder, count, sample),
        "memory": lambda: load("memory").measure(),
        "storage": lambda: load("storage").measure(folder, count, sample),
        "serving": lambda: load("serving").measure(),
        "dashboard": lambda: load("dashboard").measure(),
    }


def _write(folder: Path, name: str, rows: list[dict[str, Any]], load: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": name,
        "measured_on": {**_machine(), "load_before": load},
        "rows": rows,
    }
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _machine() -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "bfloat16": torch.bfloat16 in fast_types(torch.device("cpu")),
        "cores": cores(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": versions(*PEERS),
    }


def _processor() -> str:
    """As the system names it, where it does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
