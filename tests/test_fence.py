"""A service reads below its roots alone, wherever lists, links and addresses lead."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from deconvoy import fence
from deconvoy.errors import ImageUnreadable, OutsideRoots
from deconvoy.files import Files
from deconvoy.spec import Transform
from tests.runs import write_photographs
from workers.sources import FileSource, ParquetSource

TRANSFORM = Transform(resize=32, crop=32)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Photographs inside, and one outside."""
    write_photographs(tmp_path / "root", 2)
    write_photographs(tmp_path / "outside", 1)
    fence.put_up([str(tmp_path / "root")])
    yield tmp_path / "root"
    fence.put_up(None)


def outside(root: Path) -> Path:
    return next((root.parent / "outside").rglob("*.*g"))


def test_what_lies_inside_is_read(root: Path) -> None:
    inside = next(root.rglob("*.*g")).relative_to(root)
    assert FileSource(str(root)).read(str(inside), TRANSFORM).pixels.shape == (3, 32, 32)


@pytest.mark.parametrize("how", ["absolute", "dots", "link", "s3", "http"])
def test_what_a_list_names_elsewhere_is_not(root: Path, how: str) -> None:
    (root / "link").symlink_to(outside(root))
    uri = {
        "absolute": str(outside(root)),
        "dots": f"../{outside(root).relative_to(root.parent)}",
        "link": "link",
        "s3": "s3://bucket/private.png",
        "http": "http://127.0.0.1:9/private.png",
    }[how]
    with pytest.raises(ImageUnreadable, match="not below a root that this service reads from"):
        FileSource(str(root)).read(uri, TRANSFORM)


@pytest.mark.parametrize(
    "path",
    ["..\\private\\x.png", "a\\..\\..\\private", "%2e%2e/private", "../private", "a/../../private"],
)
@pytest.mark.parametrize("place", ["http://images.example/public", "s3://bucket/public"])
def test_no_address_leads_up_from_a_root(place: str, path: str) -> None:
    """To a client of http a backslash is a slash."""
    assert fence.below_any(f"{place}/a/x.png", [place])
    assert not fence.below_any(f"{place}/{path}", [place])


def test_nor_what_a_parquet_cell_names(root: Path) -> None:
    cell = {"bytes": None, "path": str(outside(root))}
    pq.write_table(pa.table({"image": [cell]}), root / "list.parquet")
    with pytest.raises(ImageUnreadable, match="not below a root"):
        ParquetSource(str(root), "image").read("list.parquet#0", TRANSFORM)


def test_bytes_in_a_parquet_cell_are_read(root: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(buffer, "PNG")
    cell = {"bytes": buffer.getvalue(), "path": str(outside(root))}
    pq.write_table(pa.table({"image": [cell]}), root / "cells.parquet")
    assert ParquetSource(str(root), "image").read("cells.parquet#0", TRANSFORM).width == 40


def test_every_way_to_read_a_file_asks(root: Path) -> None:
    files, name = Files(str(root.parent)), str(outside(root).relative_to(root.parent))
    for read in (
        lambda: files.read(name),
        lambda: files.read_range(name, 0, 1),
        lambda: files.open(name),
        lambda: files.entry(name),
        lambda: list(files.entries()),
    ):
        with pytest.raises(OutsideRoots):
            read()
