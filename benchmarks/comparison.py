"""A row of the table: two ways to the same numbers, which take turns in one process.

What is reported is the median of the turns' ratios: the other work of a machine slows both ways of
a turn about alike.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from deconvoy.spec import Transform
from workers.images import decode, normalise


@dataclass(frozen=True)
class Comparison:
    """Ours beside another way."""

    what: str
    model: str
    against: str
    per: str
    """What the times are of: an image, a hit, a position, a run."""
    ours: Sequence[float]
    """Seconds, turn by turn; or what ``measured`` says."""
    theirs: Sequence[float]
    at_least: float | None = None
    """The ratio to reach."""
    difference: float | None = None
    """Of the results: the largest, over the largest value."""
    work: float | None = None
    """Multiply-adds done over those of computing everything in full."""
    details: Mapping[str, Any] = field(default_factory=dict)
    measured: str = "seconds"

    @classmethod
    def with_limit(
        cls,
        what: str,
        model: str,
        per: str,
        values: Sequence[float],
        limit: float,
        measured: str = "seconds",
    ) -> "Comparison":
        """Ours beside what it may be at most."""
        theirs = [limit] * len(values)
        return cls(
            what, model, "what it may take", per, values, theirs, at_least=1.0, measured=measured
        )

    @property
    def ratio(self) -> float:
        """Above 1 ours is the faster."""
        return median(t / o for o, t in zip(self.ours, self.theirs, strict=True))

    def shown(self) -> dict[str, str]:
        """The row for people."""
        return {
            "what": self.what,
            "model": self.model,
            "against": self.against,
            "per": self.per,
            "ours": self._amount(self.ours),
            "theirs": self._amount(self.theirs),
            "ratio": f"{self.ratio:.2f}",
            "at least": "" if self.at_least is None else f"{self.at_least:.3g}",
            "difference": "" if self.difference is None else f"{self.difference:.1e}",
            "work": "" if self.work is None else f"{self.work:.4f}",
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "model": self.model,
            "against": self.against,
            "per": self.per,
            "ratio": self.ratio,
            "at_least": self.at_least,
            "difference": self.difference,
            "work": self.work,
            "measured": self.measured,
            "ours": list(self.ours),
            "theirs": list(self.theirs),
            **self.details,
        }

    def _amount(self, values: Sequence[float]) -> str:
        found = median(values)
        if self.measured != "seconds":
            return f"{found:,.0f} {self.measured}"
        return f"{found:.3g} s" if found >= 1 else f"{1e3 * found:.3g} ms"


def in_turns(ways: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Seconds of each way, turn by turn; a first turn warms up and is not counted."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(turns + 1):
        for way, compute in ways.items():
            taken = timed(compute)
            if turn:
                seconds[way].append(taken)
    return seconds


def timed(compute: Callable[[], object]) -> float:
    begin = time.perf_counter()
    compute()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def memory_mb(process: int, what: str = "VmRSS") -> float:
    """Of a process, as Linux counts it: ``VmRSS`` now, ``VmHWM`` at its peak."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = re.search(rf"{what}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def fastest(ways: Mapping[str, Sequence[float]]) -> str:
    """The way of the lowest median."""
    return min(ways, key=lambda way: median(ways[way]))


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Over the largest value of theirs."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.abs().max())


def photographs(
    folder: Path | None, count: int, transform: Transform
) -> Float[Tensor, "image channel row col"]:
    """Preprocessed ones, evenly from a folder; noise where there is no folder."""
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        side = transform.crop
        return torch.randn(count, transform.channels, side, side, generator=generator)
    places = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = places[:: max(1, len(places) // count)][:count]
    pixels = torch.stack([decode(place.read_bytes(), transform).pixels for place in chosen])
    return normalise(pixels, transform)
