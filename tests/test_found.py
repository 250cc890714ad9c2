"""Test what lies at a place: lists, tar shards, Parquet files; on disk and behind a web server."""

import functools
import http.server
import io
import json
import pickle
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from deconvoy.errors import ImageUnreadable, RequestError
from deconvoy.files import Files
from deconvoy.spec import DataSpec, Transform
from workers.datasets import Listing, list_images

TRANSFORM = Transform(resize=8, crop=8)
CLASSES = ("cat", "dog", "owl")


def png(shade: int) -> bytes:
    """An image of one shade of red, which tells it apart."""
    buffer = io.BytesIO()
    Image.new("RGB", (9, 8), (shade, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def listed(
    uri: Path | str, classes: Sequence[str] = CLASSES, outputs: int = 3, **fields: object
) -> Listing:
    return list_images(DataSpec.model_validate({"uri": str(uri), **fields}), classes, outputs)


def refusal(uri: Path | str, **fields: object) -> str:
    with pytest.raises(RequestError) as caught:
        listed(uri, **fields)
    return str(caught.value)


def shades(listing: Listing) -> list[int]:
    """Which images are read, in order, by a source that has travelled."""
    source = pickle.loads(pickle.dumps(listing.source))
    return [int(source.read(uri, TRANSFORM).pixels[0, 0, 0]) for uri in listing.uris]


# --- lists ---


def write_list(folder: Path, text: str) -> Path:
    for shade in (1, 2, 3):
        place = folder / "pictures" / f"{shade}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(png(shade))
    (folder / "list.csv").write_text(text, encoding="utf-8")
    return folder / "list.csv"


def test_a_list_names_paths_below_its_folder_and_labels(tmp_path: Path) -> None:
    place = write_list(tmp_path, "path,label\npictures/2.png,owl\npictures/1.png,cat\n")
    listing = listed(place)
    assert list(listing.uris) == ["pictures/1.png", "pictures/2.png"]
    assert list(listing.labels) == [0, 2]
    assert shades(listing) == [1, 2]


def test_labels_of_a_list_may_be_output_indices_or_missing(tmp_path: Path) -> None:
    place = write_list(tmp_path, "path,label\npictures/1.png,2\npictures/3.png,\n")
    assert list(listed(place, classes=()).labels) == [2, None]
    place.write_text("path\npictures/1.png\n", encoding="utf-8")
    listing = listed(place)
    assert not listing.labelled and listing.labels_from == "none: no labels of the list"


def test_whole_numbers_that_pandas_wrote_with_a_point_are_indices(tmp_path: Path) -> None:
    paths = [f"pictures/{number:02d}.png" for number in range(12)]
    rows = [f"{path},{number}.0" for number, path in enumerate(paths)]
    rows[7] = f"{paths[7]},"
    place = write_list(tmp_path, "\n".join(["path,label", *rows]))
    known = [None if number == 7 else number for number in range(12)]
    assert list(listed(place, classes=(), outputs=12).labels) == known
    table = write_parquet(tmp_path / "a.parquet", label=[2.0, 0.0, None, float("nan"), 1.0])
    assert list(listed(table).labels) == [2, 0, None, None, 1]


@pytest.mark.parametrize("label", ["3", "-1", "2.5", "300.0"])
def test_a_number_in_a_list_that_is_no_output_is_refused(tmp_path: Path, label: str) -> None:
    place = write_list(tmp_path, f"path,label\npictures/1.png,1\npictures/2.png,{label}\n")
    shown = label.removesuffix(".0")
    told = f"label '{shown}' of 'pictures/2.png' (labels of the list) is no output index: the model"
    assert f"{told} has 3 outputs" in refusal(place)


def test_unknown_names_in_a_list_are_no_labels(tmp_path: Path) -> None:
    place = write_list(tmp_path, "path,label\npictures/1.png,cow\npictures/2.png,7\n")
    assert listed(place).labels_from == "none: 2 labels of the list do not fit 3 outputs"


def test_a_list_may_name_absolute_paths(tmp_path: Path) -> None:
    place = write_list(tmp_path, f"path\n{tmp_path / 'pictures/3.png'}\n")
    assert shades(listed(place)) == [3]


def test_a_listed_file_that_is_missing_is_unreadable_not_fatal(tmp_path: Path) -> None:
    listing = listed(write_list(tmp_path, "path\ngone.png\n"))
    with pytest.raises(ImageUnreadable, match="No such file"):
        listing.source.read("gone.png", TRANSFORM)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file,label\na.png,1\n", "has no column path (it has file, label)"),
        ("path\n", "lists no images"),
        ("", "has no column path (it has nothing)"),
        ("path,label\na.png,1\n,2\n", "row 2 of its list has no path"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, text: str, told: str) -> None:
    assert told in refusal(write_list(tmp_path, text))


# --- tar shards ---


def write_tar(place: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(place, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return place


def test_tar_files_without_images_are_named(tmp_path: Path) -> None:
    place = write_tar(tmp_path / "a.tar", {"a.txt": b"no image"})
    write_tar(tmp_path / "b.tar", {"a.txt": b"no image"})
    assert "a.tar' holds no images: expected members" in refusal(place)
    assert "a.tar' and 1 more tar files hold no images" in refusal(tmp_path)


def test_samples_of_a_shard_have_the_labels_beside_them(tmp_path: Path) -> None:
    place = write_tar(
        tmp_path / "a.tar",
        {
            "x/2.png": png(2), "x/2.cls": b"1", "x/1.seg.png": png(1), "x/1.cls": b"2\n",
            "./3.jpg.png": png(3), "3.json": json.dumps({"label": "owl"}).encode(), "4.png": png(4),
        },
    )  # fmt: skip
    listing = listed(place, classes=())
    assert list(listing.uris) == [
        "a.tar/3.jpg.png", "a.tar/4.png", "a.tar/x/1.seg.png", "a.tar/x/2.png",
    ]  # fmt: skip
    assert shades(listing) == [3, 4, 1, 2]
    # three labels for three outputs, but one is a name: they count in sorted order
    assert list(listing.labels) == [2, None, 1, 0]


def test_numbers_beside_the_samples_are_output_indices(tmp_path: Path) -> None:
    place = write_tar(tmp_path / "a.tar", {"1.png": png(1), "1.cls": b"2", "2.png": png(2)})
    listing = listed(place)
    assert list(listing.labels) == [2, None]
    assert "output indices" in listing.labels_from


def test_several_shards_are_a_folder_or_a_range(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"shard-{number:03d}.tar", {"1.png": png(number)})
    assert shades(listed(tmp_path)) == [0, 1, 2]
    chosen = listed(tmp_path / "shard-{001..002}.tar")
    assert list(chosen.uris) == ["shard-001.tar/1.png", "shard-002.tar/1.png"]
    assert shades(chosen) == [1, 2]


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("shapes?size=10000001", "at most 10,000,000"),
        ("shapes?size=0", "at least 1"),
        (f"shapes?size={'9' * 5000}", "at most 18 digits"),
        (f"shapes?seed={'9' * 5000}", "at most 18 digits"),
        ("{0..100000}.tar", "too many files: braces are for 1 to 100,000"),
        (f"{{0..{'9' * 60}}}.tar", "too many files"),
        ("{7..3}.tar", "no files"),
    ],
)
def test_no_text_stands_for_more_than_fits_into_memory(uri: str, told: str) -> None:
    with pytest.raises(RequestError, match=told) as caught:
        list_images(DataSpec(uri=uri), (), 10)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("content", [b"", b"no tar file" * 100])
def test_a_shard_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    message = refusal(tmp_path / "a.tar")
    assert "cannot be read" in message or "hold no images" in message


def test_a_shard_that_vanished_leaves_its_images_unreadable(tmp_path: Path) -> None:
    listing = listed(write_tar(tmp_path / "b.tar", {"1.png": png(1)}))
    (tmp_path / "b.tar").write_bytes(b"short")
    from workers import sources

    sources.tar_members.cache_clear()
    with pytest.raises(ImageUnreadable, match="cannot be read"):
        listing.source.read(listing.uris[0], TRANSFORM)


# --- Parquet ---


def write_parquet(place: Path, rows: int = 5, group: int = 2, **columns: Any) -> Path:
    table = {"image": [png(row) for row in range(rows)], **columns}
    pq.write_table(pa.table(table), place, row_group_size=group)
    return place


def test_rows_of_a_table_are_images_with_labels(tmp_path: Path) -> None:
    place = write_parquet(tmp_path / "a.parquet", label=["dog", "owl", "cat", None, "dog"])
    listing = listed(place)
    assert list(listing.uris) == [f"a.parquet#{row}" for row in range(5)]
    assert list(listing.labels) == [1, 2, 0, None, 1]
    assert shades(listing) == list(range(5))
    assert [shades(listed(place, where={"ids": [4, 1]}))] == [[1, 4]]


def test_images_may_be_structs_of_bytes_or_a_path(tmp_path: Path) -> None:
    (tmp_path / "beside.png").write_bytes(png(9))
    cells = [{"bytes": png(7), "path": "7.png"}, {"bytes": None, "path": "beside.png"}]
    pq.write_table(pa.table({"picture": cells, "n": [1, 2]}), tmp_path / "a.parquet")
    assert shades(listed(tmp_path / "a.parquet")) == [7, 9]


def test_an_empty_cell_is_unreadable_not_fatal(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([png(1), None])}), tmp_path / "a.parquet")
    listing = listed(tmp_path / "a.parquet")
    with pytest.raises(ImageUnreadable, match="a.parquet#1 is empty"):
        listing.source.read(listing.uris[1], TRANSFORM)


