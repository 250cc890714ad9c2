"""Test reading a run: arrays, tables, figures; lazily, while it is made, and where it is broken."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

import deconvoy
from deconvoy.errors import MissingExtra, RequestError, RunNotFound, RunUnreadable
from deconvoy.images_table import images_part
from deconvoy.schema import FORMAT, IMAGE_COLUMNS, LAYER_ARRAYS, histogram_edges, image_part_path
from deconvoy.store import RunStore
from tests.runs import LAYERS, run_inline, small_spec
from workers.shapes import CLASSES


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("read") / "run"
    run_inline(small_spec(name="to read"), url)
    return url


@pytest.fixture
def run(place: Path) -> deconvoy.Run:
    return deconvoy.open(place)


def test_a_run_tells_what_it_is(run: deconvoy.Run, place: Path) -> None:
    assert run.spec.name == "to read"
    assert run.layer_names == LAYERS
    assert run.classes == CLASSES
    assert repr(run) == f"Run({str(place)!r}, done, 4 layers)"
    assert deconvoy.open(str(place)).url == str(place)


def test_layers_are_told_in_execution_order_with_their_fields(run: deconvoy.Run) -> None:
    table = run.layers().to_pylist()
    assert [row["layer"] for row in table] == list(LAYERS)
    second = table[0]
    assert (second["units"], second["height"], second["width"]) == (64, 16, 16)
    assert second["field_size"] == [27, 27]
    assert second["projected_units"] == 3
    assert table[-1]["projected_units"] == 0
    assert (table[-1]["units"], table[-1]["height"], table[-1]["width"]) == (10, 1, 1)


def test_a_unit_has_the_documented_arrays(run: deconvoy.Run) -> None:
    unit = run.unit("relu2", 1)
    assert (unit.layer, unit.index) == ("relu2", 1)
    assert (unit.score.shape, unit.score.dtype) == ((9,), np.float32)
    assert (unit.image.shape, unit.image.dtype) == ((9,), np.int64)
    assert (unit.position.shape, unit.position.dtype) == ((9, 2), np.int32)
    assert (unit.box.shape, unit.window.shape) == ((9, 4), (9, 4))
    height, width = (unit.window[0, 2 + i] - unit.window[0, i] for i in (0, 1))
    assert (unit.patches.shape, unit.patches.dtype) == ((9, height, width, 3), np.uint8)
    assert (unit.projections.shape, unit.projections.dtype) == (unit.patches.shape, np.float32)
    assert list(unit.score) == sorted(unit.score, reverse=True)
    assert unit.labels == tuple(CLASSES[i % 10] for i in unit.image)


def test_boxes_lie_in_the_image_and_in_their_windows(run: deconvoy.Run) -> None:
    for layer in LAYERS:
        for index in range(10):
            unit = run.unit(layer, index)
            there = unit.image >= 0
            box, window = unit.box[there], unit.window[there]
            assert ((box >= 0) & (box <= 64)).all()
            assert (box[:, :2] < box[:, 2:]).all()
            assert (window[:, :2] <= box[:, :2]).all()
            assert (window[:, 2:] >= box[:, 2:]).all()


def test_a_dead_unit_says_so(run: deconvoy.Run) -> None:
    images = np.asarray(run.layer_group("relu7")["image"][:])
    dead = np.flatnonzero(images[:, 0] < 0)
    unit = run.unit("relu7", int(dead[0]))
    assert unit.dead
    assert unit.labels == ("",) * 9
    assert (unit.score == -math.inf).all()
    assert not run.unit("logits", 0).dead


def test_the_table_has_one_row_a_hit_and_agrees_with_the_units(run: deconvoy.Run) -> None:
    table = run.table()
    assert table.column_names == [
        *("layer", "unit", "rank", "score", "image_id", "uri", "label"),
        *("y", "x", "y0", "x0", "y1", "x1"),
    ]
    hits = sum(int((np.asarray(run.layer_group(layer)["image"][:]) >= 0).sum()) for layer in LAYERS)
    assert table.num_rows == hits
    rows = [r for r in run.table("relu2").to_pylist() if r["unit"] == 40]
    unit = run.unit("relu2", 40)
    assert [r["score"] for r in rows] == unit.score[: len(rows)].tolist()
    assert [r["image_id"] for r in rows] == unit.image[: len(rows)].tolist()
    assert [[r["y0"], r["x0"], r["y1"], r["x1"]] for r in rows] == unit.box[: len(rows)].tolist()
    assert [r["uri"] for r in rows] == [str(i) for i in unit.image[: len(rows)]]
    assert [r["label"] for r in rows] == [i % 10 for i in unit.image[: len(rows)]]
    assert -1 not in table.column("image_id").to_pylist()


def test_images_have_the_documented_columns(run: deconvoy.Run) -> None:
    table = run.images()
    documented = [(name, dtype.replace("float32", "float")) for name, dtype, _ in IMAGE_COLUMNS]
    assert [(field.name, str(field.type)) for field in table.schema] == documented


def test_arrays_are_those_of_the_schema_with_named_dims_and_a_meaning(run: deconvoy.Run) -> None:
    group = run.layer_group("relu2")
    for field in LAYER_ARRAYS:
        array: Any = group[field.name]
        assert array.metadata.dimension_names == field.dims
        assert array.attrs["meaning"] == field.meaning
        assert str(array.dtype) in field.dtype
    assert {name for name, _ in group.arrays()} == {field.name for field in LAYER_ARRAYS}
    edges = [float(edge) for edge in group["histogram"].attrs["edges"]]  # type: ignore[union-attr]
    assert edges == histogram_edges().tolist()


def test_top1_is_the_share_of_labelled_images_that_are_right(run: deconvoy.Run) -> None:
    images = run.images().to_pylist()
    right = [image["label"] == image["predicted"] for image in images]
    assert run.top1() == sum(right) / len(right)


def test_units_without_pictures_say_what_to_do(run: deconvoy.Run) -> None:
    assert run.projected_units("relu2") == [0, 1, 40]
    with pytest.raises(RunNotFound, match=r"Unit 5 of layer 'relu2'.*analyses\.projection"):
        _ = run.unit("relu2", 5).patches
    with pytest.raises(RunNotFound, match="Unit 0 of layer 'logits'"):
        _ = run.unit("logits", 0).projections


def test_figures_are_drawn_of_projected_units(run: deconvoy.Run) -> None:
    one = run.unit("relu2", 0).figure()
    page = run.figure("relu2")
    assert page.width > one.width or page.height > one.height
    assert run.figure("relu2", [40]).size == one.size
    with pytest.raises(RunNotFound, match="no projections"):
        run.figure("logits")


def test_xarray_opens_a_layer_lazily_with_its_dims(run: deconvoy.Run) -> None:
    pytest.importorskip("xarray")
    layer = run.xarray("layers/relu2")
    assert dict(layer.sizes)["unit"] == 64
    assert layer["score"].dims == ("unit", "rank")
    assert layer["score"].attrs["unit"] == "activation"
    np.testing.assert_array_equal(layer["score"][40], run.unit("relu2", 40).score)


def test_without_xarray_the_extra_is_named(
    run: deconvoy.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "xarray", None)
    with pytest.raises(MissingExtra, match=r"deconvoy\[xarray\]"):
        run.xarray("layers/relu2")


@pytest.mark.parametrize(
    ("layer", "index", "said"),
    [
        ("relu22", 0, "no layer 'relu22'; nearest: relu2"),
        ("zzz", 0, "there are: relu2, relu5, relu7"),
        ("relu2", 64, "units 0 to 63, so there is no unit 64"),
        ("relu2", -1, "units 0 to 63, so there is no unit -1"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(
    run: deconvoy.Run, layer: str, index: int, said: str
) -> None:
    with pytest.raises(RunNotFound) as caught:
        run.unit(layer, index)
    assert said in str(caught.value)


def test_a_place_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound, match="no run at"):
        deconvoy.open(tmp_path)
    with pytest.raises(RequestError, match="'ftp://host/run' is of no kind that is supported"):
        deconvoy.open("ftp://host/run")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"zarr_format": 2}'])
def test_a_broken_group_is_told_as_such(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "zarr.json").write_bytes(content)
    with pytest.raises(RunUnreadable, match=str(tmp_path)):
        deconvoy.open(tmp_path)


def test_another_format_is_refused_by_name(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "newer", attributes={"format": "deconvoy-run/2"})
    with pytest.raises(RunUnreadable, match=f"deconvoy-run/2.*{FORMAT}"):
        deconvoy.open(tmp_path / "newer")
    zarr.create_group(tmp_path / "foreign")
    with pytest.raises(RunUnreadable, match="None"):
        deconvoy.open(tmp_path / "foreign")


def test_a_run_that_is_still_scanned_says_so(place: Path, tmp_path: Path) -> None:
    url = tmp_path / "run"
    url.mkdir()
    content = json.loads((place / "zarr.json").read_text())
    del content["attributes"]["results"]
    (url / "zarr.json").write_text(json.dumps(content))
    begun = deconvoy.open(url)
    assert begun.layer_names == LAYERS
    with pytest.raises(RunNotFound, match="has no results yet"):
        begun.unit("relu2", 0)
    with pytest.raises(RunNotFound, match="No images"):
        begun.images()


# Within a picture, in the index of the shard; and a shard cut short.
@pytest.mark.parametrize("damage", ["a bit early", "a bit late", "cut short"])
def test_pictures_whose_bytes_have_changed_are_never_shown_as_if_they_were_right(
    place: Path, tmp_path: Path, damage: str
) -> None:
    url = tmp_path / "run"
    shutil.copytree(place, url)
    (shard,) = (p for p in (url / "layers/relu2/patch/c").rglob("*") if p.is_file())
    content = bytearray(shard.read_bytes())
    content[100 if damage == "a bit early" else -3] ^= 1
    shard.write_bytes(bytes(content[:50] if damage == "cut short" else content))
    with pytest.raises(RunUnreadable, match="'layers/relu2/patch' is broken"):
        _ = deconvoy.open(url).unit("relu2", 0).patches


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys that Zarr asks a folder for, from now on."""
    asked: list[str] = []
    get = zarr.storage.LocalStore.get

    async def spy(self: Any, key: str, *rest: Any, **named: Any) -> Any:
        asked.append(key)
        return await get(self, key, *rest, **named)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", spy)
    return asked


