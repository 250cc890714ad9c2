"""Test runs in a bucket, on a real S3 server: the bits of one on disk, kills, and every verb."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest

import deconvoy
from deconvoy import bucket, queries
from deconvoy.bucket import BucketStore
from deconvoy.errors import JobFailed, RequestError, RunBusy, RunExists, RunUnreachable
from deconvoy.spec import JobSpec
from deconvoy.store import RunStore
from tests.fire.proxy import Weather, proxy_before
from tests.runs import (
    assert_same_results,
    committed_in,
    grants_of,
    ignore,
    log_of,
    resume_inline,
    run_inline,
    small_spec,
)
from tests.s3 import BUCKET, s3_server
from workers import extend, pipeline
from workers.executors.inline import InlineExecutor
from workers.plan import require_room
from workers.verify import verify

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as variables:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            yield variables


def full_spec(**changes: Any) -> JobSpec:
    """Everything a run can hold: examples, outliers, projections, squares over images and hits."""
    squares = {
        "kind": "occlusion",
        "images": {"ids": [0, 3]},
        "patch": 32,
        "stride": 16,
        "units": ["relu2"],
    }
    top = {"kind": "top", "k": 2, "bottom": 2, "outliers": {"multiple": 3.0}}
    projection = {"kind": "projection", "units": {"ids": [0, 1, 40]}}
    return small_spec(analyses=[top, projection, squares], **changes)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("disk") / "run"
    run_inline(full_spec(), url)
    return url


@pytest.fixture(scope="module")
def in_bucket(environment: dict[str, str]) -> str:
    url = f"s3://{BUCKET}/runs/full"
    run_inline(full_spec(), url)
    return url


def command(*arguments: str, timeout: float = 300) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout


# --- the same run --------------------------------------------------------------------------------


def test_a_run_in_a_bucket_has_the_bits_of_one_on_disk(on_disk: Path, in_bucket: str) -> None:
    assert_same_results(on_disk, in_bucket)
    ours, theirs = (
        {path for path in RunStore(url).paths() if path.startswith("occlusion/")}
        for url in (on_disk, in_bucket)
    )
    assert ours == theirs and ours
    differing = [
        path for path in ours if RunStore(on_disk).read(path) != RunStore(in_bucket).read(path)
    ]
    assert not differing
    assert committed_in(on_disk) == committed_in(in_bucket)
    events = [[e["event"] for e in log_of(url)] for url in (on_disk, in_bucket)]
    assert sorted(events[0]) == sorted(events[1])


def test_it_is_verified_whole_and_a_changed_byte_is_found(in_bucket: str) -> None:
    report = verify(in_bucket, sample=20)
    assert not report.faults and report.hits == 20 and report.squares and report.chunks > 50
    store = RunStore(in_bucket)
    path = next(p for p in store.paths() if p.startswith("layers/relu5/patch/c/"))
    whole = store.read(path)
    store.write(path, whole[:-1] + bytes([whole[-1] ^ 1]))
    marker = store.read("ledger/scan/part-000001.npz")
    store.delete("ledger/scan/part-000001.npz")
    try:
        faults = {fault.place for fault in verify(in_bucket, sample=0).faults}
        assert path in faults and "ledger/scan/part-000001.npz" in faults
    finally:
        store.write(path, whole)
        store.write("ledger/scan/part-000001.npz", marker)
    assert not verify(in_bucket, sample=0).faults


def test_it_is_read_as_one_on_disk(on_disk: Path, in_bucket: str) -> None:
    here, there = deconvoy.open(on_disk), deconvoy.open(in_bucket)
    assert here.table().equals(there.table()) and here.images().equals(there.images())
    assert here.layers().equals(there.layers())
    one, other = (run.unit("relu2", 1) for run in (here, there))
    assert np.array_equal(one.patches, other.patches)
    assert np.array_equal(one.projections, other.projections)
    assert one.occlusion[0].activation.tolist() == other.occlusion[0].activation.tolist()
    assert np.array_equal(here.occlusion(3).probability, there.occlusion(3).probability)
    assert queries.purity(here).equals(queries.purity(there))
    assert there.examples("relu2", "bottom").equals(here.examples("relu2", "bottom"))
    assert there.status == "done" and repr(there).startswith("Run('s3://")
    lazy = there.xarray("layers/relu2")
    assert lazy.score.dims == ("unit", "rank")
    assert lazy.score.values.tolist() == here.xarray("layers/relu2").score.values.tolist()


@pytest.mark.slow
def test_every_command_takes_its_url(
    environment: dict[str, str], in_bucket: str, on_disk: Path, tmp_path: Path
) -> None:
    spec, url = tmp_path / "job.json", f"s3://{BUCKET}/runs/command"
    spec.write_text(json.dumps(full_spec().to_json()))
    assert url in command("run", str(spec), "--out", url, "--executor", "inline")
    assert_same_results(on_disk, url)
    assert "relu5" in command("show", url)
    assert json.loads(command("show", url, "relu5", "1", "--json"))
    assert json.loads(command("query", url, "purity", "relu2", "--json"))
    picture, table = tmp_path / "maps.png", tmp_path / "hits.parquet"
    command("figure", url, "relu5", "--units", "0,1", "-o", str(picture))
    command("export", url, "-o", str(table))
    assert picture.stat().st_size > 1000 and table.stat().st_size > 1000
    assert "All is well" in command("verify", url, "--sample", "5")
    assert "nothing: weights, images and transform are one" in command("diff", url, str(on_disk))
    assert "Done" in command("resume", url, "--executor", "inline")


# --- kills ---------------------------------------------------------------------------------------


def long_spec() -> JobSpec:
    return small_spec(
        data={"uri": "shapes?size=400&seed=2"},
        layers=["relu3"],
        analyses=[{"kind": "top"}, {"kind": "projection", "units": {"sample": 0.5}}],
        compute={"shard_size": 40, "batch_size": 16},
    )


def killed_when(arguments: Sequence[str], store: RunStore, enough: int) -> None:
    """SIGKILL a command when so many items are committed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 240
        while len(committed_in(store.url)) < enough:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_a_job_that_is_killed_goes_on_to_the_same_bits(
    environment: dict[str, str], tmp_path: Path
) -> None:
    run_inline(long_spec(), tmp_path / "calm")
    spec, url = tmp_path / "job.json", f"s3://{BUCKET}/runs/killed"
    spec.write_text(json.dumps(long_spec().to_json()))
    store = RunStore(url)
    killed_when(["run", str(spec), "--out", url, "--executor", "inline"], store, enough=3)
    first = committed_in(url)
    assert 0 < len(first) < 11
    run = deconvoy.open(url)
    assert run.status == "interrupted" and run.resumable
    killed_when(["resume", url, "--executor", "inline"], store, enough=len(first) + 3)
    before, grants = committed_in(url), grants_of(url)
    command("resume", url, "--executor", "inline")
    assert_same_results(tmp_path / "calm", url)
    again = {item for item in before if grants_of(url)[item] > max(1, grants[item])}
    assert not again, "finished items were computed again"
    assert not verify(url, sample=10).faults