def test_numbers_get_the_names_the_table_has_for_them(tmp_path: Path) -> None:
    names = ["owl", "cat"]
    told = {"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}
    table = pa.table({"image": [png(0), png(1)], "label": [0, 1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(told)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(listed(tmp_path / "a.parquet").labels) == [2, 0]
    assert list(listed(tmp_path / "a.parquet", classes=()).labels) == [None, None]


def test_columns_can_be_named_and_must_be_there(tmp_path: Path) -> None:
    place = write_parquet(tmp_path / "a.parquet", thumbnail=[png(9)] * 5, kind=[2, 1, 0, 1, 2])
    assert shades(listed(place)) == [0, 1, 2, 3, 4]
    assert shades(listed(place, image_column="thumbnail")) == [9] * 5
    assert list(listed(place, label_column="kind").labels) == [2, 1, 0, 1, 2]
    assert "'thumb' is not in a.parquet" in refusal(place, image_column="thumb")
    assert "it has image, thumbnail, kind" in refusal(place, label_column="label")


def test_a_table_without_images_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "a.parquet")
    assert "no column of image bytes (its columns: a, b)" in refusal(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    assert "cannot be read" in refusal(tmp_path / "b.parquet")


def test_labels_beyond_the_outputs_are_none_and_say_so(tmp_path: Path) -> None:
    listing = listed(write_parquet(tmp_path / "a.parquet", label=[0, 1, 2, 3, 400]))
    assert not listing.labelled
    assert listing.labels_from.endswith("reach 400, but the model has 3 outputs")
    listing = listed(write_parquet(tmp_path / "b.parquet", label=[0, 1, 2, -1, 0]))
    assert listing.labels_from.endswith("reach -1, but the model has 3 outputs")


def test_numbers_of_a_column_that_is_named_are_refused_beyond_the_outputs(tmp_path: Path) -> None:
    place = write_parquet(tmp_path / "a.parquet", kind=[0, 1, 2, -1, 1])
    told = refusal(place, label_column="kind")
    assert "The label '-1' of 'a.parquet#3' (labels of the table) is no output index" in told


def test_many_threads_read_one_table(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    listing = listed(write_parquet(tmp_path / "a.parquet", rows=200, group=16))
    order = np.random.default_rng(0).permutation(200).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda row: listing.source.read(listing.uris[row], TRANSFORM), order)
        assert [int(picture.pixels[0, 0, 0]) for picture in found] == order


# --- which of them ---


def test_where_leaves_classes_and_places(tmp_path: Path) -> None:
    place = write_parquet(tmp_path / "a.parquet", label=["dog", "owl", "cat", None, "dog"])
    assert shades(listed(place, where={"classes": ["dog", 2]})) == [0, 1, 4]
    assert shades(listed(place, where={"classes": ["dog"], "ids": [0, 1]})) == [0]
    assert shades(listed(place, where={"classes": ["dog"]}, limit=1)) == [0]
    assert shades(listed(place, where={"ids": ["a.parquet#3", 1]})) == [1, 3]
    assert shades(listed(place, where={"without": ["a.parquet#3", 1]})) == [0, 2, 4]


@pytest.mark.parametrize(
    ("where", "told"),
    [
        (
            {"classes": ["cow"]},
            "'cow' is no class of the model: give an output index or one of cat",
        ),
        ({"classes": [77]}, "data.where.classes: 77 is no output: the model has 3"),
        ({"classes": [-1]}, "data.where.classes: -1 is no output"),
        ({"ids": [5]}, "data.where.ids has 5, but there are 5 images"),
        ({"without": ["a.parquet#9"]}, "data.where.without has 'a.parquet#9', but there are 5"),
        ({"classes": ["owl"], "ids": [0]}, "leaves none of the 5 images"),
        ({"ids": [-1]}, "greater than or equal to 0"),
    ],
)
def test_a_condition_that_cannot_be_is_refused(
    tmp_path: Path, where: dict[str, Any], told: str
) -> None:
    place = write_parquet(tmp_path / "a.parquet", label=["dog", "owl", "cat", None, "dog"])
    with pytest.raises(ValueError) as caught:
        listed(place, where=where)
    assert told in str(caught.value)


def listed_places(places: list[Path], **data: Any) -> Listing:
    spec = DataSpec.model_validate({"uri": [str(place) for place in places], **data})
    return list_images(spec, CLASSES, len(CLASSES))


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    first = write_parquet(tmp_path / "a.parquet", label=["dog", "owl", "cat", None, "dog"])
    return [first, write_parquet(tmp_path / "b.parquet", rows=3, label=["owl", "dog", "cat"])]


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ({"ids": [4, 1]}, ["a.parquet#1", "a.parquet#4", *(f"+1:b.parquet#{i}" for i in range(3))]),
        ({"ids": ["+1:b.parquet#2", 0]}, ["a.parquet#0", "+1:b.parquet#2"]),
        ({"ids": ["+1:b.parquet#0"]}, [*(f"a.parquet#{i}" for i in range(5)), "+1:b.parquet#0"]),
        (
            {"without": [0, 2, 3, "+1:b.parquet#1", "a.parquet#1"]},
            ["a.parquet#4", "+1:b.parquet#0", "+1:b.parquet#2"],
        ),
        ({"classes": ["dog"], "ids": [1, 4]}, ["a.parquet#4", "+1:b.parquet#1"]),
    ],
)
def test_numbers_are_of_the_first_place_and_paths_of_later_ones_carry_its_number(
    two: list[Path], where: dict[str, Any], left: list[str]
) -> None:
    assert list(listed_places(two, where=where).uris) == left


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ({"ids": [6]}, "data.where.ids has 6, but there are 5 images, counted"),
        ({"without": ["b.parquet#0"]}, "has 'b.parquet#0', but there are 5 images, counted"),
        (
            {"ids": ["+1:b.parquet#3"]},
            "has '+1:b.parquet#3', but there are 3 images in place 1 of data.uri, counted from 0 "
            "in sorted path order, and named like '+1:b.parquet#0'",
        ),
        (
            {"without": ["+2:b.parquet#0"]},
            "has '+2:b.parquet#0', but data.uri has 2 places: images of the last one are named +1:",
        ),
        ({"ids": []}, "leaves none of the 5 images"),
    ],
)
def test_an_image_no_place_has_is_refused(
    two: list[Path], where: dict[str, Any], told: str
) -> None:
    with pytest.raises(RequestError) as caught:
        listed_places(two, where=where)
    assert told in str(caught.value)


