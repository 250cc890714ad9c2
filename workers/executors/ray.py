"""Workers as Ray actors, one lease in flight each; the only module that imports Ray.

Actors never restart by themselves: the driver is told, and the ledger gives the lease to another.
Calls to ``progress`` go through a concurrency group of their own and are answered while the actor
works.  This module must not import torch, which the driver of a cluster may lack the memory for.

Besides: actors that outlive who started them and are found again by name (``workers.drivers``).
"""

import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

# Ray reads these once, when it is imported.  `uv run` must not make it copy the working directory
# to every actor.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if "RAY_ADDRESS" not in os.environ:
    # A cluster of our own: listeners on the loopback interface only, and a token of its own (the
    # default would write one, readable by all, into the home folder).
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

import ray
import ray.exceptions

from deconvoy import fence
from deconvoy.errors import ClusterTooSmall, ClusterUnreachable, DeconvoyError, RequestError
from deconvoy.spec import ComputeSpec
from workers.executors import (
    Executor,
    Lost,
    Moved,
    Raised,
    Ready,
    Report,
    Returned,
)
from workers.executors.clusters import own_signals, require_room, share, sweep_folders
from workers.front import FRONT
from workers.leases import AnyAssignment, Lease
from workers.machine import cores, keep_freed_memory

logger = logging.getLogger(__name__)

# Ray's stubs lack the concurrency groups of its manual, and say nothing of the nodes.
_remote: Any = ray.remote
_nodes: Any = ray.nodes

SPARING_AFTER = 2
"""Where so many workers, each in the place of the one before, ended over a lease, it may have been
for the memory they took: who follows computes one batch at a time.  (A node that dies takes each
but once.)"""

PROGRESS_SECONDS = 1.0
"""How often a busy worker is asked how far it is."""

ANSWER_SECONDS = 5.0
"""Longest wait for an actor by name; one that is still loading torch does not answer yet."""

GROW_SECONDS = 10.0
"""How often it is seen whether nodes have joined, where there are to be as many workers as fit."""

JOIN_SECONDS = 120.0
"""Longest wait for a node with cores, where there is none: they join after the head, or come back.
Ray gives a node that is silent up after a minute."""

LOOK_SECONDS = 1.0
"""How often a cluster of our own looks whether it is whole."""

NAMESPACE = "deconvoy"

CONNECT_HINT = (
    "check the address, that this machine is a node of the cluster (DECONVOY_RAY_NODE=true makes "
    "`deconvoy up` join it as one), that the cluster runs Ray {version} on the same Python, and "
    "that RAY_AUTH_MODE=token and RAY_AUTH_TOKEN are set here as they are there"
)


class RemoteActor:
    """Builds the real actor where it runs; torch is imported there, not here."""

    def __init__(self, assignment: AnyAssignment, sparing: bool) -> None:
        keep_freed_memory()
        fence.put_up(assignment.roots)
        from workers.crew import worker_of

        self._actor = worker_of(assignment, sparing)

    def whoami(self) -> dict[str, Any]:
        return self._actor.whoami()

    def work(self, lease: Lease) -> Any:
        """The result, or the error of our own as a value: it then arrives as it was raised."""
        try:
            return self._actor.work(lease)
        except DeconvoyError as error:
            return error

    @ray.method(concurrency_group="control")
    def progress(self) -> int:
        return self._actor.progress()


@dataclass
class _Worker:
    name: str
    handle: Any
    ready: Any
    lease: Lease | None = None
    call: Any = None
    asked: Any = None
    asked_at: float = field(default_factory=time.monotonic)
    lost: bool = False
    fallen: int = 0
    """How many of those in whose place it is ended over a lease."""