def test_a_unit_is_read_by_its_own_chunk_alone(
    run: deconvoy.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = counted(monkeypatch)
    _ = run.unit("relu2", 40).patches
    assert any("patch/c/" in key for key in read)
    assert not any("projection/c/" in key or "relu5" in key for key in read)


def test_a_run_whose_driver_was_killed_says_so(place: Path, tmp_path: Path) -> None:
    url = tmp_path / "run"
    shutil.copytree(place, url)
    group = zarr.open_group(url, mode="r+")
    group.attrs.update({"state": {"status": "running"}})
    lock = url / "ledger/driver.lock"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = socket.gethostname()
    for driver, status in {
        f"{gone.pid} on {here}": "interrupted",
        f"{gone.pid} on another": "running",
        f"{os.getpid()} on {here}": "running",
        "": "running",
    }.items():
        lock.write_text(driver)
        assert deconvoy.open(url).status == status


def test_a_unit_without_pictures_says_which_have_some(run: deconvoy.Run) -> None:
    with pytest.raises(RunNotFound, match=r"only units 0, 1, 40 were projected\. analyses\.proj"):
        run.unit("relu2", 5).patches  # noqa: B018
    with pytest.raises(RunNotFound, match="its layer was not projected"):
        run.figure("logits")


def test_outputs_are_called_by_their_class(run: deconvoy.Run) -> None:
    assert [run.output_name("logits", i) for i in range(3)] == list(CLASSES[:3])
    assert run.output_name("relu2", 0) == ""


def test_the_tables_of_a_finished_run_are_read_once(
    run: deconvoy.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, table = run.unit("relu2", 1), run.table("relu2")
    assert not first.dead and first.projected
    first.score[:] = 0  # a reader's own copy
    asked = counted(monkeypatch)
    again = run.unit("relu2", 1)
    assert again.score.any() and again.labels == first.labels and again.projected
    assert run.unit("relu2", 63).score.shape == (9,) and not run.unit("relu2", 63).projected
    assert run.table("relu2").equals(table) and asked == []
    run.unit("relu5", 0)
    assert {key.split("/")[1] for key in asked} == {"relu5"}


def test_a_run_that_is_not_finished_is_always_read_anew(place: Path, tmp_path: Path) -> None:
    url = tmp_path / "run"
    shutil.copytree(place, url)
    zarr.open_group(url, mode="r+").attrs["state"] = {"status": "running"}
    run = deconvoy.open(url)
    before = run.unit("relu2", 1).score[0]
    group = zarr.open_group(url, mode="r+")
    group["layers/relu2/score"][1, 0] = before + 1  # type: ignore[index]
    assert run.unit("relu2", 1).score[0] == before + 1
    assert run.table("relu2")["score"].to_pylist()[9] == before + 1


def test_images_of_a_scan_under_way_are_read_anew(place: Path, tmp_path: Path) -> None:
    url = tmp_path / "run"
    shutil.copytree(place, url)
    attributes = json.loads((url / "zarr.json").read_text())
    attributes["attributes"]["state"] = {"status": "running"}
    del attributes["attributes"]["results"]
    (url / "zarr.json").write_text(json.dumps(attributes))
    last = sorted((url / "images").iterdir())[-1]
    content = last.read_bytes()
    last.unlink()
    run = deconvoy.open(url)
    assert len(run.images()) == 32
    last.write_bytes(content)
    assert len(run.images()) == 40


@pytest.mark.parametrize("damage", ["cut short", "a bit"])
def test_a_damaged_part_of_the_images_table_is_told_whatever_is_read_of_it(
    small_run: Path, tmp_path: Path, damage: str
) -> None:
    place, path = tmp_path / "run", image_part_path(0)
    shutil.copytree(small_run, place)
    whole = (place / path).read_bytes()
    assert len(images_part(RunStore(place), path, ["uri"])) > 0
    group = pq.read_metadata(place / path).row_group(0)
    names = [group.column(number).path_in_schema for number in range(group.num_columns)]
    bit = group.column(names.index("uri")).data_page_offset + 40
    spoilt = whole[:bit] + bytes([whole[bit] ^ 1]) + whole[bit + 1 :]
    (place / path).write_bytes(whole[:-40] if damage == "cut short" else spoilt)
    with pytest.raises(RunUnreadable, match=f"'{path}' of .* is broken"):
        images_part(RunStore(place), path)
    with pytest.raises(RunUnreadable, match="is broken"):
        deconvoy.open(place).images()