# --- the web ---


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """The standard library's file server, with the ranges it lacks."""

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        place = Path(self.translate_path(self.path))
        if asked is None or not place.is_file():
            super().do_GET()
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        content = place.read_bytes()
        part = content[int(first) : int(last or len(content) - 1) + 1]
        self.send_response(206)
        self.send_header(
            "Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        )
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Last-Modified", self.date_time_string(place.stat().st_mtime))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server, and the folder it serves."""
    folder = tmp_path_factory.mktemp("web")
    handler = functools.partial(_Ranges, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


def test_tables_shards_and_lists_are_read_from_the_web(web: tuple[str, Path]) -> None:
    address, folder = web
    write_parquet(folder / "a.parquet", label=["dog", "owl", "cat", None, "dog"])
    write_tar(folder / "a.tar", {"1.png": png(1), "1.cls": b"2", "2.png": png(2)})
    write_list(folder, "path,label\npictures/2.png,owl\n")
    assert shades(listed(f"{address}/a.parquet")) == list(range(5))
    assert list(listed(f"{address}/a.tar").labels) == [2, None]
    assert shades(listed(f"{address}/a.tar")) == [1, 2]
    assert shades(listed(f"{address}/list.csv")) == [2]


def test_a_list_on_disk_may_name_addresses(web: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = web
    write_list(folder, "")
    listing = listed(write_list(tmp_path, f"path\n{address}/pictures/3.png\n"))
    assert shades(listing) == [3]


def test_what_the_web_does_not_have_is_told(web: tuple[str, Path]) -> None:
    address, _ = web
    assert "cannot be read" in refusal(f"{address}/gone.parquet")
    assert "web servers do not list folders" in refusal(address)
    with pytest.raises(FileNotFoundError, match="gone.png is not there"):
        Files(address).read("gone.png")
