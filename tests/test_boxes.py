"""Boxes of objects: read from files and drawings, and mapped to where the real transform puts them.

The oracle draws a white rectangle on black, lets the transform have it, and looks where it is.
"""

import io
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from deconvoy.errors import RequestError
from deconvoy.places import anchored
from deconvoy.spec import DataSpec, Transform
from tests.runs import small_spec, write_photographs
from workers.annotations import LOOKED_AT
from workers.boxes import boxes_of, in_input
from workers.datasets import list_images
from workers.images import decode
from workers.job import settle
from workers.shapes import SIDE, render

Corners = tuple[int, int, int, int]


def seen(size: tuple[int, int], corners: Corners, transform: Transform) -> list[int]:
    """Where a white rectangle is after the transform: y0, x0, y1, x1 of what is half white."""
    height, width = size
    x0, y0, x1, y1 = corners
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    bright = decode(content.getvalue(), transform).pixels[0].numpy() > 127
    rows, cols = (np.flatnonzero(bright.any(axis)) for axis in (1, 0))
    return [int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1]


def mapped(size: tuple[int, int], corners: Corners, transform: Transform) -> list[list[int]]:
    found: list[list[int]] = in_input(np.array([corners], float), size, transform).tolist()
    return found


@pytest.mark.parametrize(
    ("size", "corners", "resize", "crop"),
    [
        ((80, 80), (10, 20, 30, 60), 80, 80),  # as it is
        ((160, 160), (20, 40, 60, 120), 80, 80),  # halved
        ((160, 240), (60, 40, 160, 120), 80, 64),  # halved, cropped on both sides
        ((240, 160), (20, 60, 100, 160), 80, 64),
        ((81, 80), (10, 20, 30, 60), 80, 64),  # an odd margin
        ((40, 60), (4, 6, 40, 30), 40, 64),  # smaller than the crop: padded
        ((60, 39), (4, 6, 30, 50), 39, 64),
        ((40, 200), (60, 6, 140, 30), 40, 64),  # padded along one axis, cropped along the other
        ((160, 240), (0, 40, 140, 120), 80, 64),  # cut by the crop
        ((20, 20), (5, 5, 15, 10), 80, 80),  # enlarged
    ],
)
def test_a_box_is_where_the_transform_puts_the_object(
    size: tuple[int, int], corners: Corners, resize: int, crop: int
) -> None:
    transform = Transform(resize=resize, crop=crop)
    assert mapped(size, corners, transform) == [seen(size, corners, transform)]


