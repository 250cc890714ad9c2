"""Nodes that are killed, cut off, frozen and added while a job runs over them, results on S3.

Every job must end with the bits of an undisturbed one on the inline executor.  What is struck holds
a lease at that moment, by the log of the driver.  In full every misfortune has a job of its own, on
photographs as well; the short way strikes one job with all but the cable.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deconvoy.spec import JobSpec
from tests.fire.cluster import Cluster, Host, Node, Nodes, cluster_of, missing
from tests.fire.conftest import Fire, Tell
from tests.runs import assert_same_results, log_of, run_inline, small_spec
from tests.s3 import BUCKET, s3_server
from tests.shared_data import DATA
from tests.upped import eventually

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

NETWORKS = missing()

DRIVER = """
import json, sys
from deconvoy.spec import JobSpec
from workers import pipeline
from workers.executors.ray import RayExecutor
from workers.leasing import Leasing

whole = Leasing.log

def log(self, **fields):  # at once: the log in a bucket lags behind
    print(json.dumps(fields), flush=True)
    whole(self, **fields)

Leasing.log = log
url, address, spec = sys.argv[1:]
job, run = pipeline.create(JobSpec.parse(json.loads(spec)), url)
pipeline.execute(job, run, RayExecutor(job.spec.compute, address), lambda advance: None)
"""


def shapes_spec(images: int, workers: int = 3) -> JobSpec:
    return small_spec(
        data={"uri": f"shapes?size={images}&seed=2"},
        layers=["relu3", "relu4"],
        analyses=[{"kind": "top"}, {"kind": "projection", "units": {"sample": 0.25}}],
        compute={
            "workers": workers, "threads": 1, "gpus_per_worker": 0.0,
            "shard_size": 300, "batch_size": 16,
        },
    )  # fmt: skip


def photographs_spec() -> JobSpec:
    """The SqueezeNet job: half a minute of a core for each of its stages, or more."""
    return JobSpec.parse(
        {
            "model": {
                "name": "torchvision/squeezenet1_1",
                "weights": str(DATA / "weights/squeezenet1_1.safetensors"),
            },
            "data": {"uri": str(DATA / "imagenet1k-sample")},
            "layers": "all",
            "analyses": [{"kind": "top"}, {"kind": "projection", "units": {"sample": 0.02}}],
            "compute": {
                "workers": 3, "threads": 1, "gpus_per_worker": 0.0,
                "shard_size": 20, "batch_size": 10,
            },
        }
    )  # fmt: skip


class Driven:
    """A job whose driver runs on the head; what its ledger logs is known here at once."""

    def __init__(self, cluster: Nodes, spec: JobSpec, url: str) -> None:
        self.url, self.log = url, list[dict[str, Any]]()
        command = [sys.executable, "-c", DRIVER, url, cluster.address, spec.model_dump_json()]
        self._said = (cluster.folder / f"driver-{time.monotonic_ns()}").open("w+")
        self.began = time.monotonic()
        self._process = cluster.head.popen(
            command, stdout=subprocess.PIPE, stderr=self._said, text=True
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self.log.append({"at": time.monotonic(), **json.loads(line)})

    def workers_of(self, host: Node) -> list[str]:
        """Those that have become ready there."""
        pids = host.processes()
        ready = [event for event in list(self.log) if event["event"] == "ready"]
        return [event["worker"] for event in ready if event["pid"] in pids]

    def lease_on(self, host: Node) -> dict[str, Any]:
        """A lease held now by a worker there, the newest; waits for one."""

        def look() -> dict[str, Any] | None:
            assert self._process.poll() is None, f"it ended too soon: {self.told()}"
            held: dict[str, dict[str, Any]] = {}
            for event in list(self.log):
                if event["event"] == "granted":
                    held[event["worker"]] = event
                elif event["event"] in ("committed", "lost", "replaced"):
                    held.pop(event["worker"], None)
            # A fresh one, which does not end between this look and the strike.
            fresh = [lease for lease in held.values() if time.monotonic() - lease["at"] < 0.2]
            pids = host.processes() if fresh else set()
            ours = [lease for lease in fresh if lease["pid"] in pids]
            return ours[-1] if ours else None

        return eventually(look, 300.0)

    def seconds_until(self, *events: str, since: float, **fields: Any) -> float:
        """From then until one of these is logged."""

        def look() -> float | None:
            for event in list(self.log):
                same = all(event.get(name) == value for name, value in fields.items())
                if event["at"] > since and event["event"] in events and same:
                    return float(event["at"] - since)
            assert self._process.poll() is None, f"it ended too soon: {self.told()}"
            return None

        return eventually(look, 300.0)

    def finish(self) -> float:
        """Wait for its end; how long it took in all."""
        self._process.wait(600)
        self._listener.join(10)
        assert self._process.returncode == 0, self.told()
        return time.monotonic() - self.began

    def told(self) -> str:
        self._said.seek(0)
        return self._said.read()[-3000:]

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._listener.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._said.close()


def assert_done_once(driven: Driven, calm: Path) -> None:
    """The bits are those of the calm run, every item was committed once, and what was computed
    again was of a worker that was lost with it."""
    assert_same_results(calm, driven.url)
    committed = [event["item"] for event in driven.log if event["event"] == "committed"]
    assert len(committed) == len(set(committed))
    lost = {event["worker"] for event in driven.log if event["event"] == "replaced"}
    granted: dict[str, list[str]] = {}
    for event in driven.log:
        if event["event"] == "granted":
            granted.setdefault(event["item"], []).append(event["worker"])
    assert set(granted) == set(committed)
    assert all(set(workers[:-1]) <= lost for workers in granted.values())
    assert [e["item"] for e in log_of(driven.url) if e["event"] == "committed"] == committed


@pytest.fixture(scope="module", params=["hosts", "one machine"])
def cluster(
    request: pytest.FixtureRequest, fire: Fire, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Nodes]:
    """Of hosts where they can be made; the short way has one of the two."""
    hosts = request.param == "hosts"
    if hosts and NETWORKS is not None:
        pytest.skip(NETWORKS)
    if not hosts and NETWORKS is None:
        fire.skip_short()
    with cluster_of(Cluster if hosts else Nodes) as made:
        log = tmp_path_factory.mktemp("s3") / "log"
        with s3_server(log, made.servers_address) as variables, pytest.MonkeyPatch.context() as at:
            for name, value in variables.items():
                at.setenv(name, value)
            made.set_up(variables)
            yield made


@pytest.fixture
def at_length(fire: Fire, cluster: Nodes, kind: str, misfortune: str) -> None:
    """Before any node is made."""
    fire.skip_short()
    if not cluster.has_cables and (kind, misfortune) != ("shapes", "killed"):
        pytest.skip("of hosts alone")


@pytest.fixture
def two(cluster: Nodes) -> Iterator[list[Node]]:
    """Two nodes that are whole, of one core each."""
    for host in [host for host in cluster.hosts.values() if host is not cluster.head]:
        cluster.drop(host)
    hosts = [cluster.add_host(), cluster.add_host()]
    cluster.wait_for_nodes()
    yield hosts


@pytest.fixture
def drive(cluster: Nodes) -> Iterator[Callable[[JobSpec], Driven]]:
    driven: list[Driven] = []

    def start(spec: JobSpec) -> Driven:
        url = f"s3://{BUCKET}/runs/{time.monotonic_ns()}"
        driven.append(Driven(cluster, spec, url))
        return driven[-1]

    yield start
    for one in driven:
        one.end()


@pytest.fixture(scope="module")
def calm_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[JobSpec], Path]:
    """The same job undisturbed, on the inline executor and a disk."""
    made: dict[str, Path] = {}

    def calm(spec: JobSpec) -> Path:
        key = spec.model_dump_json()
        if key not in made:
            made[key] = tmp_path_factory.mktemp("calm") / "run"
            run_inline(spec, made[key])
        return made[key]

    return calm


def specs(fire: Fire, kind: str) -> JobSpec:
    if kind == "photographs":
        if not DATA.is_dir():
            pytest.skip("photographs and weights: no ../shared/data beside this checkout")
        return photographs_spec()
    return shapes_spec(fire.of(4800, 36_000))


def give_up_of(driven: Driven, lease: dict[str, Any], since: float) -> float:
    """Seconds until the item of a lease that was struck is another's."""
    return driven.seconds_until("granted", since=since, item=lease["item"])


