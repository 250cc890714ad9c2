"""The service as a whole: what it documents, what it counts and logs, and what it never loads."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from tests.serving import client_of, settings_of

ROOT = Path(__file__).resolve().parents[1]

EXAMPLES = 25
"""Requests an operation."""


@pytest.fixture(scope="module")
def settings(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_of(tmp_path_factory.mktemp("home"), runs=str(small_run.parent))


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[httpx.Client]:
    with client_of(settings) as client:
        yield client
