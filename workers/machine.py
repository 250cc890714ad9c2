"""What this machine gives us."""

import os


def cores() -> int:
    """Cores this process may use; containers and affinities count."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