def kill(driven: Driven, victim: Node) -> dict[str, float]:
    """SIGKILL all of a node: Ray's and the workers."""
    lease = driven.lease_on(victim)
    since = time.monotonic()
    assert lease["pid"] in victim.processes()
    victim.kill_node()
    return {"killed_seconds_lost": give_up_of(driven, lease, since)}


def cut_off(driven: Driven, victim: Node) -> dict[str, float]:
    """Pull the cable until the node is given up, and let it return."""
    assert isinstance(victim, Host)
    lease = driven.lease_on(victim)
    since = time.monotonic()
    victim.cut()
    lost = give_up_of(driven, lease, since)
    assert lease["pid"] in victim.processes(), "it lives, and does not know"
    victim.plug_in()
    plugged = time.monotonic()
    eventually(lambda: not victim.runs_node(), 60.0)  # told that it is dead, it ends
    eventually(lambda: lease["pid"] not in victim.processes(), 30.0)
    victim.start()  # as `restart: unless-stopped` does
    eventually(lambda: driven.workers_of(victim), 300.0)
    back = time.monotonic() - plugged
    return {"cut_off_seconds_lost": lost, "cut_off_seconds_until_it_works_again": back}


def freeze(seconds: float) -> Callable[[Driven, Node], dict[str, float]]:
    def struck_by(driven: Driven, victim: Node) -> dict[str, float]:
        """SIGSTOP all of a node, for so long."""
        lease = driven.lease_on(victim)
        since = time.monotonic()
        victim.freeze()
        time.sleep(seconds)
        victim.thaw()
        # Either it was given up meanwhile, and another has the item; or it is committed by itself.
        ended = driven.seconds_until("granted", "committed", since=since, item=lease["item"])
        return {"frozen_seconds": seconds, "frozen_seconds_lost": ended}

    return struck_by