@pytest.mark.ray
@pytest.mark.slow
def test_workers_of_ray_write_to_a_bucket(
    environment: dict[str, str], on_disk: Path, tmp_path: Path
) -> None:
    """By the command, whose Ray starts with the variables that a user has set."""
    spec, url = tmp_path / "job.json", f"s3://{BUCKET}/runs/ray"
    spec.write_text(json.dumps(full_spec().to_json()))
    command("run", str(spec), "--out", url, "--workers", "2")
    assert_same_results(on_disk, url)
    assert len({e["worker"] for e in log_of(url) if e["event"] == "committed"}) == 2


# --- what else a place must do -------------------------------------------------------------------


def test_a_place_that_is_taken_is_refused_or_replaced(environment: dict[str, str]) -> None:
    url = f"s3://{BUCKET}/runs/taken"
    RunStore(url).write("notes.txt", b"mine")
    small = small_spec(layers=["relu2"], analyses=[{"kind": "top"}])
    with pytest.raises(RunExists, match="something that is no run, and stays as it is"):
        pipeline.create(small, url, overwrite=True)
    RunStore(url).delete("notes.txt")
    _, run = pipeline.create(small, url)
    run.write("ledger/scan/part-000000.npz", b"old")
    with pytest.raises(RunExists, match="exists already"):
        pipeline.create(small, url)
    with run.driver_lock(), pytest.raises(RunBusy):
        pipeline.create(small, url, overwrite=True)
    assert run.exists("ledger/scan/part-000000.npz")
    job, run = pipeline.create(small, url, overwrite=True)
    assert not run.exists("ledger/scan/part-000000.npz")
    pipeline.execute(job, run, InlineExecutor(), ignore)
    assert deconvoy.open(url).status == "done"


