"""Measure and print: ``python -m benchmarks [--only scan,memory] [--storage]``; ``make bench``.

Results go to ``benchmarks/results`` as JSON with what they were measured on.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory, occlusion, scan, storage
from workers.job import versions
from workers.machine import cores

RESULTS = Path(__file__).parent / "results"

Rows = Iterator[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        default="",
        help="names, comma between: scan, memory, projection, occlusion, storage",
    )
    parser.add_argument("--storage", action="store_true", help="also storage: many minutes")
    parser.add_argument("--images", help="storage, projection: a folder of photographs")
    parser.add_argument("--limit", type=int, default=60, help="storage: images of it")
    parser.add_argument("--sample", type=float, default=0.05, help="storage: share of the units")
    parser.add_argument("--count", type=int, default=100, help="projection: images of it")
    parser.add_argument("--models", default="", help="projection: only these, comma between")
    arguments = parser.parse_args()
    benchmarks: Mapping[str, Callable[[], Rows]] = {
        "scan": scan.measure,
        "memory": memory.measure,
        "projection": lambda: _projection(arguments.images, arguments.count, arguments.models),
        "occlusion": occlusion.measure,
        "storage": lambda: storage.measure(arguments.images, arguments.limit, arguments.sample),
    }
    default = ["scan", "memory", *(["storage"] if arguments.storage else [])]
    chosen = arguments.only.split(",") if arguments.only else default
    unknown = set(chosen) - set(benchmarks)
    if unknown:
        parser.error(f"--only: no benchmark {', '.join(sorted(unknown))}; {', '.join(benchmarks)}")
    for name in chosen:
        _run(name, benchmarks[name])


def _projection(folder: str | None, count: int, models: str) -> Rows:
    from benchmarks import projection  # needs Captum, which the others do not

    return projection.measure(folder, count, models.split(",") if models else ())


def _run(name: str, measure: Callable[[], Rows]) -> None:
    before = os.getloadavg()[0]
    rows: list[dict[str, Any]] = []
    for row in measure():
        shown = {key: value for key, value in row.items() if not isinstance(value, dict | list)}
        if not rows:
            print(f"\n{name}\n" + "  ".join(f"{key:>{_width(key)}}" for key in shown))
        print("  ".join(f"{_text(v):>{_width(key)}}" for key, v in shown.items()), flush=True)
        rows.append(row)
    RESULTS.mkdir(exist_ok=True)
    measured_on = {**_machine(), "load_before": before}
    content = {"benchmark": name, "measured_on": measured_on, "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _machine() -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": versions(),
    }


def _processor() -> str:
    """As the system names it, where it does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _width(key: str) -> int:
    return max(len(key), 13)


def _text(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
