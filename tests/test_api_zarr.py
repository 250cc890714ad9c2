"""The run itself over HTTP: files, ranges, tags; plain Zarr and xarray; and nothing else."""

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import xarray
import zarr
from obstore.store import HTTPStore
from zarr.storage import ObjectStore

import deconvoy
from deconvoy.errors import RunNotFound
from deconvoy.store import RunStore
from service.app import create_app
from tests.serving import client_of, problem_of, served, settings_of, with_runs

PLACE = "/v1/runs/small/zarr"
CHUNK = "layers/relu2/patch/c/0/0/0/0/0"


@pytest.fixture(scope="module")
def client(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    home = tmp_path_factory.mktemp("home")
    with client_of(settings_of(home, runs=str(small_run.parent))) as client:
        yield client


def store_at(client: httpx.Client, group: str = "") -> ObjectStore[HTTPStore]:
    address = f"{client.base_url}{PLACE}/{group}".rstrip("/")
    return ObjectStore(
        HTTPStore.from_url(address, client_options={"allow_http": True}), read_only=True
    )


# -- clients ---------------------------------------------------------------------------------------


def test_deconvoy_opens_the_run(client: httpx.Client, small_run: Path) -> None:
    there, here = deconvoy.open(f"{client.base_url}/v1/runs/small"), deconvoy.open(small_run)
    assert there.status == "done" and there.layers().equals(here.layers())
    assert there.table().equals(here.table()) and there.images().equals(here.images())
    np.testing.assert_array_equal(there.unit("relu2", 40).patches, here.unit("relu2", 40).patches)
    image = here.occluded()["image_id"][0].as_py()
    assert there.occlusion(image).unit == here.occlusion(image).unit
    with pytest.raises(RunNotFound):
        deconvoy.open(f"{client.base_url}/v1/runs/other")


def test_plain_zarr_opens_the_run(client: httpx.Client, small_run: Path) -> None:
    group = zarr.open_group(store_at(client), mode="r", use_consolidated=False)
    expected = deconvoy.open(small_run)
    assert dict(group.attrs.asdict()) == expected.attributes
    layer: Any = group["layers/relu2"]
    unit = expected.unit("relu2", 40)
    np.testing.assert_array_equal(layer["score"][40], unit.score)
    np.testing.assert_array_equal(layer["patch"][40], unit.patches)


def test_xarray_opens_a_layer_lazily(client: httpx.Client, small_run: Path) -> None:
    found = xarray.open_zarr(store_at(client, "layers/relu2"))
    expected = deconvoy.open(small_run).xarray("layers/relu2")
    assert found.sizes == expected.sizes
    assert set(found.data_vars) == set(expected.data_vars)
    xarray.testing.assert_equal(found["projection"][:2].load(), expected["projection"][:2].load())


def test_arrays_of_a_group_are_found_though_no_folder_is_listed(
    client: httpx.Client, small_run: Path
) -> None:
    for path in ("layers/relu2", "layers/logits", "occlusion"):
        found = zarr.open_group(store_at(client), path=path, mode="r")
        expected: Any = zarr.open_group(small_run, path=path, mode="r")
        assert set(found.array_keys()) == set(expected.array_keys())
        assert dict(found.attrs) == dict(expected.attrs)


def test_a_unit_is_read_without_the_rest(small_run: Path, tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []
    app = create_app(settings_of(tmp_path / "home", runs=str(small_run.parent)))

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            asked.append((scope["path"], headers.get(b"range", b"").decode()))
        await app(scope, receive, send)

    with served(watched) as address, httpx.Client(base_url=address) as client:  # type: ignore[arg-type]
        group: Any = zarr.open_group(store_at(client), mode="r", use_consolidated=False)
        group["layers/relu2/patch"][1]
    chunks = [(path, wanted) for path, wanted in asked if path.endswith(CHUNK)]
    assert chunks and all(wanted.startswith("bytes=") for _, wanted in chunks)
    others = [path for path, _ in asked if "/c/" in path and not path.endswith(CHUNK)]
    assert others == []


# -- files -----------------------------------------------------------------------------------------


def test_files_are_the_runs(client: httpx.Client, small_run: Path) -> None:
    for path in (CHUNK, "zarr.json", "images/part-000000.parquet", "ledger/log.jsonl"):
        answer = client.get(f"{PLACE}/{path}").raise_for_status()
        assert answer.content == (small_run / path).read_bytes()
        head = client.head(f"{PLACE}/{path}").raise_for_status()
        assert head.content == b""
        for name in ("content-length", "etag", "last-modified", "accept-ranges"):
            assert head.headers[name] == answer.headers[name]


def test_folders_are_lists_of_names(client: httpx.Client, small_run: Path) -> None:
    for folder in ("", "images/", "layers/relu2/", "layers/relu2/patch/c/0/"):
        names = client.get(f"{PLACE}/{folder}").raise_for_status().json()
        assert names == RunStore(small_run).names(folder.rstrip("/"))
        assert client.head(f"{PLACE}/{folder}").is_success
    assert "driver.lock" not in client.get(f"{PLACE}/ledger/").json()
    for path in ("layers/relu9/", "zarr.json/", "layers"):
        problem_of(client.get(f"{PLACE}/{path}"), 404, "path")


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=10-19", slice(10, 20)),
        ("bytes=10-", slice(10, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=5-999999999", slice(5, None)),
        ("bytes=-999999999", slice(0, None)),
    ],
)
def test_a_range_is_that_part(
    client: httpx.Client, small_run: Path, asked: str, part: slice
) -> None:
    content = (small_run / CHUNK).read_bytes()
    answer = client.get(f"{PLACE}/{CHUNK}", headers={"range": asked})
    assert answer.status_code == 206 and answer.content == content[part]
    begin, end, _ = part.indices(len(content))
    assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/{len(content)}"
    assert answer.headers["content-length"] == str(end - begin)


def test_ranges_that_are_none(client: httpx.Client, small_run: Path) -> None:
    size = (small_run / CHUNK).stat().st_size
    for asked in (f"bytes={size}-", "bytes=999999999-", "bytes=-0"):
        refused = client.get(f"{PLACE}/{CHUNK}", headers={"range": asked})
        assert f"{size} bytes" in problem_of(refused, 416, "Range")
        assert refused.headers["content-range"] == f"bytes */{size}"
    for asked in (
        "bytes=5-2",
        "lines=0-3",
        "bytes=a-b",
        "bytes=-",
        "bytes=0-1,4-5",
        "bytes=" + "9" * 99,
    ):
        answer = client.get(f"{PLACE}/{CHUNK}", headers={"range": asked})
        assert answer.status_code == 200 and len(answer.content) == size


def test_a_tag_spares_the_bytes(client: httpx.Client) -> None:
    first = client.get(f"{PLACE}/{CHUNK}")
    tag, modified = first.headers["etag"], first.headers["last-modified"]
    for headers in (
        {"if-none-match": tag},
        {"if-none-match": f'"x", W/{tag}'},
        {"if-none-match": "*"},
        {"if-modified-since": modified},
    ):
        for method in ("GET", "HEAD"):
            again = client.request(method, f"{PLACE}/{CHUNK}", headers=headers)
            assert again.status_code == 304 and again.content == b""
    other = {"if-none-match": '"x"', "if-modified-since": modified}
    assert client.get(f"{PLACE}/{CHUNK}", headers=other).status_code == 200
    for valid, status in ((tag, 206), (modified, 206), ('"x"', 200)):
        ranged = {"range": "bytes=0-3", "if-range": valid}
        assert client.get(f"{PLACE}/{CHUNK}", headers=ranged).status_code == status


def test_what_a_run_made_anew_would_change_is_asked_for_again(client: httpx.Client) -> None:
    for path in (CHUNK, "zarr.json", "ledger/log.jsonl"):
        assert client.get(f"{PLACE}/{path}").headers["cache-control"] == "public, no-cache"


def test_a_large_file_comes_piece_by_piece(small_run: Path, tmp_path: Path) -> None:
    runs = with_runs(tmp_path / "runs", small_run)
    content = np.random.default_rng(0).bytes(5 * 2**20 + 3)
    (runs / "small/layers/relu2/large").write_bytes(content)
    with client_of(settings_of(tmp_path / "home", runs=str(runs))) as client:
        address = f"{PLACE}/layers/relu2/large"
        whole = client.get(address)
        assert whole.content == content and whole.headers["content-length"] == str(len(content))
        part = client.get(address, headers={"range": "bytes=3-3000000"})
        assert part.content == content[3:3000001]


# -- nothing else ----------------------------------------------------------------------------------

OUTSIDE = (
    f"{PLACE}/../../../../etc/passwd",
    f"{PLACE}/layers/../../secret/zarr.json",
    f"{PLACE}/%2e%2e/secret/zarr.json",
    f"{PLACE}/%2E%2E%2Fsecret%2Fzarr.json",
    f"{PLACE}/layers/%2e%2e/%2e%2e/secret/zarr.json",
    f"{PLACE}/..%5csecret%5czarr.json",
    f"{PLACE}/%252e%252e/secret/zarr.json",
    f"{PLACE}//etc/passwd",
    f"{PLACE}/%2Fetc%2Fpasswd",
    f"{PLACE}/zarr.json%00",
    f"{PLACE}/./zarr.json",
    f"{PLACE}/link.json",
    f"{PLACE}/folder/secret.json",
    f"{PLACE}/folder/",
    f"{PLACE}/circle",
    f"{PLACE}/circle/",
    f"{PLACE}/circle/zarr.json",
    f"{PLACE}/../",
    f"{PLACE}/ledger/driver.lock",
    f"{PLACE}/ledger/%64river.lock",
    f"{PLACE}/.hidden",
    f"{PLACE}/half.123.partial",
    f"{PLACE}/" + "x" * 4000,
    "/v1/runs/..",
    "/v1/runs/%2e%2e",
    "/v1/runs/../secret",
    "/v1/runs/%2e%2e%2fsecret",
    "/v1/runs/..%2fsecret/zarr/zarr.json",
    "/v1/runs/%2e%2e/zarr/zarr.json",
    "/v1/runs/small%2f..%2f..%2fsecret/zarr/zarr.json",
    "/v1/runs/small%00/zarr/zarr.json",
    "/v1/runs/%2Fetc/zarr/passwd",
    "/v1/runs/small/layers/%2e%2e/units/0",
    "/v1/runs/small/layers/..%2f..%2f..%2fsecret/units/0",
    "/v1/runs/small/layers/../../../secret/units/0",
    "/v1/runs/small/layers/%2e%2e%2f%2e%2e/units/0.png",
    "/v1/runs/small/figures/..%2f..%2fsecret.png",
    "/v1/runs/small/images/..%2f..%2fsecret.jpg",
    "/v1/runs/small/occlusion/..%2f..%2fsecret.png",
)


@pytest.fixture(scope="module")
def tempted(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service beside what it must not show."""
    folder = tmp_path_factory.mktemp("tempted")
    runs = with_runs(folder / "runs", small_run)
    secret = with_runs(folder, small_run) / "small"
    secret.rename(folder / "secret")
    (folder / "secret.json").write_text("secret")
    (runs / "small/link.json").symlink_to(folder / "secret.json")
    (runs / "small/folder").symlink_to(folder)
    (runs / "small/circle").symlink_to(runs / "small/circle")
    (runs / "small/.hidden").write_text("secret")
    (runs / "small/half.123.partial").write_text("secret")
    with served(create_app(settings_of(folder / "home", runs=str(runs)))) as address:
        yield address


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_nothing_outside_a_run_is_shown(tempted: str, path: str, method: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(tempted).netloc, timeout=30)
    connection.request(method, path)  # as it stands; other clients take dots out first
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    assert answer.status in (404, 405, 422), (answer.status, content)
    assert b"root:" not in content and b'secret"' not in content
