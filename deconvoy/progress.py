"""Show how a job gets on: bars in a terminal, plain lines where there is none."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from deconvoy.pace import Pace
from deconvoy.pace import Progress as Reached

LINE_SECONDS = 10.0
"""Time between plain lines."""

WORDS = {
    "scan": "images scanned",
    "rescan": "candidates scanned",
    "projection": "projections done",
    "occlusion": "squares on images",
    "unit-occlusion": "squares on hits",
    "invariance": "moves of images",
    "correspondence": "images with a box covered",
    "probe-features": "images of the probe",
    "probe": "classifiers fitted",
    "probe-scratch": "images from scratch",
    "evolution-scan": "images by checkpoints",
    "evolution": "projections by checkpoints",
    "study": "images learned from and judged",
}


@runtime_checkable
class Advance(Protocol):
    """How far a stage is."""

    @property
    def stage(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...


@runtime_checkable
class Observer(Protocol):
    def __call__(self, advance: Advance, /) -> None: ...


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.1f}/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def shown() -> Iterator[Observer]:
    """What to tell of each advance; written to standard error."""
    console = Console(stderr=True, emoji=False)
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description:>17}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, speed_estimate_period=60) as progress:
        tasks: dict[str, TaskID] = {}

        def tell(advance: Advance) -> None:
            if advance.stage not in tasks:
                # what was there at the start (a resumed run) is not this run's speed
                tasks[advance.stage] = progress.add_task(
                    WORDS.get(advance.stage, advance.stage),
                    total=advance.total,
                    completed=advance.done,
                )
            progress.update(tasks[advance.stage], completed=advance.done)

        yield tell


class _Lines:
    """A line at the start and the end of each stage, and now and then between."""

    def __init__(self) -> None:
        self._pace, self._stage = Pace(), ""
        self._started = self._told = 0.0
        self._last = 0

    def __call__(self, advance: Advance) -> None:
        now = time.monotonic()
        pace = self._pace.tell(advance.stage, advance.done, advance.total)
        if advance.stage != self._stage:
            self._stage, self._started, self._last = advance.stage, now, -1
        due = now - self._told > LINE_SECONDS or advance.done == advance.total or self._last < 0
        if due and advance.done != self._last:
            self._told, self._last = now, advance.done
            with suppress(OSError):  # nobody reads it any more: no reason to stop the job
                sys.stderr.write(f"{self._line(pace, now - self._started)}\n")
                sys.stderr.flush()

    def _line(self, now: Reached, seconds: float) -> str:
        line = f"{WORDS.get(now.stage, now.stage)}: {now.done:,} of {now.total:,}"
        if now.rate is None or now.seconds_left is None:
            return line
        if now.done == now.total:
            return f"{line} in {seconds:.0f} s ({now.rate:,.1f}/s)"
        return f"{line}, {now.rate:,.1f}/s, about {span(now.seconds_left)} left"


def span(seconds: float | int) -> str:
    """Seconds, for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
