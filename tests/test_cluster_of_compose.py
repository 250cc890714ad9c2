"""Every command of `docker-compose.yml`, run: a head, a worker, the first token, the API, a job.

The store is moto, or SeaweedFS where its program is installed; the catalogue is PostgreSQL where
that is.  Without the loopback setting Ray listens on all interfaces, for as long as this takes and
behind its token: with that setting no worker can join.
"""

import secrets
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store

import deconvoy
from tests import postgres
from tests.compose import Here, example, free_port, read, wait_for
from tests.runs import run_inline, small_spec
from tests.s3 import s3_server

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BUCKET = "deconvoy"
NODES = """
import sys
from workers.executors import ray as cluster
cluster.connect(sys.argv[1], None)
for node in cluster._nodes():
    if node["Alive"]:
        print("node", node["Resources"].get("CPU", 0), node["Labels"].get("deconvoy", "worker"))
"""
PLACES = """
import sys, time
from deconvoy.errors import ClusterUnreachable
from workers.executors import ray as cluster
class Where:
    def label(self):
        import ray
        return ray.get_runtime_context().get_node_labels().get("deconvoy", "worker")
cluster.connect(sys.argv[1], None)
names = [f"where-{number}" for number in range(6)]
for name in names:
    cluster.start_named(Where, name)
for name in names:
    found = None
    while found is None:
        try:
            found = cluster.ask_named(name, "label")
        except ClusterUnreachable:
            time.sleep(0.2)  # it is still starting
    print("on", found)
    cluster.end_named(name)
"""


