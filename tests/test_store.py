"""Test what a run is kept in: the same contract on a disk and in a bucket; holds; kept arrays."""

import json
import logging
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import obstore
import pytest
import zarr
from zarr.errors import BaseZarrError, ContainsGroupError

import deconvoy
from deconvoy import bucket, holds
from deconvoy.bucket import BucketStore
from deconvoy.errors import (
    DiskTooSmall,
    MissingExtra,
    RequestError,
    RunBeingDeleted,
    RunBusy,
    RunNotFound,
    RunUnreachable,
)
from deconvoy.kept import KeptArrays
from deconvoy.schema import FORMAT
from deconvoy.store import FolderStore, RunStore
from tests.s3 import BUCKET, s3_server


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as variables:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            yield variables


@pytest.fixture
def in_bucket(environment: dict[str, str]) -> BucketStore:
    store = RunStore(f"s3://{BUCKET}/{uuid4()}/run/")
    assert isinstance(store, BucketStore)
    return store


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> RunStore:
    if request.param == "folder":
        return RunStore(tmp_path / "some" / "run")
    found: RunStore = request.getfixturevalue("in_bucket")
    return found


# --- the contract --------------------------------------------------------------------------------


def test_files_are_written_whole_over_older_ones_and_deleted(store: RunStore) -> None:
    assert store.occupant() is None and not store.exists("ledger/a.json")
    with pytest.raises(RunNotFound, match="'ledger/a.json'"):
        store.read("ledger/a.json")
    store.write("ledger/a.json", b"one")
    store.write("ledger/a.json", b"two")
    assert store.exists("ledger/a.json") and store.read("ledger/a.json") == b"two"
    assert store.occupant() is not None
    store.delete("ledger/a.json")
    store.delete("ledger/a.json")  # gone already
    assert not store.exists("ledger/a.json")
    several = [f"ledger/{name}.json" for name in "bcd"]
    for path in several:
        store.write(path, b"one of several")
    store.delete(*several[:2], "ledger/none.json")
    assert store.names("ledger") == ["d.json"]


def test_names_are_those_of_files_and_folders_escaped_ones_too(store: RunStore) -> None:
    paths = ["images/part-1.parquet", "ledger/projection/a%2Fb c.é/item-000001.json", "zarr.json"]
    for number, path in enumerate(paths):
        store.write(path, b"x" * number)
    assert store.names("ledger/projection") == ["a%2Fb c.é"]
    assert store.names("ledger/projection/a%2Fb c.é") == ["item-000001.json"]
    assert store.names("images") == ["part-1.parquet"]
    assert store.names("") == ["images", "ledger", "zarr.json"]
    assert store.names("ledger/proj") == store.names("nothing") == []
    assert sorted(store.paths()) == paths
    assert store.bytes_used() == 3
    assert all(store.read(path) == b"x" * number for number, path in enumerate(paths))


def test_a_log_keeps_every_line_in_order_over_several_drivers(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "SEGMENT_BYTES", 100)
    assert store.lines("ledger/log.jsonl") == []
    for driver in range(2):
        again = RunStore(store.url)
        for number in range(40):
            again.append("ledger/log.jsonl", json.dumps({"at": [driver, number], "é": "\u2028"}))
    found = [json.loads(line)["at"] for line in store.lines("ledger/log.jsonl")]
    assert found == [[driver, number] for driver in range(2) for number in range(40)]


