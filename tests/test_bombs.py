"""Images that are small to look at and take hours or gigabytes: refused wherever they come."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deconvoy.bombs import MAX_SCANS, refuse_bombs
from deconvoy.errors import ImageUnreadable
from tests.fire.mutations import jpeg_of_scans, tiff_of_one_tile
from tests.runs import run_inline, small_spec, write_photographs
from tests.serving import client_of, problem_of, settings_of


def refuse(content: bytes, pixels: int = 10**6) -> None:
    refuse_bombs(Image.open(io.BytesIO(content)), content, pixels)


def test_a_jpeg_of_many_scans_is_refused() -> None:
    refuse(jpeg_of_scans(MAX_SCANS // 2))
    with pytest.raises(ImageUnreadable, match="more than 100 scans"):
        refuse(jpeg_of_scans(MAX_SCANS + 1))


def test_what_follows_a_jpeg_counts_for_nothing() -> None:
    """As of a photograph with a film behind it."""
    film = np.random.default_rng(0).integers(0, 256, 2**24, dtype=np.uint8).tobytes()
    assert film.count(b"\xff\xda") > MAX_SCANS
    refuse(jpeg_of_scans(9) + film)
    with pytest.raises(ImageUnreadable, match="scans"):
        refuse(jpeg_of_scans(MAX_SCANS + 1) + film)


def test_numbers_in_a_segment_of_a_jpeg_begin_no_scan() -> None:
    whole = jpeg_of_scans(9)
    comment = b"\xff\xda" * 30_000
    refuse(whole[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + whole[2:])


def test_pixels_and_tiles_are_counted() -> None:
    with pytest.raises(ImageUnreadable, match="72×64 pixels are more than 2,999"):
        refuse(jpeg_of_scans(1), 2999)
    with pytest.raises(ImageUnreadable, match="tiles of 5000×5000"):
        refuse(tiff_of_one_tile(5000))


def test_the_service_neither_takes_nor_draws_them(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "data", 3)
    spec = small_spec(
        data={"uri": str(tmp_path / "data")}, layers=["relu2"], analyses=[{"kind": "top"}]
    )
    run_inline(spec, tmp_path / "runs/one")
    bomb = jpeg_of_scans(2000)
    os.replace(photographs[0], photographs[0].with_suffix(".old"))
    photographs[0].write_bytes(bomb)
    settings = settings_of(
        tmp_path / "home", runs=str(tmp_path / "runs"), data_roots=(str(tmp_path / "data"),)
    )
    with client_of(settings) as client:
        assert "100 scans" in problem_of(client.post("/v1/uploads", content=bomb), 422, "body")
        assert client.get("/v1/runs/one/images/0.jpg").status_code == 404
        assert client.get("/v1/runs/one/images/1.jpg").status_code == 200