@pytest.mark.parametrize("seed", range(8))
def test_at_any_scale_a_box_holds_the_object_and_at_most_a_pixel_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(50, 300)), int(rng.integers(50, 300)))
    y0, x0 = (int(rng.integers(n // 3, n // 2)) for n in size)
    y1, x1 = y0 + size[0] // 8 + 2, x0 + size[1] // 8 + 2
    transform = Transform(resize=int(rng.integers(60, 120)), crop=int(rng.integers(60, 120)))
    ((*ours,),) = mapped(size, (x0, y0, x1, y1), transform)
    theirs = seen(size, (x0, y0, x1, y1), transform)
    outwards = np.array([1, 1, -1, -1]) * (np.array(theirs) - ours)
    assert ((outwards >= 0) & (outwards <= 1)).all(), (ours, theirs)


def test_a_box_outside_the_crop_is_dropped_and_the_others_stay() -> None:
    boxes = np.array([[0, 0, 40, 100], [90, 10, 110, 40]], float)
    transform = Transform(resize=100, crop=100)
    assert in_input(boxes, (100, 200), transform).tolist() == [[10, 40, 40, 60]]


def test_boxes_of_a_turned_photograph_are_those_of_the_picture_as_it_is_shown() -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:20, 30:50] = 255
    turned, content = Image.fromarray(pixels), io.BytesIO()
    turned.getexif()[0x0112] = 6  # to be turned by 90° to the right: 60 rows of 40
    turned.save(content, "JPEG", quality=95, exif=turned.getexif())
    picture = decode(content.getvalue(), Transform(resize=40, crop=40))
    assert (picture.height, picture.width) == (60, 40)
    bright = np.argwhere(picture.pixels[0].numpy() > 127)
    shown = np.array([[20, 30, 30, 50]], float)
    ((*box,),) = in_input(shown, (60, 40), Transform(resize=40, crop=40)).tolist()
    assert box == [*bright.min(0), *(bright.max(0) + 1)]


def test_shapes_know_their_own_boxes() -> None:
    job = settle(small_spec())
    assert job.boxes is not None
    y0, x0, y1, x1 = render(1, 7).box
    assert job.boxes.of("7").tolist() == [[x0, y0, x1, y1]]
    assert in_input(job.boxes.of("7"), (SIDE, SIDE), job.packed.transform).tolist() == [
        [y0, x0, y1, x1]
    ]


def test_of_several_places_each_has_its_own(tmp_path: Path) -> None:
    write_photographs(tmp_path / "images", 2)
    data = DataSpec(uri=(str(tmp_path / "images"), "shapes?size=4&seed=5"))
    found = boxes_of(data, list_images(data, (), 10))
    assert found is not None
    assert found.of("a/000.png").shape == (0, 4)
    y0, x0, y1, x1 = render(5, 2).box
    assert found.of("+1:2").tolist() == [[x0, y0, x1, y1]]


def listed(folder: Path, lines: str) -> DataSpec:
    if not (folder / "images").exists():
        write_photographs(folder / "images", 4)
    (folder / "boxes.csv").write_text(lines, encoding="utf-8")
    return DataSpec(uri=str(folder / "images"), boxes=str(folder / "boxes.csv"))


def test_a_file_of_boxes_is_read_as_csv_and_as_parquet(tmp_path: Path) -> None:
    lines = "path,x0,y0,x1,y1\na/000.png,1,2,30,40\nb/001.png,5,5,9,9\na/000.png,2.5,3,8,9\n"
    data = listed(tmp_path, lines)
    listing = list_images(data, (), 10)
    of_csv = boxes_of(data, listing)
    table = {"path": ["a/000.png", "b/001.png", "a/000.png"], "x0": [1.0, 5, 2.5],
             "y0": [2, 5, 3], "x1": [30, 9, 8], "y1": [40, 9, 9]}  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "boxes.parquet")
    of_parquet = boxes_of(
        data.model_copy(update={"boxes": str(tmp_path / "boxes.parquet")}), listing
    )
    for found in (of_csv, of_parquet):
        assert found is not None
        assert found.of("a/000.png").tolist() == [[1, 2, 30, 40], [2.5, 3, 8, 9]]
        assert found.of("a/002.png").shape == (0, 4)
    assert boxes_of(data.model_copy(update={"boxes": None}), listing) is None


def test_boxes_of_images_that_are_not_there_are_told_and_the_others_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = listed(tmp_path, "path,x0,y0,x1,y1\na/000.png,1,2,30,40\ngone.png,1,1,2,2\n")
    with caplog.at_level(logging.WARNING):
        found = boxes_of(data, list_images(data, (), 10))
    assert found is not None and len(found.of("a/000.png")) == 1
    assert "1 of the 2 images it names are not there ('gone.png')" in caplog.text
    caplog.clear()
    limited = data.model_copy(update={"limit": 2})
    boxes_of(limited, list_images(limited, (), 10))
    assert not caplog.text, "those that a limit leaves out are there all the same"


def test_a_box_beyond_its_file_is_refused_wherever_it_is_found(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="reaches beyond its file of 40×30 pixels"):
        in_input(np.array([[0, 0, 30, 40.0]]), (30, 40), Transform(resize=20, crop=20))
    slack = np.array([[-0.5, 0, 40.5, 31]])  # some tools count from 1
    assert in_input(slack, (30, 40), Transform(resize=30, crop=30)).tolist() == [[0, 0, 30, 30]]


def test_few_images_are_decoded_before_a_job_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photographs(tmp_path / "images", 40)
    paths = [f"{'ab'[n % 2]}/{n:03d}.png" for n in range(40)]
    rows = "".join(f"{path},1,1,50,50\n" for path in paths)
    data = listed(tmp_path, f"path,x0,y0,x1,y1\n{rows}")
    listing, read = list_images(data, (), 10), []
    original = type(listing.source).read
    monkeypatch.setattr(
        type(listing.source), "read", lambda *a: (read.append(a[1]), original(*a))[1]
    )
    boxes_of(data, listing)
    assert len(read) == LOOKED_AT


def test_the_path_of_boxes_is_absolute_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boxes.csv").touch()
    spec = small_spec(data={"boxes": "boxes.csv"})
    assert anchored(spec).data.boxes == str(tmp_path / "boxes.csv")
    assert anchored(small_spec(data={"boxes": "s3://b/x.csv"})).data.boxes == "s3://b/x.csv"
