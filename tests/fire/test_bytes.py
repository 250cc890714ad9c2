"""Bytes that are broken or built to do harm: images, tar shards, tables.

Nothing but ImageUnreadable may come of an image, and nothing but a sentence of a container; a job
over a folder of them ends, with a reason for each that it left out.
"""

import gc
import json
import os
import subprocess
import sys
import tarfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import deconvoy
from deconvoy.errors import DeconvoyError, ImageUnreadable, RequestError, TooManyBadImages
from deconvoy.spec import JobSpec, Transform
from tests.fire import mutations
from tests.fire.conftest import Fire, Tell
from tests.runs import assert_same_results, run_inline, run_on_ray, small_spec
from workers import sources
from workers.found import find
from workers.images import decode

TRANSFORM = Transform(resize=40, crop=32)
TRANSFORM_OF_JOBS = Transform(resize=64, crop=64)
"""By this an image of 30,000 × 1 pixels comes to more than may be."""

# Pillow warns of much that is odd in a file and reads on.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
    # As an error, which it is here alone, it would be another reason than elsewhere.
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
    # Of open tables a process keeps some; the others close when they are collected.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def close_tables() -> Iterator[None]:
    """At the end, where their warnings are nobody's."""
    yield
    sources._parquet_file.cache_clear()
    with warnings.catch_warnings(action="ignore"):
        gc.collect()


def reason_of(content: bytes, transform: Transform = TRANSFORM) -> str | None:
    """Why it is no image; None where it is one."""
    try:
        picture = decode(content, transform)
    except ImageUnreadable as error:
        assert 0 < len(str(error)) < 400
        str(error).encode()
        return str(error)
    assert picture.pixels.shape == (3, transform.crop, transform.crop)
    return None


def test_of_mutated_images_each_is_decoded_or_refused_with_a_reason(fire: Fire, tell: Tell) -> None:
    count, refused, slowest = fire.of(800, 20_000), 0, 0.0
    for _, content in mutations.mutated_images(count):
        begun = time.perf_counter()
        refused += reason_of(content) is not None
        slowest = max(slowest, time.perf_counter() - begun)
    assert count * 0.3 < refused < count, "the mutations are too mild, or too wild"
    assert slowest < 20
    tell("bad bytes", mutated_images=count, refused=refused, slowest_of_them_in_s=slowest)


# Memory is measured where nothing else has been: the peak is that of the process.
DECODER = """
import json, sys, threading
from pathlib import Path
from concurrent.futures import ThreadPoolExecutor
from deconvoy.errors import ImageUnreadable
from deconvoy.spec import Transform
from workers.images import decode

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

def told(path):
    try:
        picture = decode(Path(path).read_bytes(), Transform(resize=40, crop=32))
        return f"decoded {picture.width}x{picture.height}"
    except ImageUnreadable as error:
        return str(error)

before = peak()
with ThreadPoolExecutor(4) as pool:
    found = dict(zip(sys.argv[1:], pool.map(told, sys.argv[1:])))
print(json.dumps([peak() - before, found]))
"""