class RayExecutor(Executor):
    """A pool of Ray actors on a local cluster of its own or on one that is there.

    Args:
        compute: workers, threads and GPUs asked for.
        address: of a running cluster, which RAY_ADDRESS must name too before this module is
            imported; None starts one on this machine and ends it at shutdown.
        num_gpus: pretend the local cluster has so many GPUs (for tests of placement).

    Raises:
        ClusterTooSmall: no node can ever hold one such worker.
        DeconvoyError: the cluster cannot be reached.
    """

    def __init__(
        self, compute: ComputeSpec, address: str | None = None, num_gpus: int | None = None
    ) -> None:
        self._pool: dict[str, _Worker] = {}
        self._count = 0
        self._looked = time.monotonic()
        self._owns_cluster = not ray.is_initialized()
        self._folder = connect(address, num_gpus) if self._owns_cluster else None
        try:
            self._measure(compute)
        except BaseException:
            self.shutdown()
            raise

    def _measure(self, compute: ComputeSpec) -> None:
        """Cut the cluster into workers."""
        nodes = _nodes_with_cores()
        all_gpus = sum(node.get("GPU", 0) for node in nodes)
        self._gpus = (
            float(all_gpus > 0) if compute.gpus_per_worker == "auto" else compute.gpus_per_worker
        )
        # A worker on CPU counts for its threads, two unless told.
        self._each = 2 if compute.threads == "auto" else compute.threads
        self._grows = compute.workers == "auto"
        self.workers = self._room(nodes) if compute.workers == "auto" else compute.workers
        self._cpus = share([node.get("CPU", 0.0) for node in nodes], self.workers)
        if compute.threads != "auto":
            self._threads = compute.threads
        else:
            self._threads = max(1, int(self._cpus))
        require_room(nodes, self._cpus, self._gpus)

    def _room(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """Workers that a cluster of these nodes has, where their number is left to us."""
        if self._gpus:
            return max(1, int(sum(node.get("GPU", 0) for node in nodes) / self._gpus))
        return max(1, int(sum(node.get("CPU", 0) for node in nodes)) // self._each)

    def _grow(self) -> None:
        """Take in nodes that have joined.  In the place of those that were lost workers wait."""
        if not self._grows or time.monotonic() - self._looked < GROW_SECONDS:
            return
        self._looked = time.monotonic()
        for _ in range(self._room(_alive()) - self.workers):
            self.workers += 1
            self._add()

    def require_fast(self, precision: str) -> None:
        if precision == "float32" or self._gpus:
            return
        refusal = ray.get(_remote(num_cpus=self._cpus)(_refusal_of).remote(precision))
        if refusal is not None:
            raise refusal

    def start(self, assignment_of: Callable[[int], AnyAssignment]) -> None:
        assignment = replace(assignment_of(self._threads), cuda=self._gpus > 0, roots=fence.roots())
        self._assignment = ray.put(assignment)
        for _ in range(self.workers):
            self._add()

    def _add(self, fallen: int = 0) -> None:
        self._count += 1
        actor = _remote(concurrency_groups={"control": 1})(RemoteActor).options(
            num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=0, max_task_retries=0
        )
        handle = actor.remote(self._assignment, fallen >= SPARING_AFTER)
        name = f"worker-{self._count}"
        self._pool[name] = _Worker(name, handle, handle.whoami.remote(), fallen=fallen)

    def submit(self, worker: str, lease: Lease) -> None:
        entry = self._pool[worker]
        entry.lease, entry.call = lease, entry.handle.work.remote(lease)
        entry.asked, entry.asked_at = None, time.monotonic()  # an older answer is of the last lease

    def replace(self, worker: str) -> None:
        entry = self._pool.pop(worker, None)
        if entry is not None:
            # Whatever its state: an actor reported lost may still run (a node cut off).
            ray.kill(entry.handle)
        self._add(0 if entry is None else entry.fallen + (entry.lease is not None))

    def wait(self, seconds: float) -> list[Report]:
        self._grow()
        calls = {ref: worker for worker in self._pool.values() for ref in _pending(worker)}
        if not calls:
            time.sleep(seconds)
            return []
        done, _ = ray.wait(list(calls), num_returns=1, timeout=seconds)
        if done:  # whatever else is there already
            done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        reports = [report for ref in done if (report := self._report(calls[ref], ref))]
        self._ask()
        return reports

    def _report(self, worker: _Worker, ref: Any) -> Report | None:
        try:
            value = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            return self._raised(worker, ref, error)
        except ray.exceptions.RayError as error:  # dead, cut off, or its answer lost with its node
            return self._lost(worker, error)
        if ref == worker.ready:
            worker.ready = None
            return Ready(worker.name, value)
        if ref == worker.asked:
            worker.asked = None
            return Moved(worker.name, value) if worker.lease is not None else None
        lease, worker.lease, worker.call = worker.lease, None, None
        assert lease is not None
        if isinstance(value, DeconvoyError):
            return Raised(worker.name, lease, value)
        return Returned(worker.name, lease, value)

    def _raised(self, worker: _Worker, ref: Any, error: Any) -> Report | None:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if ref == worker.call and worker.lease is not None:
            lease, worker.lease, worker.call = worker.lease, None, None
            return Raised(worker.name, lease, cause)
        return self._lost(worker, cause)

    def _lost(self, worker: _Worker, error: Exception) -> Report | None:
        """Told once, though every pending call of a dead actor fails."""
        if worker.lost:
            return None
        worker.lost, worker.ready, worker.call, worker.asked = True, None, None, None
        return Lost(worker.name, _reason(error))

    def _ask(self) -> None:
        now = time.monotonic()
        for worker in self._pool.values():
            busy = worker.call is not None and worker.asked is None
            if busy and now - worker.asked_at > PROGRESS_SECONDS:
                worker.asked, worker.asked_at = worker.handle.progress.remote(), now

    def shutdown(self) -> None:
        for worker in self._pool.values():
            ray.kill(worker.handle)
        self._pool.clear()
        if self._owns_cluster and ray.is_initialized():
            disconnect(self._folder)


# Actors by name --------------------------------------------------------------------------------


def start_named(kind: type, name: str, *arguments: Any) -> None:
    """An actor that needs no core of its own and outlives this process; one that is there already
    is left alone."""
    key, value = FRONT
    actor = _remote(max_concurrency=4)(kind).options(
        name=name, namespace=NAMESPACE, lifetime="detached", get_if_exists=True,
        num_cpus=0, max_restarts=0, max_task_retries=0, label_selector={key: f"!{value}"},
    )  # fmt: skip
    actor.remote(*arguments)


def ask_named(name: str, method: str, *arguments: Any) -> Any:
    """What a method of it returns; None where there is no such actor, or it died.

    Raises:
        ClusterUnreachable: it does not answer in time; it may be there all the same.
    """
    try:
        handle = _named(name)
        if handle is None:
            return None
        return ray.get(getattr(handle, method).remote(*arguments), timeout=ANSWER_SECONDS)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.ActorDiedError:
        return None
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise ClusterUnreachable(f"{name!r} does not answer: {_first_line(error)}.") from error


def end_named(name: str) -> None:
    """Its process, and those of its workers, whatever they do."""
    handle = _named(name)
    if handle is not None:
        ray.kill(handle)


def _named(name: str) -> Any:
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:  # Ray's for a name that is not there
        return None


def serve_cluster(announce: Callable[[str], None]) -> None:
    """Be a cluster of this machine until told to end (SIGTERM or Ctrl-C), or until a part of it
    has died: what is left would take jobs and never work on them.

    Args:
        announce: told the address when it is ready.
    """
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    folder = connect(None, None)
    try:
        announce(str(ray.get_runtime_context().gcs_address))
        while not ending.wait(LOOK_SECONDS):
            if dead := [kind for kind, _ in _own_node().dead_processes()]:
                logger.error("Ray's %s died, so this cluster ends.", ", ".join(dead))
                break
    finally:
        disconnect(folder)


def _own_node() -> Any:
    """What ``connect`` started, as Ray knows them; `ray start --block` looks there."""
    from ray._private.worker import global_worker

    node: Any = global_worker.node
    return node


def _alive() -> list[dict[str, float]]:
    """What each node has."""
    return [node["Resources"] for node in _nodes() if node["Alive"]]


def _nodes_with_cores() -> list[dict[str, float]]:
    """What each node has; waits for the first with a core.  Else workers would ask for none, and
    all land on the head.

    Raises:
        ClusterTooSmall: none comes.
    """
    began, told = time.monotonic(), False
    while True:
        nodes = _alive()
        if any(node.get("CPU", 0) > 0 for node in nodes):
            return nodes
        if time.monotonic() - began > JOIN_SECONDS:
            raise ClusterTooSmall(
                f"No node of this cluster has a core, and none has joined in {JOIN_SECONDS:.0f} s: "
                "add a node (`ray start --address=HEAD:6379`), then start the job anew."
            )
        if not told:
            told = True
            logger.warning("The cluster has no node with a core yet: waiting for one to join.")
        time.sleep(0.5)


def _refusal_of(precision: str) -> RequestError | None:
    """Asked where workers run; torch is imported there, not here."""
    from workers.numerics import require_fast

    try:
        require_fast(precision)
    except RequestError as error:
        return error
    return None


def _pending(worker: _Worker) -> list[Any]:
    return [ref for ref in (worker.ready, worker.call, worker.asked) if ref is not None]


def connect(address: str | None, num_gpus: int | None) -> str | None:
    """Join the cluster at ``address``, or start one on this machine for this process alone.

    Returns:
        The folder the cluster of our own keeps its sockets and logs in.
    """
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        sweep_folders()
        folder = tempfile.mkdtemp(prefix=f"dv-{os.getpid()}-", dir="/tmp")  # sockets need it short
        try:
            with own_signals():
                ray.init(
                    address="local",  # else RAY_ADDRESS or somebody's cluster would be joined
                    num_cpus=cores(),
                    num_gpus=num_gpus,
                    include_dashboard=False,
                    _temp_dir=folder,
                    **quiet,
                )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder
    try:
        with own_signals():
            ray.init(address=address, **quiet)
        return None
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        hint = CONNECT_HINT.format(version=ray.__version__)
        raise DeconvoyError(
            f"No Ray cluster answers at {address!r} ({_first_line(error)}): {hint}."
        ) from error


def disconnect(folder: str | None) -> None:
    """Leave the cluster; one that ``connect`` started ends, and its folder goes: Ray never cleans
    up its logs."""
    ray.shutdown()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _reason(error: Exception) -> str:
    """Why a worker is lost; of one that could not be built, what its constructor raised."""
    if isinstance(error, ray.exceptions.RayActorError) and error.actor_init_failed:
        return str(error).strip().splitlines()[-1]
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
