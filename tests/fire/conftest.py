"""What every test under fire gets: how much of it there is to be, and a place for its figures."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Tell = Callable[..., None]


class Fire:
    """How much: `short` for every change, `full` for a release."""

    def __init__(self, length: str) -> None:
        self.full = length == "full"

    def of(self, short: int, full: int) -> int:
        return full if self.full else short

    def skip_short(self) -> None:
        """Skip the test at hand where few minutes are wanted."""
        if not self.full:
            pytest.skip("in the full length")


@pytest.fixture(scope="session")
def fire(request: pytest.FixtureRequest) -> Fire:
    return Fire(request.config.getoption("--fire"))


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    """Figures for the end: ``tell("nodes", killed=1, seconds_lost=12.3)``; numbers or short
    texts."""

    def told(section: str, **figures: Any) -> None:
        request.node.user_properties.append((section, figures))

    return told


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """All figures, a section each; with FIRE_FIGURES also as JSON in that file."""
    sections: dict[str, dict[str, Any]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for section, figures in report.user_properties:
                    sections.setdefault(section, {}).update(figures)
    for section, figures in sections.items():
        terminalreporter.section(section)
        for name, value in figures.items():
            shown = f"{value:,.2f}" if isinstance(value, float) else str(value)
            terminalreporter.line(f"{name.replace('_', ' '):60}{shown}")
    place = os.environ.get("FIRE_FIGURES")
    if place and sections:
        Path(place).write_text(json.dumps(sections, indent=1) + "\n")