def test_of_a_line_that_found_no_room_nothing_is_left(tmp_path: Path) -> None:
    run, (soft, hard) = RunStore(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    run.append("log.jsonl", "first")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # as on a full disk: four bytes fit
    try:
        with pytest.raises(OSError, match="too large"):
            run.append("log.jsonl", "second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    run.append("log.jsonl", "third")
    assert run.lines("log.jsonl") == ["first", "third"]


def test_a_place_that_takes_no_lock_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """As a disk that became read-only."""
    (tmp_path / "ledger/driver.lock").mkdir(parents=True)
    with pytest.raises(DiskTooSmall, match="failed: Is a directory.*deconvoy resume"):
        with RunStore(tmp_path).driver_lock():
            pass


def test_a_group_is_written_and_read(store: RunStore) -> None:
    group = store.zarr("w-")
    group.attrs["format"] = "mine"
    with pytest.raises(ContainsGroupError):
        store.zarr("w-")
    array = store.zarr("r+").create_array("layers/x/score", shape=(100,), chunks=(10,), dtype="f4")
    array[:] = np.arange(100)
    opened = RunStore(store.url).zarr()
    assert opened.attrs["format"] == "mine"
    assert opened["layers/x/score"][42:44].tolist() == [42, 43]  # type: ignore[index, union-attr]
    assert store.exists("layers/x/score/c/4") and "score" in store.names("layers/x")
    with pytest.raises(ValueError, match="read-only"):
        opened.create_array("y", shape=(1,), dtype="f4")
    store.zarr("r+").create_array("layers/x/score", shape=(1,), dtype="f4", overwrite=True)
    assert not store.exists("layers/x/score/c/4")


def test_all_of_a_run_is_removed_and_nothing_beside_it(store: RunStore) -> None:
    store.zarr("w-")
    for number in range(20):
        store.write(f"ledger/scan/part-{number:06d}.npz", b"x")
    beside = RunStore(f"{store.url}-2")
    beside.write("zarr.json", b"{}")
    store.remove()
    assert list(store.paths()) == [] and store.occupant() is None
    assert beside.exists("zarr.json") and beside.occupant()


def broken_off(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin to remove a run; the first deletion of its results fails."""
    delete, rmtree = obstore.delete, shutil.rmtree

    def failing(do: Any) -> Any:
        def fails(*given: Any) -> None:
            if any("layers" in str(each) for each in given):
                raise OSError("the machine went down")
            do(*given)

        return fails

    with monkeypatch.context() as patched:
        patched.setattr(obstore, "delete", failing(delete))
        patched.setattr(shutil, "rmtree", failing(rmtree))
        with pytest.raises((OSError, RunUnreachable)):
            store.remove()


def test_what_is_half_removed_is_no_run_and_can_be_removed(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = store.zarr("w-")
    root.attrs.update({"format": FORMAT, "spec": {}})
    root.create_array("layers/x/score", shape=(1,), dtype="f4")
    broken_off(store, monkeypatch)
    assert store.exists("zarr.json") and store.exists("layers/x/score/zarr.json")
    with pytest.raises(RunBeingDeleted, match="delete it again") as told:
        deconvoy.open(store.url)
    assert isinstance(pickle.loads(pickle.dumps(told.value)), RunBeingDeleted)
    for read in (zarr.open_group, zarr.open):  # nor for whoever reads it with Zarr alone
        with pytest.raises((BaseZarrError, OSError, ValueError, AssertionError)):
            read(store.zarr_store(), mode="r")
    store.remove()
    assert list(store.paths()) == [] and store.occupant() is None
    store.remove()  # there is nothing, and that is no error


def test_a_run_that_is_worked_on_is_not_removed(store: RunStore) -> None:
    store.zarr("w-")
    with RunStore(store.url).driver_lock():
        with pytest.raises(RunBusy):
            store.remove()
        assert store.exists("zarr.json")
    with store.driver_lock():  # its own driver may
        store.remove()
    assert list(store.paths()) == []


def test_one_driver_holds_a_run(store: RunStore) -> None:
    other = RunStore(store.url)
    with store.driver_lock():
        assert not other.driver_died()
        with pytest.raises(RunBusy, match=f"process {os.getpid()} on .*stop it first"):
            with other.driver_lock():
                raise AssertionError
        store.write("ledger/a", b"x")
    with other.driver_lock():
        other.write("ledger/a", b"y")
    assert not store.driver_died()


HOLD = """
import sys, time
from deconvoy.store import RunStore
run = RunStore(sys.argv[1])
with run.driver_lock():
    run.append("ledger/log.jsonl", "begun")
    run.write("ledger/begun", b"")
    time.sleep(600)
"""


@pytest.fixture
def killed(store: RunStore) -> RunStore:
    """A run whose driver, a process of this machine, was killed."""
    driver = subprocess.Popen([sys.executable, "-c", HOLD, store.url])
    try:
        deadline = time.monotonic() + 60
        while not store.exists("ledger/begun"):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(RunBusy, match=f"process {driver.pid} on"):
            with store.driver_lock():
                raise AssertionError
        assert not store.driver_died()
    finally:
        driver.kill()
        driver.wait()
    return store


def test_the_run_of_a_driver_that_was_killed_here_is_free_at_once(killed: RunStore) -> None:
    assert killed.driver_died()
    with killed.driver_lock():
        assert not RunStore(killed.url).driver_died()


def test_a_store_pickles_as_its_url_alone(store: RunStore) -> None:
    store.zarr("w-")
    for each in (store, store.zarr_store()):
        content = pickle.dumps(each)
        assert b"secret" not in content and b"somebody" not in content
        assert pickle.loads(content) == each or isinstance(each, RunStore)
    back = pickle.loads(pickle.dumps(store))
    assert type(back) is type(store) and back.exists("zarr.json")
    content = pickle.dumps(store.zarr())
    assert b"secret" not in content and pickle.loads(content).path == ""


# --- the folder ----------------------------------------------------------------------------------


def test_a_folder_knows_its_room_and_a_bucket_does_not(
    tmp_path: Path, in_bucket: BucketStore
) -> None:
    room = RunStore(tmp_path / "not" / "yet").bytes_free()
    assert room is not None and room > 0
    assert in_bucket.bytes_free() is None


def test_the_place_of_a_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RunStore("run").absolute == RunStore(tmp_path / "run").absolute == str(tmp_path / "run")
    assert isinstance(RunStore("run"), FolderStore)


# --- the bucket ----------------------------------------------------------------------------------


def test_a_driver_of_another_machine_loses_the_run_when_it_is_silent(
    in_bucket: BucketStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Both are threads of this process: neither can know that the other is dead."""
    monkeypatch.setattr(holds, "EXPIRY_SECONDS", 2.0)  # objects carry whole seconds
    monkeypatch.setattr(holds, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(bucket, "TEND_SECONDS", 0.1)
    caplog.set_level(logging.CRITICAL)
    other = RunStore(in_bucket.url)
    with in_bucket.driver_lock():
        time.sleep(4)  # it lives, so it stays
        with pytest.raises(RunBusy):
            with other.driver_lock():
                raise AssertionError
        monkeypatch.setattr(holds.Hold, "confirm", lambda self: time.sleep(0.1))  # asleep
        deadline = time.monotonic() + 30
        while True:
            try:
                with other.driver_lock():
                    monkeypatch.undo()
                    monkeypatch.setattr(holds, "EXPIRY_SECONDS", 2.0)
                    for write in (
                        lambda: in_bucket.write("ledger/late", b""),
                        lambda: in_bucket.zarr("w-"),
                        lambda: in_bucket.delete("ledger/late"),
                    ):
                        with pytest.raises(RunBusy, match="was lost.*goes on with it"):
                            write()
                    other.write("ledger/mine", b"")
                break
            except RunBusy as error:
                assert "lets go" in str(error) and time.monotonic() < deadline
                time.sleep(0.2)
    assert in_bucket.exists("ledger/mine") and not in_bucket.exists("ledger/late")
    with other.driver_lock():  # the loser has released nothing of the winner's
        pass


def test_of_many_drivers_at_once_one_has_the_run(in_bucket: BucketStore) -> None:
    in_bucket.zarr("w-")
    begin, done, got = threading.Barrier(8), threading.Barrier(8), []

    def drive(number: int) -> None:
        run = RunStore(in_bucket.url)
        begin.wait()
        try:
            with run.driver_lock():
                got.append(number)
                done.wait(60)
        except RunBusy:
            done.wait(60)

    for _ in range(3):  # the later rounds have a number to follow
        got.clear()
        drivers = [threading.Thread(target=drive, args=(number,)) for number in range(8)]
        for driver in drivers:
            driver.start()
        for driver in drivers:
            driver.join(120)
        assert len(got) == 1
    assert len(in_bucket.names(holds.FOLDER)) == 1


def test_under_a_drivers_lock_a_log_is_written_in_time(
    in_bucket: BucketStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "TEND_SECONDS", 0.2)
    in_bucket.zarr("w-")
    with in_bucket.driver_lock():
        for number in range(100):
            in_bucket.append("ledger/log.jsonl", str(number))
        deadline = time.monotonic() + 20
        while len(RunStore(in_bucket.url).lines("ledger/log.jsonl")) < 100:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        in_bucket.append("ledger/log.jsonl", "the last")
    assert in_bucket.lines("ledger/log.jsonl") == [*map(str, range(100)), "the last"]
    assert in_bucket.names("ledger") == ["driver", "log-000001.jsonl"]


def test_a_bucket_that_is_not_there_is_told(environment: dict[str, str]) -> None:
    store = RunStore("s3://no-such-bucket/run")
    for ask in (
        lambda: store.occupant(),
        lambda: store.write("x", b""),
        lambda: store.zarr("w-"),
        lambda: store.bytes_used(),
    ):
        with pytest.raises(RunUnreachable, match=r"no-such-bucket/run.*NoSuchBucket.*AWS_ENDPOINT"):
            ask()
    with pytest.raises(RunNotFound):
        store.read("zarr.json")


def test_a_store_that_is_away_is_told(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "PATIENCE_SECONDS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = RunStore("s3://away/run")
    with pytest.raises(RunUnreachable, match=r"s3://away/run.*AWS_ENDPOINT_URL") as found:
        store.exists("zarr.json")
    told = store.refused(found.value)
    assert "Everything committed is intact" in str(told)
    assert "deconvoy resume s3://away/run" in str(told) and "secret" not in str(told)


@pytest.mark.parametrize(
    "url",
    ["s3://bucket", "s3://bucket/", "s3://a:b@bucket/run", "s3://bucket/a/../b", "s3://bucket//a",
     "s3://bucket/run?versionId=1", "s3:///run", "s3://bucket/a%2Fb"],
)  # fmt: skip
def test_a_url_that_names_no_place_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match="names no place in a bucket"):
        RunStore(url)


def test_other_clouds_take_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "somebody")
    for url, kind in (("gs://bucket/run", "GCSStore"), ("az://container/run", "AzureStore")):
        store = RunStore(url)
        assert isinstance(store, BucketStore) and type(store.client).__name__ == kind
        assert store.client.prefix == "run"
    with pytest.raises(RequestError, match="of no kind that is supported"):
        RunStore("hdfs://name/run")


def test_without_the_extra_it_is_named() -> None:
    code = (
        "import sys; sys.modules['obstore'] = None\n"
        "import deconvoy\n"
        "from deconvoy.errors import MissingExtra\n"
        "try: deconvoy.open('s3://bucket/run')\n"
        "except MissingExtra as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    told = str(MissingExtra("cloud", "The run 's3://bucket/run'"))
    assert done.stdout.strip() == told, done.stderr


def test_a_run_in_a_bucket_loads_obstore_and_one_on_a_disk_does_not() -> None:
    code = (
        "import sys, deconvoy\n"
        "from deconvoy.store import RunStore\n"
        "RunStore('runs/x')\n"
        "print(sorted({'obstore', 'httpx'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_objects_are_those_that_any_client_sees(in_bucket: BucketStore) -> None:
    in_bucket.write("layers/a%2Fb/zarr.json", b"x")
    from obstore.store import S3Store

    whole = S3Store(BUCKET, client_options={"allow_http": True})
    key = in_bucket.url.removeprefix(f"s3://{BUCKET}/") + "/layers/a%2Fb/zarr.json"
    assert bytes(obstore.get(whole, key).bytes()) == b"x"


# --- kept arrays ---------------------------------------------------------------------------------


def test_kept_arrays_are_read_once_and_stay_within_the_limit() -> None:
    kept, asked = KeptArrays(1000), []

    def ask(key: str, size: int) -> np.ndarray:
        def read() -> np.ndarray:
            asked.append(key)
            return np.zeros(size, np.uint8)

        return kept.get(key, read)

    ask("a", 400), ask("b", 400), ask("a", 400)
    assert asked == ["a", "b"] and kept.bytes == 800
    ask("c", 400)  # b lay longest
    assert kept.bytes == 800
    ask("a", 400), ask("b", 400)
    assert asked == ["a", "b", "c", "b"]
    ask("huge", 5000), ask("huge", 5000)
    assert asked[-2:] == ["huge", "huge"] and kept.bytes <= 1000
    with pytest.raises(ValueError, match="read-only"):
        ask("a", 400)[0] = 1
