"""Test what a job does when the storage under it fails: it finishes to the same bits, or stops in
a sentence and goes on to the same bits.  Nothing that was committed is lost, and none of it is
computed again.

Disks are file systems of their own, of a few megabytes and in memory, mounted where the tests run
as root; S3 is a real server with a proxy before it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import S3Store

import deconvoy
from deconvoy import bucket, files
from deconvoy.errors import DeconvoyError
from deconvoy.spec import JobSpec
from deconvoy.store import RunStore
from tests.fire.conftest import Fire, Tell
from tests.fire.proxy import Proxy, Weather, proxy_before
from tests.runs import (
    assert_same_results,
    committed_in,
    grants_of,
    resume_inline,
    run_inline,
    small_spec,
    write_photographs,
)
from tests.s3 import BUCKET, s3_server
from tests.upped import eventually
from workers import pipeline
from workers.executors.inline import InlineExecutor
from workers.verify import verify

ROOT = Path(__file__).resolve().parents[2]

CLASSES = ("a", "b", *(f"class {i}" for i in range(8)))


def spec_of(uri: str) -> JobSpec:
    """Eleven items; the images are files, of which none may be left out."""
    return small_spec(
        model={"name": "deconvoy/zfnet_small", "classes": list(CLASSES)},
        data={"uri": uri, "max_bad": 0.0},
        layers=["relu2", "relu5", "logits"],
        compute={"shard_size": 6, "batch_size": 4, "gpus_per_worker": 0.0},
    )


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, 36)
    return folder


@pytest.fixture(scope="module")
def calm(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bits that every other run must have."""
    url = tmp_path_factory.mktemp("calm") / "run"
    run_inline(spec_of(str(photographs)), url)
    return url


class Tally:
    """Items that were committed when a job stopped, and how often each had been granted."""

    def __init__(self, url: Path | str) -> None:
        self.url = url
        self.committed, self.grants = committed_in(url), grants_of(url)

    def assert_kept(self) -> None:
        """Nothing committed is gone, and nothing of it was computed again."""
        assert self.committed <= committed_in(self.url)
        now = grants_of(self.url)
        again = [item for item in self.committed if now[item] > max(1, self.grants[item])]
        assert not again, f"finished items were computed again: {again}"


# --- disks ---------------------------------------------------------------------------------------


