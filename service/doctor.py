"""Examine this machine: what it has for Deconvoy, what is wrong, and the remedy of each.

Nothing heavy is loaded here: versions come from the packages' metadata, and what only torch knows
of GPUs is asked of a process of its own.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import features

from service import collisions
from service.tables import amount

PYTHON = (3, 11), (3, 14)
"""First version that will do, and the first that will not."""

MEMORY = 2 * 10**9
"""A worker with a network of a hundred million weights takes this much."""

DISK = 2 * 10**9
"""Room of a run of a common network: 1.3 GB for AlexNet, pictures of 112 px."""

SHARED = 64 * 10**6
"""Docker's own size of /dev/shm, in which Ray's object store cannot live."""

ASK_TORCH = (
    "import torch; print(torch.cuda.device_count(), "
    "*(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())), sep='\\n')"
)
SECONDS = 60.0
"""Loading torch takes ten on a busy machine."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    found: str
    remedy: str | None = None
    """What to do; None where nothing is wrong."""


def examine() -> list[Finding]:
    """Look at everything."""
    return [finding for look in _LOOKS for finding in look()]


def python() -> Iterator[Finding]:
    first, beyond = PYTHON
    fits = first <= sys.version_info[:2] < beyond
    remedy = None if fits else "use Python 3.11, 3.12 or 3.13: `make setup PYTHON=…`"
    yield Finding("Python", f"{platform.python_version()} ({sys.executable})", remedy)


def extras() -> Iterator[Finding]:
    """The base and each extra, with versions; a missing extra is no fault, an old package is."""
    try:
        required = importlib.metadata.requires("deconvoy") or []
        yield Finding("deconvoy", importlib.metadata.version("deconvoy"))
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "deconvoy", "runs from its folder, not installed", "pip install -e . in its folder"
        )
        return
    for extra, requirements in _by_extra(required).items():
        found = {name: _version(name) for name, _ in requirements}
        told = ", ".join(f"{name} {version or 'absent'}" for name, version in found.items())
        absent = [name for name, version in found.items() if version is None]
        old = [
            f"{name} is {found[name]}, but at least {least} is needed"
            for name, least in requirements
            if found[name] is not None and _numbers(str(found[name])) < _numbers(least)
        ]
        name = f"extra {extra}" if extra else "needed always"
        install = f"deconvoy[{extra}]" if extra else "deconvoy"
        if old or (absent and not extra):
            yield Finding(name, "; ".join([told, *old]), f"pip install --upgrade '{install}'")
        elif absent:
            yield Finding(name, f"not installed ({', '.join(absent)}): pip install '{install}'")
        else:
            yield Finding(name, told)


def _by_extra(required: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Package and least version of each extra; "" is the base.  The extra `all` repeats."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in required:
        package = re.match(r"([A-Za-z0-9_.-]+)(?:>=([0-9.]+))?", line)
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", line)
        if package is None or "[" in line or (extra and extra[1] == "all"):
            continue
        found.setdefault(extra[1] if extra else "", []).append((package[1], package[2] or "0"))
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def names() -> Iterator[Finding]:
    clashing = [*collisions.in_folder(Path.cwd()), *collisions.shadowing()]
    if clashing:
        told = ", ".join(dict.fromkeys(map(str, clashing)))
        yield Finding("names", f"{told}: named like a package of ours", collisions.REMEDY)
    else:
        yield Finding("names", "nothing here hides a package of ours")


def machine() -> Iterator[Finding]:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    yield Finding("cores", f"{cores} for this process, {platform.machine()}, {platform.system()}")
    free = memory_free()
    if free is not None:
        little = "close other programs, or take another machine" if free < MEMORY else None
        yield Finding("memory", f"{amount(free)} free for this process", little)


def memory_free(root: Path = Path("/")) -> int | None:
    """Bytes this process may still take: of the machine, and of its container; None: unknown."""
    try:
        fields = dict(re.findall(r"(\w+):\s+(\d+) kB", (root / "proc/meminfo").read_text()))
        free = 1024 * int(fields["MemAvailable"])
    except (OSError, KeyError):
        return None
    group = root / "sys/fs/cgroup"
    try:
        most = int((group / "memory.max").read_text())  # "max" where there is no bound
        free = min(free, most - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(free, 0)


def disks() -> Iterator[Finding]:
    """Where runs go unless told, where Ray keeps its session, and Ray's object store."""
    for folder in dict.fromkeys((Path.cwd(), Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        little = "make room, or name another disk with --out and TMPDIR" if free < DISK else None
        yield Finding(f"disk {folder}", f"{amount(free)} free", little)
        if not os.access(folder, os.W_OK):
            yield Finding(f"disk {folder}", "not writable", "work in a folder you may write to")
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        small = "give the container more: `docker run --shm-size 2g`, or --executor inline"
        yield Finding("/dev/shm", amount(size), small if size <= SHARED else None)


def gpus() -> Iterator[Finding]:
    """What the driver shows, and what torch can use of it."""
    listed = _answer(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"])
    cards = [line for line in (listed or "").splitlines() if line.strip()]
    if not cards:
        yield Finding("GPUs", "none (no nvidia-smi); everything runs on the CPU, too")
        return
    told = "; ".join(cards)
    if _version("torch") is None:
        yield Finding("GPUs", told)
        return
    answer = _answer([sys.executable, "-c", ASK_TORCH])
    usable = int(answer.split()[0]) if answer else 0
    if usable:
        yield Finding("GPUs", f"{told}; torch uses {usable}")
    else:
        yield Finding(
            "GPUs",
            f"{told}; but torch {_version('torch')} cannot use any",
            "install a torch built for this driver's CUDA, and see CUDA_VISIBLE_DEVICES",
        )


def _answer(command: list[str]) -> str | None:
    """What a program prints; None where there is none, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def ray() -> Iterator[Finding]:
    """Settings a cluster is reached by.  Values of secrets are never told."""
    address = os.environ.get("RAY_ADDRESS")
    mode = os.environ.get("RAY_AUTH_MODE")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    token = "RAY_AUTH_TOKEN" in os.environ or path is not None
    if address is None and mode is None and not token:
        yield Finding("Ray", "no RAY_ADDRESS: jobs start a Ray of their own on this machine")
        return
    told = f"RAY_ADDRESS {address or 'unset'}, RAY_AUTH_MODE {mode or 'unset'}, "
    told += f"token {'set' if token else 'unset'}"
    remedy = None
    if path is not None and not Path(path).is_file():
        told += f", but RAY_AUTH_TOKEN_PATH {path} is no file"
        remedy = "write the cluster's token there, or set RAY_AUTH_TOKEN"
    elif token and mode != "token" and address is not None:
        remedy = (
            "set RAY_AUTH_MODE=token, too: without it Ray sends no token and the cluster refuses"
        )
    elif mode == "token" and not token and address is not None:
        remedy = "set RAY_AUTH_TOKEN to the cluster's token"
    yield Finding("Ray", told, remedy)


def pictures() -> Iterator[Finding]:
    """Formats images are read in, and letters figures are lettered with."""
    for name, key in (("JPEG", "jpg"), ("PNG", "zlib"), ("WebP", "webp"), ("fonts", "freetype2")):
        there = bool(features.check(key))
        remedy = None if there else "pip install --force-reinstall pillow (its wheels have it)"
        yield Finding(name, "Pillow has it" if there else "Pillow was built without it", remedy)


_LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    python,
    extras,
    names,
    machine,
    disks,
    gpus,
    ray,
    pictures,
)