class Added:
    """A further node: a worker that found no room until now is ready there, and gets leases."""

    def __init__(self, cluster: Nodes) -> None:
        self.since, self.host = time.monotonic(), cluster.add_host()

    def used_by(self, driven: Driven) -> dict[str, float]:
        worker = eventually(lambda: driven.workers_of(self.host), 300.0)[0]
        seconds = driven.seconds_until("granted", since=self.since, worker=worker)
        return {"added_seconds_until_used": seconds}


def test_a_job_over_nodes_that_die_and_come_ends_with_the_bits_of_a_calm_one(
    fire: Fire,
    tell: Tell,
    cluster: Nodes,
    two: list[Node],
    drive: Callable[[JobSpec], Driven],
    calm_of: Callable[[JobSpec], Path],
) -> None:
    """All misfortunes in one job."""
    spec = specs(fire, "shapes")
    driven = drive(spec)
    one, other = two
    figures = kill(driven, one)
    added = Added(cluster)
    # (A silent node is given up after a minute: that is for the full length.)
    misfortunes = [cut_off] if fire.full and cluster.has_cables else []
    for misfortune in (*misfortunes, freeze(fire.of(2, 60))):
        figures |= misfortune(driven, other)
    figures |= added.used_by(driven)
    figures["job_seconds"] = driven.finish()
    assert_done_once(driven, calm_of(spec))
    committed = [event for event in driven.log if event["event"] == "committed"]
    where = "nodes" if cluster.has_cables else "nodes of one machine"
    tell(where, **figures, items_lost=0, items=len(committed))


@pytest.mark.usefixtures("at_length")
@pytest.mark.parametrize("kind", ["shapes", "photographs"])
@pytest.mark.parametrize("misfortune", ["nothing", "killed", "cut off", "frozen", "added"])
def test_each_misfortune_alone_leaves_no_trace_in_the_bits(
    fire: Fire,
    tell: Tell,
    cluster: Nodes,
    two: list[Node],
    drive: Callable[[JobSpec], Driven],
    calm_of: Callable[[JobSpec], Path],
    kind: str,
    misfortune: str,
) -> None:
    spec = specs(fire, kind)
    calm = calm_of(spec)
    as_many = spec.compute.model_copy(update={"workers": "auto"})  # as there is room for
    driven = drive(spec.model_copy(update={"compute": as_many}))
    figures = dict[str, float]()
    if misfortune == "added":
        figures = Added(cluster).used_by(driven)
    elif misfortune != "nothing":
        strike = {"killed": kill, "cut off": cut_off, "frozen": freeze(60)}[misfortune]
        figures = strike(driven, two[1])
    figures["job_seconds"] = driven.finish()
    assert_done_once(driven, calm)
    tell(f"nodes: {kind}, {misfortune}", **figures)