def decoded_apart(paths: list[Path]) -> tuple[float, dict[str, str]]:
    """MiB that decoding in four threads took at its peak, and what each file came to."""
    ran = subprocess.run(
        [sys.executable, "-c", DECODER, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    taken, found = json.loads(ran.stdout.splitlines()[-1])
    return taken, {Path(path).name: told for path, told in found.items()}


def test_bombs_are_refused_for_what_they_are_before_they_take_memory(
    tmp_path: Path, tell: Tell
) -> None:
    bombs = mutations.bombs()
    for name, (content, _) in bombs.items():
        (tmp_path / name).write_bytes(content)
    taken, found = decoded_apart([tmp_path / name for name in bombs])
    wrong = {name: found[name] for name, (_, told) in bombs.items() if told not in found[name]}
    assert wrong == {}
    assert taken < 250
    tell("bad bytes", bombs=len(bombs), memory_of_the_bombs_in_MiB=taken)


def test_the_largest_images_are_decoded_one_at_a_time(
    tmp_path: Path, fire: Fire, tell: Tell
) -> None:
    large = mutations.large_images()
    if not fire.full:
        large = {name: large[name] for name in ("wide.jpg", "flat.png", "pixel.png")}
    paths = []
    for name, content in large.items():
        for copy in range(2):
            paths.append(tmp_path / f"{copy}_{name}")
            paths[-1].write_bytes(content)
    taken, found = decoded_apart(paths)
    assert all(told.startswith("decoded") for told in found.values()), found
    # One of 80 million pixels takes 1 GiB, of WebP two; four threads would take several.
    assert taken < (3000 if fire.full else 1600)
    tell("bad bytes", large_images=len(paths), memory_of_the_large_in_MiB=taken)


# Whole jobs ----------------------------------------------------------------------------------


def hostile_folder(folder: Path, count: int) -> dict[str, bool]:
    """Mutated images and bombs among whole ones, and what is no file at all; which are whole."""
    contents = dict(mutations.mutated_images(count))
    contents |= {name: content for name, (content, _) in mutations.bombs().items()}
    for number in range(4):
        contents[f"whole{number}.png"] = mutations.encoded(mutations.photograph(number), "png")
    contents["a_jpeg.png"] = mutations.encoded(mutations.photograph(7), "jpeg")
    contents["pixel.png"] = mutations.png_of(1, 1, bytes(4))
    contents["flat.png"] = mutations.png_of(30_000, 1, bytes(1 + 3 * 30_000))
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    readable = {
        name: reason_of(content, TRANSFORM_OF_JOBS) is None for name, content in contents.items()
    }
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zeros.jpg").symlink_to("/dev/zero")
    (folder / "nowhere.jpg").symlink_to(folder / "gone")
    (folder / "itself.jpg").symlink_to(folder / "itself.jpg")
    with (folder / "long.jpg").open("wb") as file:
        file.truncate(2**40)
    others = ("pipe.jpg", "zeros.jpg", "nowhere.jpg", "itself.jpg", "long.jpg")
    return readable | dict.fromkeys(others, False)


def spec_of(folder: Path, **data: Any) -> JobSpec:
    return small_spec(
        data={
            "uri": str(folder),
            "max_bad": 0.99,
            "transform": TRANSFORM_OF_JOBS.model_dump(),
            **data,
        },
        layers=["relu2", "logits"],
        analyses=[{"kind": "top"}, {"kind": "projection", "units": {"ids": [0]}}],
        compute={"shard_size": 64, "batch_size": 8},
    )


@pytest.mark.ray
def test_a_job_over_hostile_files_leaves_out_each_with_its_reason_inline_and_on_ray(
    ray_cluster: str, tmp_path: Path, fire: Fire, tell: Tell
) -> None:
    readable = hostile_folder(tmp_path / "images", fire.of(120, 3000))
    run_inline(spec_of(tmp_path / "images"), tmp_path / "run")
    rows = deconvoy.open(tmp_path / "run").images().to_pylist()
    assert {row["uri"]: row["skipped"] is None for row in rows} == readable
    assert not [row["uri"] for row in rows if row["skipped"] == ""]
    told = {row["uri"]: row["skipped"] for row in rows}
    assert "is a pipe, a socket or a device" in told["pipe.jpg"] and "device" in told["zeros.jpg"]
    assert "bytes are more than" in told["long.jpg"]
    run_on_ray(spec_of(tmp_path / "images"), tmp_path / "on_ray", workers=1)
    assert_same_results(tmp_path / "run", tmp_path / "on_ray")
    skipped = sum(not whole for whole in readable.values())
    tell("bad bytes", files_of_a_job=len(readable), left_out_with_a_reason=skipped, jobs_lost=0)


def test_above_max_bad_the_job_says_how_many_and_names_some(tmp_path: Path) -> None:
    bad = [name for name, whole in hostile_folder(tmp_path / "images", 24).items() if not whole]
    spec = spec_of(tmp_path / "images", max_bad=0.1)
    with pytest.raises(TooManyBadImages, match=r"^\d+ of \d+ images are unreadable") as e:
        run_inline(spec, tmp_path / "run")
    assert any(name in str(e.value) for name in bad)
    assert "data.max_bad = 0.1 allows" in str(e.value) and "raise data.max_bad" in str(e.value)


# Tar -------------------------------------------------------------------------------------------


def read_all(uri: str) -> tuple[str, int, int]:
    """What a place comes to: the sentence of a refusal, images read, and images left out."""
    try:
        found = find(small_spec(data={"uri": uri}).data.places[0])
    except RequestError as error:
        return str(error), 0, 0
    read = bad = 0
    for name in found.uris:
        name.encode()
        try:
            found.source.read(name, TRANSFORM)
            read += 1
        except ImageUnreadable as error:
            assert str(error)
            bad += 1
    return "", read, bad


PNG = mutations.encoded(mutations.photograph(3), "png")
MEMBERS = {f"{number:03d}.png": PNG for number in range(6)}


def test_mutated_tar_shards_are_refused_or_read_and_lose_no_image_in_silence(
    tmp_path: Path, fire: Fire, tell: Tell
) -> None:
    whole, count, refused = mutations.tar_of({**MEMBERS, "000.cls": b"3"}), fire.of(150, 4000), 0
    for number in range(count):
        place = tmp_path / f"{number}.tar"
        place.write_bytes(mutations.mutated(whole, number, b"x" * 600))
        sentence, read, bad = read_all(str(place))
        refused += bool(sentence)
        place.unlink()
    assert refused > count / 20
    tell("bad bytes", mutated_tar_shards=count, tar_shards_refused=refused)


def test_a_tar_shard_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = mutations.tar_of(MEMBERS)
    end = len(whole.rstrip(b"\0"))
    for length in range(512, end, 1024 + 512):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        assert "cannot be read" in read_all(str(tmp_path / "cut.tar"))[0]
    second = 512 + (len(PNG) + 511) // 512 * 512
    broken = whole[:second] + b"\xff" * 512 + whole[second + 512 :]
    (tmp_path / "broken.tar").write_bytes(broken)
    assert "header at byte" in read_all(str(tmp_path / "broken.tar"))[0]


END = bytes(1024)


@pytest.mark.timeout(60)
def test_hostile_tar_headers_are_told_and_take_no_memory(tmp_path: Path) -> None:
    octal = b"%011o\0"
    huge, negative = b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7, b"\xff" * 12
    shards = {
        "a size beyond the file": mutations.tar_header("a.png", huge) + PNG,
        "a size below nothing": mutations.tar_header("a.png", negative) + END,
        "a size that is no number": mutations.tar_header("a.png", b"not a number") + END,
        "a sparse file": mutations.tar_header("a.png", octal % 0, b"S") + END,
        "a link out": mutations.tar_header("a.png", octal % 0, b"2", "/etc/passwd") + END,
        "a hard link out": mutations.tar_header("a.png", octal % 0, b"1", "../../x.png") + END,
        "a device": mutations.tar_header("a.png", octal % 0, b"3") + END,
        "headers without end": mutations.tar_header("a", octal % 0, b"x") * 2000,
        "no tar": b"PK\3\4" + bytes(5000),
        "nothing": b"",
    }
    for what, content in shards.items():
        (tmp_path / "s.tar").write_bytes(content)
        sentence, read, bad = read_all(str(tmp_path / "s.tar"))
        assert (sentence or bad) and read == 0, what
    # Names lead nowhere: members are never put anywhere.
    named = {"../../escape.png": PNG, "/abs.png": PNG, "a\nb.png": PNG, "x.tar/y.png": PNG}
    (tmp_path / "n.tar").write_bytes(mutations.tar_of(named))
    assert read_all(str(tmp_path / "n.tar")) == ("", 4, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n.tar", "s.tar"]
    with tarfile.open(tmp_path / "u.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("\udcff.png"))
    assert "is not UTF-8" in read_all(str(tmp_path / "u.tar"))[0]


# Parquet ---------------------------------------------------------------------------------------


def table_of(cells: list[Any], labels: list[Any] | None = None) -> pa.Table:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array(cells, kind)}
    if labels is not None:
        columns["label"] = pa.array(labels)
    return pa.table(columns)


def test_mutated_parquet_files_are_refused_or_read(tmp_path: Path, fire: Fire, tell: Tell) -> None:
    pq.write_table(table_of([{"bytes": PNG, "path": "x"}] * 6, [1, 2, 3] * 2), tmp_path / "w")
    whole, count, refused = (tmp_path / "w").read_bytes(), fire.of(150, 4000), 0
    for number in range(count):
        place = tmp_path / f"{number}.parquet"
        place.write_bytes(mutations.mutated(whole, number, whole[::-1]))
        refused += bool(read_all(str(place))[0])
        place.unlink()
    assert refused > count / 20
    tell("bad bytes", mutated_parquet_files=count, parquet_files_refused=refused)


def test_hostile_cells_of_a_table_are_left_out_with_their_reason(tmp_path: Path) -> None:
    paths = ["../../../etc/passwd", "/dev/zero", "a\0b.png", "gopher://x/y", "", ".", None]
    cells = [{"bytes": None, "path": path} for path in paths]
    cells += [{"bytes": b"", "path": "x"}, None, {"bytes": PNG, "path": "/dev/zero"}]
    pq.write_table(table_of(cells), tmp_path / "t.parquet")
    assert read_all(str(tmp_path / "t.parquet")) == ("", 1, len(cells) - 1)


PEAK = """
import sys, resource
from deconvoy.errors import DeconvoyError
from deconvoy.spec import Transform
from tests.runs import small_spec
from workers.found import find
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
try:
    found = find(small_spec(data={"uri": sys.argv[1]}).data.places[0])
    found.source.read(found.uris[0], Transform(resize=40, crop=32))
    told = "read"
except DeconvoyError as error:
    told = str(error)
print(peak() - before, told)
"""


@pytest.mark.parametrize("where", ["image", "label"])
def test_one_value_told_a_thousand_times_takes_no_more_than_the_bound(
    tmp_path: Path, where: str, fire: Fire, tell: Tell
) -> None:
    if where == "image":
        fire.skip_short()
    # 5 GB, in a file of some 10 kB: in one of fewer bytes than rows they are not believed at all.
    long, rows = b"".join(b"%d" % n for n in range(9000)).ljust(2**20, b"\0"), 5000
    many = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([long]))
    few = pa.array([PNG] * rows, pa.binary())
    label = pa.DictionaryArray.from_arrays(
        pa.array([0] * rows, pa.int32()), pa.array([long.decode()])
    )
    table = (
        pa.table({"image": many}) if where == "image" else pa.table({"image": few, "label": label})
    )
    place = tmp_path / "bomb.parquet"
    pq.write_table(
        table, place, compression="zstd", dictionary_pagesize_limit=2**30, store_schema=False
    )
    ran = subprocess.run(
        [sys.executable, "-c", PEAK, str(place)], capture_output=True, text=True, check=True
    )
    taken, told = ran.stdout.split(" ", 1)
    assert "bytes of images" in told or "bytes a label" in told
    assert int(taken) < 3000
    tell("bad bytes", **{f"memory_of_a_table_of_one_{where}_in_MiB": int(taken)})


def test_more_rows_than_bytes_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.nulls(3_000_000, pa.binary())}), tmp_path / "n.parquet")
    assert "declares 3,000,000 rows" in read_all(str(tmp_path / "n.parquet"))[0]


def test_only_our_own_errors_come_of_a_list_of_hostile_paths(tmp_path: Path) -> None:
    lines = ["path", "a\0b.png", "../../etc/passwd", "/dev/zero", "ftp://x/y.png", "x" * 5000]
    (tmp_path / "l.csv").write_text("\n".join(lines))
    try:
        run_inline(spec_of(tmp_path / "l.csv"), tmp_path / "run")
    except DeconvoyError as error:
        assert str(error)
