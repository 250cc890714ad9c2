"""What every test stands on: the versions in the header, seeds, and marks that skip by capability.

The annotated array shapes of our packages are checked in every call (`--jaxtyping-packages` in
pyproject.toml), so nothing here may import them before pytest has installed that check.
"""

import random
import sys
import uuid
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests import postgres

if TYPE_CHECKING:
    from service.catalogue import Catalogue

REPORTED = ("torch", "torchvision", "ray", "zarr", "numpy", "pyarrow", "pydantic", "jaxtyping")


FIRE = Path(__file__).parent / "fire"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fire", choices=("short", "full"), help="run the tests below tests/fire, this long"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Tests under fire are run where they are asked for."""
    return True if collection_path == FIRE and config.getoption("--fire") is None else None


def pytest_report_header() -> str:
    return "versions: " + ", ".join(f"{name} {_installed(name)}" for name in REPORTED)


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run; torch is loaded only when a test asks for a GPU."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting and not _has_gpu():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
    if find_spec("ray") is None:
        for item in items:
            if item.get_closest_marker("ray"):
                item.add_marker(pytest.mark.skip(reason="Ray is not installed"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A local Ray cluster with two fake GPUs, for all tests of a session; yields its address.

    Starting one takes ten seconds.  Jobs on the CPU ask for ``gpus_per_worker: 0`` there.
    """
    from workers.executors.ray import connect, disconnect

    folder = connect(None, num_gpus=2)
    import ray

    yield ray.get_runtime_context().gcs_address
    disconnect(folder)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A PostgreSQL server for all tests of a session; yields the URL of its first database."""
    reason = postgres.missing()
    if reason is not None:
        pytest.skip(reason)
    with postgres.postgresql_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def catalogue_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that is empty, once of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'home' / 'catalogue.db'}"
    import psycopg

    server: str = request.getfixturevalue("postgresql")
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server.rpartition('/')[0]}/{name}"


@pytest.fixture
def catalogue(catalogue_url: str) -> Iterator["Catalogue"]:
    """An empty catalogue, once on SQLite and once on PostgreSQL."""
    from service.catalogue import Catalogue

    made = Catalogue(catalogue_url)
    made.upgrade()
    yield made
    made.close()


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of every kind of analysis that is read over HTTP; tests that change one copy
    it."""
    from tests.runs import run_inline, small_spec

    square = {"kind": "occlusion", "images": {"sample": 2}, "patch": 16, "stride": 16}
    shown = {"kind": "projection", "units": {"ids": [0, 1, 40]}}
    few = {"translation": [-4, 0, 4], "scale": [1, 1.5], "rotation": None}
    moved = {"kind": "invariance", "images": {"sample": 2}, **few}
    place = tmp_path_factory.mktemp("runs") / "small"
    analyses = [{"kind": "top"}, shown, square, moved]
    run_inline(small_spec(name="a small one", analyses=analyses), place)
    return place


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """The global generators start alike in every test, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:  # loading it here would cost tests without tensors seconds
        sys.modules["torch"].manual_seed(0)