@contextmanager
def disk(megabytes: float) -> Iterator[Path]:
    """A file system of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    place = Path(tempfile.mkdtemp(prefix="deconvoy-disk-"))
    size = f"size={int(megabytes * 2**20)}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        place.rmdir()
        pytest.skip(f"this system mounts no tmpfs: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        while place.is_mount():  # twice, where a test failed while the disk was closed
            subprocess.run(["umount", "-l", str(place)], check=True)
        place.rmdir()


def resize(place: Path, bytes_: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={bytes_}", str(place)], check=True)


def close(place: Path) -> None:
    """Make a disk read-only for all who open files from now on: what is open for writing, as the
    driver's lock is, keeps a file system itself from becoming so."""
    subprocess.run(["mount", "--bind", str(place), str(place)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)


def reopen(place: Path) -> None:
    """Undo ``close``."""
    subprocess.run(["umount", "-l", str(place)], check=True)


def stopped_by(job: Any, run: RunStore, fault: Callable[[], None], after: int) -> str:
    """The sentence a job ends with when a fault comes once so many items are committed.  After that
    the store is not asked: it may be away."""
    struck = False

    def observe(_: pipeline.Advance) -> None:
        nonlocal struck
        if not struck and len(committed_in(run.url)) >= after:
            struck = True
            fault()

    with pytest.raises(DeconvoyError) as caught:
        pipeline.execute(job, run, InlineExecutor(), observe)
    assert struck
    return str(caught.value)


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_takes_nothing_more_stops_the_job_and_nothing_is_lost(
    fire: Fire, tell: Tell, photographs: Path, calm: Path, fault: str
) -> None:
    """At several moments, from the first marker to the last picture."""
    moments = (4,) if not fire.full else (0, 1, 3, 6, 7, 8)
    for after in moments:
        with disk(64) as place:
            url = place / "run"
            job, run = pipeline.create(spec_of(str(photographs)), str(url))

            def strike(place: Path = place) -> None:
                if fault == "read-only":
                    close(place)
                    return
                with suppress(OSError), (place / "ballast").open("wb") as ballast:
                    while True:
                        ballast.write(b"x" * 4096)
                        ballast.flush()

            told = stopped_by(job, run, strike, after)
            tally = Tally(url)
            says = "No space left" if fault == "full" else "Read-only file system"
            assert re.search(rf"{says}.*Everything committed is intact.*deconvoy resume", told), (
                told
            )
            # What is there can be read as it is, also now.
            assert deconvoy.open(url).status in ("running", "failed", "interrupted")
            if fault == "read-only":
                with pytest.raises(DeconvoyError, match="Read-only file system.*resume"):
                    resume_inline(url)
                reopen(place)
            else:
                (place / "ballast").unlink()
            assert verify(str(url), 0).faults == []
            resume_inline(url)
            tally.assert_kept()
            assert_same_results(calm, url)
            assert verify(str(url), 0).faults == []
    name = fault.replace("-", "_")
    tell(
        "storage faults",
        **{f"disk_{name}_stopped_and_resumed": len(moments), f"disk_{name}_items_lost": 0},
    )


def test_a_disk_that_is_too_small_from_the_start_ends_in_a_sentence_with_every_size(
    fire: Fire, tell: Tell, photographs: Path, calm: Path
) -> None:
    """A disk of ever more room: the job stops wherever it happens to, and ends once it has room."""
    stops = Counter[int]()
    with disk(0.02) as place:
        url = place / "run"
        resize(place, 64 * 2**20)
        job, run = pipeline.create(spec_of(str(photographs)), str(url))
        used = sum(file.stat().st_size for file in calm.rglob("*") if file.is_file())
        tally = Tally(url)
        for step in range(1, 1000):
            blocks = step * fire.of(48, 8)
            resize(place, max(blocks * 4096, _used(place)))
            try:
                resume_inline(url)
                break
            except (DeconvoyError, OSError) as error:
                assert "No space left" in str(error), error
                assert "deconvoy resume" in str(error), error
                stops[len(committed_in(url))] += 1
            tally.assert_kept()
            tally = Tally(url)
        assert used < 64 * 2**20
        tally.assert_kept()
        assert_same_results(calm, url)
        assert verify(str(url), 0).faults == []
    tell(
        "storage faults",
        too_small_disks_stopped_and_resumed=stops.total(),
        at_different_moments=len(stops),
    )


def _used(place: Path) -> int:
    status = os.statvfs(place)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


JOB = """
import sys
from workers.executors.inline import InlineExecutor
from workers import pipeline

job, run = pipeline.reopen(sys.argv[1])
pipeline.execute(job, run, InlineExecutor(), lambda advance: None)
"""


@contextmanager
def without_privileges(url: Path) -> Iterator["subprocess.Popen[str]"]:
    """Work on a run as one whom permissions bind: root itself, without what lets root pass."""
    bound = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all"]
    command = [*bound, sys.executable, "-c", JOB, str(url)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_job_that_may_not_write_any_more_stops_in_a_sentence_and_goes_on_when_it_may(
    fire: Fire, tell: Tell, photographs: Path, calm: Path, tmp_path: Path
) -> None:
    """The right is lost while it works."""
    fire.skip_short()
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("taking a privilege from a job takes root, and setpriv")
    url = tmp_path / "run"
    pipeline.create(spec_of(str(photographs)), str(url))
    with without_privileges(url) as process:
        eventually(lambda: len(committed_in(url)) >= 3, 240.0)
        locked = [folder for folder in [url, *url.rglob("*")] if folder.is_dir()]
        for folder in locked:
            folder.chmod(0o555)
        _, said = process.communicate(timeout=240)
    assert process.returncode == 1, said
    told = said.strip().splitlines()[-1]
    assert re.search("Permission denied.*Everything committed is intact.*resume", told), told
    tally = Tally(url)
    for folder in locked:
        folder.chmod(0o755)
    with without_privileges(url) as process:
        _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    tally.assert_kept()
    assert_same_results(calm, url)
    tell("storage faults", permission_lost_stopped_and_resumed=1)


# --- S3 ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Iterator[Proxy]:
    """Everything that goes to S3 goes through the proxy; images lie there, too."""
    log = tmp_path_factory.mktemp("s3") / "log"
    with s3_server(log) as variables, proxy_before(variables["AWS_ENDPOINT_URL"]) as proxy:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            patch.setenv("AWS_ENDPOINT_URL", proxy.address)
            files._store.cache_clear()
            store = S3Store(BUCKET, prefix="photographs", client_options={"allow_http": True})
            for file in photographs.rglob("*.png"):
                obstore.put(store, file.relative_to(photographs).as_posix(), file.read_bytes())
            yield proxy
            files._store.cache_clear()


IMAGES = f"s3://{BUCKET}/photographs"


def test_a_job_finishes_through_spells_of_every_fault(
    fire: Fire, tell: Tell, proxied: Proxy, calm: Path
) -> None:
    """One request in ten is answered by 500, 503, slowly, in half, or not at all."""
    injected: Counter[str] = Counter()
    reasons: list[str] = []
    requests = survived = stopped = 0
    for seed in range(fire.of(1, 8)):
        url = f"s3://{BUCKET}/runs/spells-{seed}"
        proxied.weather = weather = Weather(seed, every=fire.of(14, 9), spell=2)
        with calm_after(proxied):
            try:
                job, run = pipeline.create(spec_of(IMAGES), url)
                pipeline.execute(job, run, InlineExecutor(), lambda _: None)
                survived += 1
            except DeconvoyError as error:
                reasons.append(str(error))
                stopped += 1
        injected += weather.injected
        requests += weather.requests
        if deconvoy.open(url).status != "done":
            resume_inline(url)
        assert_same_results(calm, url)
        assert {row["skipped"] for row in deconvoy.open(url).images().to_pylist()} == {None}
        assert verify(url, 0).faults == []
    assert all("deconvoy resume" in reason for reason in reasons), reasons
    assert set(injected) >= {"500", "503", "slow", "partial", "cut", "lost"}
    tell(
        "storage faults",
        s3_requests=requests,
        s3_faults_injected=injected.total(),
        s3_faults_by_kind=", ".join(f"{n} {kind}" for kind, n in sorted(injected.items())),
        s3_jobs_that_finished_through_them=survived,
        s3_jobs_stopped_and_resumed=stopped,
    )


@contextmanager
def calm_after(proxy: Proxy) -> Iterator[None]:
    try:
        yield
    finally:
        proxy.weather = Weather()


@pytest.mark.parametrize("fault", ["503", "partial", "cut", "403", "key"])
def test_a_store_that_is_away_for_long_stops_the_job_and_it_goes_on(
    fire: Fire, tell: Tell, proxied: Proxy, calm: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Longer than anybody's patience, which is shortened here; of images, of results, of both."""
    if fault != "503":
        fire.skip_short()
    monkeypatch.setattr(bucket, "PATIENCE_SECONDS", 1)
    monkeypatch.setattr(bucket, "SHORT_PATIENCE_SECONDS", 1)
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 1)
    files._store.cache_clear()
    cases = [("", 3)] if not fire.full else [("", 0), ("", 3), ("", 7), ("photographs/", 1),
                                             ("/ledger/", 4), ("/layers/", 5)]  # fmt: skip
    if fault == "403":  # a picture that may not be read is one picture's matter
        cases = [case for case in cases if case[0] in ("/ledger/", "/layers/")]
    for number, (only, after) in enumerate(cases):
        url = f"s3://{BUCKET}/runs/away-{fault}-{number}"
        job, run = pipeline.create(spec_of(IMAGES), url)
        weather = Weather(only=only)

        def strike(weather: Weather = weather, fault: str = fault) -> None:
            weather.storm = fault
            proxied.weather = weather

        with calm_after(proxied):
            told = stopped_by(job, run, strike, after)
        tally = Tally(url)
        assert re.search("deconvoy resume|lost", told), told
        assert weather.injected
        resume_inline(url)
        tally.assert_kept()
        assert_same_results(calm, url)
        assert {row["skipped"] for row in deconvoy.open(url).images().to_pylist()} == {None}
        assert verify(url, 0).faults == []
    files._store.cache_clear()
    tell("storage faults", **{f"s3_away_by_{fault}_stopped_and_resumed": len(cases)})


@pytest.mark.ray
def test_a_job_on_ray_finishes_through_spells_of_every_fault(
    fire: Fire, tell: Tell, proxied: Proxy, calm: Path, tmp_path: Path
) -> None:
    """By the command, whose Ray starts with the variables that a user has set."""
    fire.skip_short()
    spec, url = tmp_path / "job.json", f"s3://{BUCKET}/runs/ray"
    spec.write_text(json.dumps(spec_of(IMAGES).to_json()))
    proxied.weather = weather = Weather(5, every=9, spell=2)
    command = [sys.executable, "-m", "service.cli", "run", str(spec), "--out", url]
    with calm_after(proxied):
        done = subprocess.run(
            [*command, "--workers", "1"], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
    stopped = done.returncode != 0
    if stopped:
        assert "Traceback" not in done.stderr, done.stderr
        assert done.stderr.strip()
        resume_inline(url)
    assert_same_results(calm, url)
    assert verify(url, 0).faults == []
    tell(
        "storage faults",
        ray_faults_injected=weather.injected.total(),
        ray_jobs_that_finished_through_them=int(not stopped),
        ray_jobs_stopped_and_resumed=int(stopped),
    )


def test_a_store_that_comes_back_within_patience_is_waited_for(
    tell: Tell, proxied: Proxy, calm: Path
) -> None:
    """Away for three seconds in the middle of the job, altogether."""
    url = f"s3://{BUCKET}/runs/patience"
    job, run = pipeline.create(spec_of(IMAGES), url)
    began: list[float] = []
    weather = Weather()

    def observe(_: pipeline.Advance) -> None:
        if not began and len(committed_in(url)) >= 3:
            began.append(time.monotonic())
            weather.storm = "503"
            proxied.weather = weather
            threading.Timer(3, lambda: setattr(weather, "storm", "")).start()

    with calm_after(proxied):
        pipeline.execute(job, run, InlineExecutor(), observe)
    assert began and weather.injected["503"]
    assert_same_results(calm, url)
    assert set(grants_of(url).values()) == {1}
    tell("storage faults", s3_away_for_seconds_and_waited_for=3)
