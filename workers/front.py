"""The node of a Ray cluster by which a service that is elsewhere gets in.

It has no cores, and no job runs there: it ends with its service.
"""

import sys

FRONT = ("deconvoy", "front")
"""Its label."""

STORE_BYTES = 100_000_000
"""Of its object store: nothing large goes through it."""


def node_command(address: str) -> list[str]:
    """What makes this machine such a node of the cluster there, until SIGTERM."""
    key, value = FRONT
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--address", address),
        *("--num-cpus", "0", "--num-gpus", "0", "--labels", f"{key}={value}"),
        *("--object-store-memory", str(STORE_BYTES), "--log-style", "record"),
    ]
