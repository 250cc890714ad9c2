"""What this machine gives us."""

import ctypes
import os
import platform
import socket
from typing import Any

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
"""Of ``mallopt``, as malloc.h numbers them."""


def cores() -> int:
    """Cores this process may use; containers and affinities count."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def about(device: str, threads: int) -> dict[str, Any]:
    """What a worker says of itself: pid, node, device, gpus, threads."""
    return {
        "pid": os.getpid(),
        "node": socket.gethostname(),
        "device": device,
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "threads": threads,
    }


def keep_freed_memory() -> bool:
    """Let the C library keep what this process frees, for the next tensor of that size.

    Else every map of some megabytes is given back to the system and taken anew, which clears it
    page by page: that is a tenth to a fifth of the time of a forward pass.  A process never gets
    smaller then, so this is for those of our own, not for a notebook.

    Returns:
        Whether it does: glibc can, other libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Of all threads in one arena: those of their own hold 64 MB at most, and larger tensors not.
    wanted = {M_ARENA_MAX: 1, M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**30, M_TOP_PAD: 64 * 2**20}
    return all([mallopt(name, value) for name, value in wanted.items()])