@dataclass(frozen=True)
class Cluster:
    """A head and a worker that are well, and a catalogue with its first token."""

    here: Here
    head: str
    address: str
    """Where the API will be."""
    token: str

    def nodes(self) -> list[str]:
        """One line each, asked of Ray."""
        return sorted(line for line in self.ask(NODES) if line.startswith("node "))

    def ask(self, code: str) -> list[str]:
        """What this prints, run on the head's machine."""
        asked = subprocess.run(
            [sys.executable, "-c", code, self.head],
            env={**self.here.environment("ray-head"), "RAY_ADDRESS": self.head},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert asked.returncode == 0, asked.stderr
        return asked.stdout.splitlines()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """The services, with a store and a catalogue that are there."""
    folder = tmp_path_factory.mktemp("compose")
    made = {name: secrets.token_hex(16) for name, value in example().items() if not value}
    variables = {**example(), **made, "RAY_OBJECT_STORE_BYTES": "100000000"}
    services = read(variables)["services"]
    gcs, head, api = free_port(), free_port(), free_port()
    replaced = {
        "ray-head:6379": f"127.0.0.1:{gcs}",
        "--port=6379": f"--port={gcs}",
        "6380": str(head),
        "0.0.0.0": "127.0.0.2",  # beyond the loopback names, and yet of this machine alone
        "http://127.0.0.1:8000": f"http://127.0.0.2:{api}",
        "--port 8000": f"--port {api}",
        '"/data"': f'"{folder}"',
        "/data/torch": str(folder / "torch"),
    }
    with _store(folder, services["s3"]) as store, _catalogue(folder) as catalogue:
        password = variables["POSTGRES_PASSWORD"]
        url = f"postgresql+psycopg://deconvoy:{password}@postgres/deconvoy"
        found = Here(services, {"http://s3:8333": store, url: catalogue, **replaced}, folder)
        found.temporary.mkdir()
        yield found
        shutil.rmtree(found.temporary, ignore_errors=True)


@contextmanager
def _store(folder: Path, service: dict[str, Any]) -> Iterator[str]:
    """The address of one with an empty bucket, which takes any key: SeaweedFS, by the command that
    the file has for it, where its program is installed; else moto."""
    program = shutil.which("weed")
    if program is None:
        with s3_server(folder / "moto.log") as variables:
            address = variables["AWS_ENDPOINT_URL"]
            made = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")
            urllib.request.urlopen(made, timeout=10).close()
            yield address
        return
    port = free_port()
    replaced = {"/data": str(folder / "seaweedfs"), "8333": str(port), "mini": f"{program} mini"}
    # Its other parts take ports of their own, and nobody but this machine may come in.
    private = [f"-{part}.port={free_port()}" for part in ("master", "filer", "volume")]
    command = " ".join([service["command"], "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *private])
    service = {**service, "command": command}
    (folder / "seaweedfs").mkdir()
    here = Here({"s3": service}, replaced, folder)
    with here.started("s3") as process:
        here.until_healthy("s3", process)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _catalogue(folder: Path) -> Iterator[str]:
    """The URL of an empty one: on PostgreSQL, where it can be started here, else on SQLite."""
    if postgres.missing() is not None:
        yield f"sqlite:///{folder / 'catalogue.db'}"
        return
    with postgres.postgresql_server() as url:
        yield url


@pytest.fixture(scope="module")
def cluster(here: Here) -> Iterator[Cluster]:
    head = here.replaced["ray-head:6379"]
    address = here.replaced["http://127.0.0.1:8000"]
    with here.started("ray-head") as process:
        here.until_healthy("ray-head", process)
        here.replaced["6380"] = str(free_port())  # a container's own, here one of many
        with here.started("ray-worker") as worker:
            here.until_healthy("ray-worker", worker)
            token = here.run("setup").stdout.strip()
            yield Cluster(here, head, address, token)


def test_the_api_refuses_to_start_before_there_is_a_token(here: Here) -> None:
    ended = here.run("api")
    assert ended.returncode != 0
    assert "there is no token to come in with" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_first_token_is_made_once(cluster: Cluster) -> None:
    assert cluster.token.startswith("dv_")
    again = cluster.here.run("setup")
    assert again.returncode == 0 and again.stdout == ""
    assert "valid tokens already" in again.stderr


def test_one_of_many_makes_an_object(here: Here) -> None:
    """What the lock of a run in a bucket stands on."""
    given = here.environment("ray-worker")
    client = S3Store(
        BUCKET,
        endpoint=given["AWS_ENDPOINT_URL"],
        access_key_id=given["AWS_ACCESS_KEY_ID"],
        secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
        region=given["AWS_REGION"],
        client_options={"allow_http": True},
    )
    for number in range(10):
        made: list[int] = []
        begin = threading.Barrier(6)

        def make(one: int, path: str = f"held/{number}", made: list[int] = made) -> None:
            begin.wait()  # noqa: B023
            try:
                obstore.put(client, path, b"", mode="create")
                made.append(one)
            except AlreadyExistsError:
                pass

        threads = [threading.Thread(target=make, args=(one,)) for one in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 1, number


def test_a_worker_without_the_token_does_not_join(cluster: Cluster) -> None:
    here, own = cluster.here, cluster.here.replaced["6380"]
    with ExitStack() as strangers:
        started = []
        for mode, token in ((None, None), ("token", "wrong" * 8)):
            here.replaced["6380"] = str(free_port())
            stranger = here.started("ray-worker", RAY_AUTH_MODE=mode, RAY_AUTH_TOKEN=token)
            started.append(strangers.enter_context(stranger))
        here.replaced["6380"] = own
        time.sleep(15)  # one that may joins in five
        assert [node.split()[2] for node in cluster.nodes()] == ["worker", "worker"]
        assert [stranger.poll() for stranger in started] != [0, 0]


def test_a_job_from_the_api_to_the_worker_and_back(cluster: Cluster, tmp_path: Path) -> None:
    """The API is no node of Ray's until it joins as one; where it joins, no job runs."""
    here = cluster.here
    spec = small_spec(compute={"workers": 1, "shard_size": 8, "batch_size": 4})
    with here.started("api", apart=True) as api:
        here.until_healthy("api", api)
        with deconvoy.Client(cluster.address, token=cluster.token) as client:
            job = client.submit(spec)
            job.wait(timeout=240.0)
            assert any("images: 40" in line for line in job.logs())
            served = job.run().table("logits")
        nodes = cluster.nodes()
        assert sorted(node.split()[2] for node in nodes) == ["front", "worker", "worker"]
        assert [node.split()[1] for node in nodes if node.endswith("front")] == ["0"]
        assert [line for line in cluster.ask(PLACES) if line.startswith("on ")] == ["on worker"] * 6
    run_inline(spec, tmp_path / "inline")
    assert served.equals(deconvoy.open(tmp_path / "inline").table("logits"))
    log = here.log("api")
    assert '"caller": "operator"' in log
    assert cluster.token not in log and here.environment("api")["RAY_AUTH_TOKEN"] not in log
    wait_for(lambda: len(cluster.nodes()) == 2, 60.0, lambda: "the node of the API stayed")
