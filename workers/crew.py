"""Who works on what: the worker that an assignment asks for."""

from typing import Any, Protocol, runtime_checkable

from workers.actor import Actor
from workers.leases import AnyAssignment, StudyAssignment
from workers.trainer import Trainer


@runtime_checkable
class Worker(Protocol):
    """What an executor carries."""

    def whoami(self) -> dict[str, Any]:
        """pid, node, device, gpus, threads."""
        ...

    def work(self, lease: Any) -> Any:
        """Answer one lease."""
        ...

    def progress(self) -> int:
        """How much of the lease at hand is done."""
        ...

    def stop(self) -> None:
        """Give the lease at hand up; it raises JobStopped."""
        ...


def worker_of(assignment: AnyAssignment, sparing: bool = False) -> Worker:
    """
    Args:
        sparing: compute one batch at a time; a training never does more.
    """
    if isinstance(assignment, StudyAssignment):
        return Trainer(assignment)
    return Actor(assignment, sparing)
