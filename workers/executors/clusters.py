"""What there is to know about a cluster without asking Ray: folders, signals, how it is cut up."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deconvoy.errors import ClusterTooSmall


def sweep_folders() -> None:
    """Remove what the clusters of processes that were killed have left: Ray never does.  Not what
    is younger than a day: a container that shares /tmp has process numbers of its own."""
    yesterday = time.time() - 86_400
    for folder in Path("/tmp").glob("dv-*-*"):
        pid = folder.name.split("-")[1]
        about = folder.stat()
        ours = about.st_uid == os.getuid() and about.st_mtime < yesterday
        if pid.isdecimal() and ours and not _lives(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def own_signals() -> Iterator[None]:
    """Keep our handler of SIGTERM: Ray puts one in its place that ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def share(cores_of_nodes: list[float], workers: int) -> float:
    """Cores each worker reserves: whole ones, or a fraction where workers outnumber cores; never
    more than one node has."""
    share = min(sum(cores_of_nodes) / workers, max(cores_of_nodes))
    return float(int(share)) if share >= 1 else int(share * 1000) / 1000


def require_room(nodes: list[dict[str, float]], cpus: float, gpus: float) -> None:
    if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        return
    most_gpus = max((node.get("GPU", 0) for node in nodes), default=0)
    most_cpus = max((node.get("CPU", 0) for node in nodes), default=0)
    raise ClusterTooSmall(
        f"A worker with {gpus:g} GPUs and {cpus:g} cores fits no node of this cluster: the largest "
        f"has {most_gpus:g} GPUs and {most_cpus:g} cores. Lower compute.gpus_per_worker, or add "
        "a node."
    )
