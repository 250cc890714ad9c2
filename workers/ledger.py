"""Decide who works on what: events in, instructions out.  Pure: no clock, no I/O, no Ray here.

A work item is leased to one worker at a time.  It is done when its result is committed, which only
the driver does and only for the attempt that holds the lease: a worker given up for dead that comes
back changes nothing.  A lease that shows no progress for ``patience`` seconds, or whose worker
died, is given to another; after ``MAX_ATTEMPTS`` the item fails, and with it the job.  Workers that
die before they are ready are no item's fault: after ``MAX_STILLBORN`` in a row for each that there
is to be the job fails.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

MAX_ATTEMPTS = 4
"""An item that took down this many workers is the cause, not the victim."""

MAX_STILLBORN = 3
"""Where so many workers in a row died while they were starting, no live one will follow: the model
cannot be built there, or the memory is too small."""

NODE_WORKERS = 8
"""A node takes so many with it, when it dies; as many times ``MAX_STILLBORN`` are enough of all."""

DIED = "; a worker that takes more memory than there is dies like this, too: see the node's log"

PATIENCE = 600.0
"""Seconds without a step forward after which a worker counts as hung; the longest step, a batch of
projections of a large model on one core, stays far below."""


# Events -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerReady:
    worker: str


@dataclass(frozen=True)
class WorkerLost:
    worker: str
    reason: str


@dataclass(frozen=True)
class Progressed:
    """The worker has moved on inside its lease."""

    worker: str


@dataclass(frozen=True)
class ItemFinished:
    worker: str
    item: str
    attempt: int


@dataclass(frozen=True)
class ItemFailed:
    """The item raised; ``final`` where trying again cannot help."""

    worker: str
    item: str
    attempt: int
    reason: str
    final: bool


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = WorkerReady | WorkerLost | Progressed | ItemFinished | ItemFailed | Tick


# Instructions -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grant:
    """Send the item to the worker."""

    worker: str
    item: str
    attempt: int


@dataclass(frozen=True)
class Commit:
    """The result of this attempt counts: write its marker."""

    item: str
    attempt: int
    worker: str


@dataclass(frozen=True)
class Replace:
    """End this worker, dead or hung, and start another in its place."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Abort:
    """The job has failed; nothing more is granted."""

    item: str | None
    """The one to blame; None where workers cannot even start."""
    reason: str


Instruction = Grant | Commit | Replace | Abort


@dataclass(frozen=True)
class Lease:
    item: str
    attempt: int
    worker: str
    renewed: float


@dataclass
class Ledger:
    """Work items of one stage and who holds them."""

    patience: float = PATIENCE
    workers: int = 1
    """That there are to be."""
    waiting: deque[str] = field(default_factory=deque)
    leases: dict[str, Lease] = field(default_factory=dict)
    """By worker."""
    idle: dict[str, None] = field(default_factory=dict)
    """Workers without a lease, in the order they became so."""
    attempts: dict[str, int] = field(default_factory=dict)
    """Leases granted so far for items not done yet."""
    unfinished: set[str] = field(default_factory=set)
    stillborn: int = 0
    """Workers lost before they were ready, since one was or an item was finished."""
    failed: Abort | None = None

    def add(self, items: Iterable[str]) -> None:
        """More items, in the order they shall be granted."""
        for item in items:
            self.waiting.append(item)
            self.unfinished.add(item)

    @property
    def finished(self) -> bool:
        return not self.unfinished

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """What follows from an event at ``now`` (seconds of any clock that does not go back)."""
        match event:
            case WorkerReady(worker):
                self.stillborn = 0
                if worker not in self.leases:
                    self.idle[worker] = None
                return self._grants(now)
            case WorkerLost(worker, reason):
                return [*self._lose(worker, reason, DIED), *self._grants(now)]
            case Progressed(worker):
                self._renew(worker, now)
                return []
            case ItemFinished(worker, item, attempt):
                return self._finish(worker, item, attempt, now)
            case ItemFailed():
                return self._fail(event, now)
            case Tick():
                return self._expire(now)

    def _grants(self, now: float) -> list[Instruction]:
        granted: list[Instruction] = []
        while self.waiting and self.idle and self.failed is None:
            item, worker = self.waiting.popleft(), next(iter(self.idle))
            del self.idle[worker]
            attempt = self.attempts[item] = self.attempts.get(item, 0) + 1
            self.leases[worker] = Lease(item, attempt, worker, now)
            granted.append(Grant(worker, item, attempt))
        return granted

    def _renew(self, worker: str, now: float) -> None:
        lease = self.leases.get(worker)
        if lease is not None:
            self.leases[worker] = Lease(lease.item, lease.attempt, worker, now)

    def _holds(self, worker: str, item: str, attempt: int) -> bool:
        lease = self.leases.get(worker)
        return lease is not None and (lease.item, lease.attempt) == (item, attempt)

    def _finish(self, worker: str, item: str, attempt: int, now: float) -> list[Instruction]:
        if not self._holds(worker, item, attempt):
            return []  # fenced: the lease has gone to another
        del self.leases[worker]
        self.idle[worker] = None
        self.stillborn = 0
        self.unfinished.discard(item)
        self.attempts.pop(item, None)
        return [Commit(item, attempt, worker), *self._grants(now)]

    def _fail(self, event: ItemFailed, now: float) -> list[Instruction]:
        if not self._holds(event.worker, event.item, event.attempt):
            return []
        del self.leases[event.worker]
        self.idle[event.worker] = None
        if event.final:
            return self._abort(event.item, event.reason)
        return [*self._again(event.item, event.reason), *self._grants(now)]

    def _lose(self, worker: str, reason: str, hint: str = "") -> list[Instruction]:
        if worker not in self.idle and worker not in self.leases:
            self.stillborn += 1
            if self.stillborn >= MAX_STILLBORN * min(self.workers, NODE_WORKERS):
                died = f"{self.stillborn} workers in a row died before they were ready"
                return self._abort(None, f"{died}; the last, {worker}: {reason}")
        self.idle.pop(worker, None)
        lease = self.leases.pop(worker, None)
        again = self._again(lease.item, f"worker {worker}: {reason}{hint}") if lease else []
        return [Replace(worker, reason), *again]

    def _again(self, item: str, reason: str) -> list[Instruction]:
        if self.attempts[item] >= MAX_ATTEMPTS:
            return self._abort(item, f"given up after {MAX_ATTEMPTS} attempts; the last: {reason}")
        self.waiting.appendleft(item)  # first again, so that shards fold in order
        return []

    def _abort(self, item: str | None, reason: str) -> list[Instruction]:
        if self.failed is not None:
            return []
        self.failed = Abort(item, reason)
        return [self.failed]

    def _expire(self, now: float) -> list[Instruction]:
        hung = [lease for lease in self.leases.values() if now - lease.renewed > self.patience]
        instructions: list[Instruction] = []
        for lease in hung:
            reason = f"no progress for {self.patience:.0f} s"
            instructions += self._lose(lease.worker, reason)
        return [*instructions, *(self._grants(now) if hung else [])]
