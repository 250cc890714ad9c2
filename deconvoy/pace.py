"""How fast a stage of a job goes, and how long it has yet to go."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    stage: str
    """``scan``, ``rescan``, ``projection``, ``occlusion``, ``unit-occlusion``,
    ``invariance``, ``correspondence``, ``probe-features``, ``probe``, ``probe-scratch``,
    ``evolution-scan``, ``evolution`` or ``study``."""
    done: int
    """Images, projections, or positions of a square."""
    total: int
    rate: float | None = None
    """Of these a second, of what was done since the stage began; None before anything was."""
    seconds_left: float | None = None
    """Of the stage at hand."""


class Pace:
    """Told of every advance; what was there when a stage began (a resumed job) is not its speed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage = ""
        self._began = 0.0
        self._began_with = 0

    def tell(self, stage: str, done: int, total: int) -> Progress:
        now = self._clock()
        if stage != self._stage:
            self._stage, self._began, self._began_with = stage, now, done
        new, seconds = done - self._began_with, now - self._began
        if new <= 0 or seconds <= 0:
            return Progress(stage, done, total)
        rate = new / seconds
        return Progress(stage, done, total, rate, (total - done) / rate)
