"""What a driver is told to do, and what it tells of itself."""

from dataclasses import dataclass
from typing import Any

from deconvoy.pace import Progress


@dataclass(frozen=True)
class Order:
    """What a driver is to do."""

    job: str
    url: str
    spec: dict[str, Any]
    """Of a job spec, as JSON."""
    roots: tuple[str, ...] | None = None
    """Below which alone files may be read; None: anywhere."""


@dataclass(frozen=True)
class DriverStatus:
    """How far it is."""

    state: str
    """``running``, ``done``, ``failed`` or ``stopped``."""
    progress: Progress | None = None
    error: str | None = None
