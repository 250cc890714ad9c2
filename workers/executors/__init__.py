"""Carry actors and tell what became of them; ``inline`` in this process, ``ray`` on a cluster.

An executor decides nothing: it starts workers, hands them leases, and reports.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from workers.leases import AnyAssignment, Lease


@dataclass(frozen=True)
class Ready:
    """The worker has built its model and waits for a lease."""

    worker: str
    about: dict[str, Any]
    """pid, node, device, gpus, threads."""


@dataclass(frozen=True)
class Lost:
    worker: str
    reason: str


@dataclass(frozen=True)
class Moved:
    """How far the worker is within its lease."""

    worker: str
    done: int


@dataclass(frozen=True)
class Returned:
    worker: str
    lease: Lease
    result: Any


@dataclass(frozen=True)
class Raised:
    worker: str
    lease: Lease
    error: Exception


Report = Ready | Lost | Moved | Returned | Raised


@runtime_checkable
class Executor(Protocol):
    """What the driver needs of whoever carries the workers."""

    workers: int

    def require_fast(self, precision: str) -> None:
        """Before anything is written or started.

        Raises:
            RequestError: workers have no instructions for that type.
        """
        ...

    def start(self, assignment_of: Callable[[int], AnyAssignment]) -> None:
        """Start ``workers`` workers; each reports ``Ready`` when it is.

        Args:
            assignment_of: threads a worker gets → its assignment.
        """
        ...

    def submit(self, worker: str, lease: Lease) -> None: ...

    def replace(self, worker: str) -> None:
        """End a worker, dead or hung, and start another under a new name."""
        ...

    def wait(self, seconds: float) -> list[Report]:
        """What has happened; waits up to ``seconds`` for something to happen."""
        ...

    def shutdown(self) -> None: ...