@pytest.mark.parametrize("fault", ["cut", "lost", "500", "partial"])
def test_whatever_a_store_drops_it_is_asked_again(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Every kind of request while every other answer is spoiled: also those that obstore itself
    sends only once."""
    with proxy_before(environment["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        url = f"s3://{BUCKET}/runs/dropped-{fault}"
        paths = [f"notes/{number}" for number in range(8)]
        for seed in range(2):
            proxy.weather = Weather(seed=seed, every=1, spell=1, faults=(fault,))
            run = BucketStore(url)
            with run.driver_lock():
                for path in paths:
                    run.write(path, path.encode())
                assert run.read("notes/3") == b"notes/3"
                array = run.zarr("w-").create_array("array", shape=(4,), chunks=(1,), dtype="f4")
                array[:] = np.arange(4)
                assert run.zarr()["array"][:].tolist() == [0, 1, 2, 3]  # type: ignore[index]
                run.delete(*paths[:4])
                assert run.names("notes") == ["4", "5", "6", "7"]
                assert set(paths[4:]) <= set(run.paths()) and not run.exists("notes/0")
                run.remove()
            assert proxy.weather.injected[fault] > 5
            proxy.weather = Weather()
            assert not list(BucketStore(url).paths())


@pytest.mark.parametrize("fault", ["cut", "lost"])
def test_a_driver_takes_a_run_though_its_wish_is_dropped_at_first(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """What must not be there yet obstore creates once; the answer may have been lost, too."""
    with proxy_before(environment["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        proxy.weather = Weather(only="ledger/driver/0", storm=fault)

        def calm() -> None:
            while not proxy.weather.injected[fault]:
                time.sleep(0.01)
            proxy.weather.storm = ""

        calming = threading.Thread(target=calm, daemon=True)
        calming.start()
        with BucketStore(f"s3://{BUCKET}/runs/wished-{fault}").driver_lock():
            calming.join(60)
            assert proxy.weather.injected[fault]


def test_a_driver_that_ended_while_its_store_was_away_is_not_waited_for(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not say that it ended; but its process lives on, and may try again."""
    monkeypatch.setattr(bucket, "PATIENCE_SECONDS", 1)
    monkeypatch.setattr(bucket, "SHORT_PATIENCE_SECONDS", 1)
    with proxy_before(environment["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        url = f"s3://{BUCKET}/runs/away"
        with pytest.raises(RunUnreachable), BucketStore(url).driver_lock():
            proxy.weather.storm = "503"
            BucketStore(url).write("notes", b"")
        proxy.weather.storm = ""
        with BucketStore(url).driver_lock():
            with pytest.raises(RunBusy), BucketStore(url).driver_lock():
                pass


def test_room_in_a_bucket_is_not_asked_for(environment: dict[str, str]) -> None:
    job, run = pipeline.create(small_spec(), f"s3://{BUCKET}/runs/room")
    require_room(job, run)  # would raise where it knew of no room


@pytest.mark.parametrize("home", ["disk", "bucket"])
def test_a_run_is_extended_from_and_into_a_bucket(
    environment: dict[str, str], tmp_path: Path, home: str
) -> None:
    def spec_of(uri: Any) -> JobSpec:
        return small_spec(data={"uri": uri}, layers=["relu2", "logits"])

    places = ["shapes?size=16&seed=1", "shapes?size=8&seed=2"]
    old = str(tmp_path / "old") if home == "disk" else f"s3://{BUCKET}/runs/old"
    new = f"s3://{BUCKET}/runs/extended-{home}"
    run_inline(spec_of(places[0]), old)
    job, run = extend.create(old, places[1], new)
    pipeline.execute(job, run, InlineExecutor(), ignore)
    run_inline(spec_of(places), tmp_path / "whole")
    assert_same_results(tmp_path / "whole", new)
    assert deconvoy.open(new).attributes["extends"] == old
    with pytest.raises(RequestError, match="one folder or lie in each other"):
        extend.create(old, places[1], f"{old}/inside")


def test_a_bucket_that_refuses_writes_fails_the_job_in_a_sentence_and_it_can_go_on(
    environment: dict[str, str], on_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store's own refusal, at the first picture: its prefix is made to be of no bucket."""
    url = f"s3://{BUCKET}/runs/refused"
    job, run = pipeline.create(full_spec(), url)
    whole = obstore.put_async

    async def refuse(store: Any, path: str, *rest: Any, **options: Any) -> Any:
        if "/patch/c/" in path:
            store = BucketStore("s3://gone/run").client
        return await whole(store, path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(obstore, "put_async", refuse)
        with pytest.raises((JobFailed, RunUnreachable), match="NoSuchBucket.*deconvoy resume"):
            pipeline.execute(job, run, InlineExecutor(), ignore)
    failed = deconvoy.open(url)
    assert failed.status == "failed" and "deconvoy resume" in failed.failure and failed.resumable
    resume_inline(url)
    assert_same_results(on_disk, url)


def test_no_secret_is_in_what_a_worker_is_sent(environment: dict[str, str], in_bucket: str) -> None:
    job, run = pipeline.reopen(in_bucket)
    content = pickle.dumps((job.assignment(run.url, 1), run))
    assert b"secret" not in content and os.environ["AWS_ACCESS_KEY_ID"].encode() not in content
