"""A stage of a job: the items that are left, what each is asked, and how it is committed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from workers.leases import Lease

Stage = Literal[
    "scan",
    "rescan",
    "projection",
    "occlusion",
    "unit-occlusion",
    "invariance",
    "correspondence",
    "probe-features",
    "probe",
    "probe-scratch",
    "evolution-scan",
    "evolution",
    "study",
]


@dataclass(frozen=True)
class Work:
    """What is to be done in a stage, and what is done already."""

    stage: Stage
    left: list[str]
    """Names of items."""
    lease_of: Callable[[str], Lease]
    commit: Callable[[str, Any], int]
    """Makes an item's result durable; returns how much it was."""
    done: int
    """In images, projections, positions of a square or moves."""
    total: int
