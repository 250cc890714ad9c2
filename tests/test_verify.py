"""Damage of every kind is found and named; a whole run is found whole, also without the model."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import deconvoy
from deconvoy.errors import RequestError
from deconvoy.schema import EXAMPLE_ARRAYS, LAYER_ARRAYS, OUTLIER_ARRAYS
from deconvoy.store import RunStore
from tests.runs import resume_inline, run_inline, small_spec, write_photographs
from workers.replay import drawn
from workers.seal import SEAL, finish
from workers.verify import PICTURES, Report, verify
from workers.writer import write_pictures

ROOT = Path(__file__).resolve().parents[1]

TOP = {
    "kind": "top",
    "bottom": 3,
    "per_class": 2,
    "bands": {"count": 4, "examples": 2},
    "outliers": {"multiple": 1.02, "at_most": 3},
}
"""All that the top analysis can be asked for, so that a layer has every array there is."""

ARRAYS = [field.name for field in (*LAYER_ARRAYS, *EXAMPLE_ARRAYS, *OUTLIER_ARRAYS)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of 20 images in three shards; unit 0 and 1 of the maps are projected."""
    url = tmp_path_factory.mktemp("verified") / "run"
    spec = small_spec(
        data={"uri": "shapes?size=20&seed=1"},
        layers=["relu2", "logits"],
        analyses=[TOP, {"kind": "projection", "units": {"ids": [0, 1]}}],
    )
    run_inline(spec, url)
    return url


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def places(report: Report) -> list[str]:
    return [fault.place for fault in report.faults]


def chunk_of(run: Path, path: str) -> Path:
    """The first chunk of an array."""
    return min(p for p in (run / path / "c").rglob("*") if p.is_file())


def test_a_whole_run_is_found_whole(whole: Path) -> None:
    report = verify(str(whole), 50)
    assert report.faults == [] and report.hits == 50
    chunks = [p for p in (whole / "layers").rglob("c/**/*") if p.is_file()]
    assert report.chunks == len(chunks) > 20


def test_without_a_sample_neither_torch_nor_the_model_is_needed(run: Path) -> None:
    code = (
        "import sys; from service.launcher import verify; import json; "
        f"found = verify({str(run)!r}, 0); "
        "print(json.dumps([found, 'torch' in sys.modules]))"
    )
    attributes = json.loads((run / "zarr.json").read_text())
    attributes["attributes"]["spec"]["model"]["name"] = "gone.py:model"
    (run / "zarr.json").write_text(json.dumps(attributes))
    finish(RunStore(run))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    found, torch_loaded = json.loads(done.stdout)
    assert found["faults"] == [] and found["chunks"] > 20 and not torch_loaded


@pytest.mark.parametrize("name", ARRAYS)
def test_one_changed_byte_of_any_array_is_found_and_named(run: Path, name: str) -> None:
    chunk = chunk_of(run, f"layers/relu2/{name}")
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 4
    chunk.write_bytes(bytes(content))
    report = verify(str(run), 20)
    assert places(report) == [chunk.relative_to(run).as_posix()]
    assert report.hits == 0  # of a broken run no hits are read


@pytest.mark.parametrize("name", ARRAYS)
def test_a_missing_chunk_of_any_array_is_found_and_named(run: Path, name: str) -> None:
    chunk = chunk_of(run, f"layers/relu2/{name}")
    chunk.unlink()
    assert chunk.relative_to(run).as_posix() in places(verify(str(run), 0))


@pytest.mark.parametrize(
    "path",
    [
        "layers/logits/zarr.json",
        "layers/logits/score/zarr.json",
        "layers/relu2/patch/zarr.json",
        "images/part-000001.parquet",
        "ledger/scan/part-000002.npz",
    ],
)
def test_other_missing_files_are_found_and_named(run: Path, path: str) -> None:
    (run / path).unlink()
    assert path in places(verify(str(run), 0))


@pytest.mark.parametrize(
    "path",
    [
        "layers/relu2/zarr.json",
        "layers/logits/image/zarr.json",
        "images/part-000001.parquet",
        "ledger/scan/part-000002.npz",
        "ledger/projection/relu2/item-000000.json",
    ],
)
def test_other_files_that_cannot_be_read_are_named(run: Path, path: str) -> None:
    content = (run / path).read_bytes()
    (run / path).write_bytes(content[: len(content) // 2])
    assert path in places(verify(str(run), 0))


def test_a_changed_byte_in_the_images_table_is_found(run: Path) -> None:
    part = run / "images/part-000001.parquet"
    content = bytearray(part.read_bytes())
    before, found = deconvoy.open(run).images(), 0
    for place in range(40, len(content), 151):
        content[place] ^= 1
        part.write_bytes(bytes(content))
        named = places(verify(str(run), 0))
        content[place] ^= 1
        found += bool(named)
        # Headers of pages have no checksum; some bytes of them mean nothing to a reader.
        assert named == ["images/part-000001.parquet"] or deconvoy.open(run).images() == before
    assert found > 5


def test_what_is_all_nothing_has_a_file_so_that_its_loss_is_seen(run: Path) -> None:
    folders = [run / "layers/relu2" / name for name in ("scale", "projected", "patch")]
    files = [p for folder in folders for p in (folder / "c").rglob("*") if p.is_file()]
    for file in files:
        file.unlink()
    side = deconvoy.open(run).layer_group("relu2")["patch"].shape[2]  # type: ignore[union-attr]
    nothing = {
        "scale": np.zeros((64, 9), np.float32),
        "projected": np.zeros(64, bool),
        "patch": np.zeros((64, 9, side, side, 3), np.uint8),
    }
    write_pictures(RunStore(run), "layers/relu2", 0, 64, nothing)
    assert files and all(file.is_file() for file in files)


def test_pictures_without_a_marker_are_found(run: Path) -> None:
    (run / "ledger/projection/relu2/item-000000.json").unlink()
    fault, sealed = verify(str(run), 0).faults
    assert fault.place == "layers/relu2/projected" and "no marker" in fault.reason
    assert sealed.place.startswith("ledger/projection/") and "is missing" in sealed.reason


Change = Callable[[Any], None]


def _raise_score(group: Any) -> None:
    group["score"][3, 0] = group["score"][3, 0] + 0.01


def _move(group: Any) -> None:
    group["position"][3, 1] = 15 - np.asarray(group["position"][3, 1])


def _swap_label(group: Any) -> None:
    group["label"][3, 2] = (group["label"][3, 2] + 1) % 10


def _count_more(group: Any) -> None:
    group["histogram"][3, 50] = group["histogram"][3, 50] + 1


def _raise_mean(group: Any) -> None:
    group["mean"][3] = group["mean"][3] * 1.0001


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("score", _raise_score),
        ("position", _move),
        ("label", _swap_label),
        ("histogram", _count_more),
        ("mean", _raise_mean),
    ],
)
def test_a_changed_value_differs_from_the_ledger_although_its_checksum_fits(
    run: Path, name: str, change: Change
) -> None:
    change(zarr.open_group(run, mode="r+")["layers/relu2"])
    (fault,) = verify(str(run), 0).faults
    assert fault.place == f"layers/relu2/{name}" and "first at [3" in fault.reason


FOLDED = [name for name in ARRAYS if name not in (*PICTURES, "box", "window")]
"""Arrays that are the fold of the ledger."""


@pytest.mark.parametrize("name", FOLDED)
def test_one_value_of_any_folded_array_that_was_written_anew_differs_from_the_ledger(
    run: Path, name: str
) -> None:
    array: Any = zarr.open_group(run, mode="r+")[f"layers/relu2/{name}"]
    values = np.asarray(array[...])
    place = tuple(int(i) for i in np.argwhere(values > 0)[-1])
    values[place] += 1
    array[...] = values
    faults = verify(str(run), 0).faults
    assert [fault.place for fault in faults] == [f"layers/relu2/{name}"]
    assert f"in 1 values, first at {list(place)}" in faults[0].reason


@pytest.mark.parametrize("name", [name for name in ARRAYS if name not in PICTURES])
def test_a_table_that_is_gone_altogether_is_found(run: Path, name: str) -> None:
    shutil.rmtree(run / "layers/relu2" / name)
    assert places(verify(str(run), 0)) == [f"layers/relu2/{name}/zarr.json"]


def test_another_limit_of_outliers_is_found(run: Path) -> None:
    group = zarr.open_group(run, mode="r+")["layers/relu2"]
    assert float(group.attrs["outlier_limit"]) > 0  # type: ignore[arg-type]
    group.attrs["outlier_limit"] = 1.0
    (fault,) = verify(str(run), 0).faults
    assert fault.place == "layers/relu2/zarr.json" and "1.0 here" in fault.reason


def test_a_marker_of_another_run_is_found(run: Path, tmp_path: Path) -> None:
    spec = small_spec(data={"uri": "shapes?size=8"}, layers=["logits"], analyses=[TOP])
    run_inline(spec, tmp_path / "other")
    marker = "ledger/scan/part-000000.npz"
    shutil.copy(tmp_path / "other" / marker, run / marker)
    (fault,) = verify(str(run), 0).faults
    assert fault.place == marker and "is of 10 units, but the run has 74" in fault.reason


@pytest.mark.parametrize("told", [True, False])
def test_a_run_over_three_places_of_odd_sizes_is_whole(tmp_path: Path, told: bool) -> None:
    """Also one of before the sizes of places were written down."""
    places_ = [f"shapes?size={size}&seed={size}" for size in (5, 19, 11)]
    spec = small_spec(data={"uri": places_}, layers=["logits"], analyses=[TOP])
    run_inline(spec, tmp_path / "run")
    if not told:
        group = zarr.open_group(tmp_path / "run", mode="r+")
        provenance: Any = group.attrs["provenance"]
        new = ("places", "outputs")
        group.attrs["provenance"] = {k: v for k, v in provenance.items() if k not in new}
        finish(RunStore(tmp_path / "run"))
    report = verify(str(tmp_path / "run"), 20)
    assert report.faults == [] and report.hits == 20
    shutil.copy(
        tmp_path / "run/images/part-000000.parquet", tmp_path / "run/images/part-000001.parquet"
    )
    named = places(verify(str(tmp_path / "run"), 0))
    assert "images/part-000001.parquet" in named


def test_a_lost_last_part_of_several_places_is_found(tmp_path: Path) -> None:
    places_ = [f"shapes?size={size}&seed={size}" for size in (5, 11)]
    spec = small_spec(data={"uri": places_}, layers=["logits"], analyses=[{"kind": "top"}])
    run_inline(spec, tmp_path / "run")
    for path in ("ledger/scan/part-000002.npz", "images/part-000002.parquet"):
        (tmp_path / "run" / path).unlink()
    assert places(verify(str(tmp_path / "run"), 0)) == ["ledger/scan/part-000002.npz"]


@pytest.mark.parametrize(("change", "says"), [(_raise_score, "score"), (_move, "place")])
def test_a_plain_forward_pass_finds_hits_that_are_not_the_model_s(
    run: Path, monkeypatch: pytest.MonkeyPatch, change: Change, says: str
) -> None:
    change(zarr.open_group(run, mode="r+")["layers/relu2"])
    # as if the ledger had been wrong from the start
    monkeypatch.setattr("workers.verify._Scan._compare_tables", lambda self: iter(()))
    report = verify(str(run), 10**6)
    assert report.hits == deconvoy.open(run).table().num_rows
    (fault,) = report.faults
    assert fault.place.startswith("relu2, unit 3, rank") and f"its {says} is" in fault.reason


TURNED = """
from torch import nn

class Turned(nn.Module):
    \"\"\"As ConvNeXt has it: a linear layer over channels that lie last.\"\"\"

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=(2, 3))
        self.neurons = nn.Linear(6, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, images):
        maps = self.neurons(self.stem(images).relu().permute(0, 2, 3, 1)).relu()
        return self.head(maps.permute(0, 3, 1, 2).mean((2, 3)))
"""


def test_hits_of_layers_with_channels_last_are_recomputed(tmp_path: Path) -> None:
    (tmp_path / "turned.py").write_text(TURNED)
    spec = small_spec(
        model={"name": f"{tmp_path / 'turned.py'}:Turned"},
        data={"transform": {"resize": 32, "crop": 32}},
        layers="all",
        analyses=[{"kind": "top"}],
    )
    run_inline(spec, tmp_path / "run")
    assert deconvoy.open(tmp_path / "run").layer_group("relu_1").attrs["units"] == 5
    report = verify(str(tmp_path / "run"), 10**6)
    assert report.faults == [] and report.hits > 50


def test_hits_are_drawn_over_all_layers_and_alike_for_a_seed(whole: Path) -> None:
    opened = deconvoy.open(whole)
    rows = list(drawn(opened, 40, 0))
    assert len(rows) == 40 == len({(r["layer"], r["unit"], r["rank"]) for r in rows})
    assert {row["layer"] for row in rows} == {"relu2", "logits"}
    assert rows == list(drawn(opened, 40, 0)) != list(drawn(opened, 40, 1))
    every = opened.table().to_pylist()
    assert all(row in every for row in rows)
    assert list(drawn(opened, 10**6, 0)) == every


def test_hits_cannot_be_recomputed_from_other_images(tmp_path: Path) -> None:
    photos = write_photographs(tmp_path / "photos", 4)
    spec = small_spec(
        data={"uri": str(tmp_path / "photos")}, layers=["relu2"], analyses=[{"kind": "top"}]
    )
    run_inline(spec, tmp_path / "run")
    assert verify(str(tmp_path / "run"), 9).faults == []
    photos[0].unlink()
    assert verify(str(tmp_path / "run"), 0).faults == []
    with pytest.raises(RequestError, match="another listing_fingerprint"):
        verify(str(tmp_path / "run"), 9)


def test_what_a_stopped_run_has_is_verified(run: Path) -> None:
    shutil.rmtree(run / "layers")
    shutil.rmtree(run / "ledger/projection")
    attributes = json.loads((run / "zarr.json").read_text())
    del attributes["attributes"]["results"]
    attributes["attributes"]["state"] = {"status": "stopped"}
    (run / "zarr.json").write_text(json.dumps(attributes))
    (run / "ledger/scan/part-000002.npz").unlink()
    report = verify(str(run), 9)
    assert report.faults == [] and report.hits == 0  # the scan is not done, so there are none
    (run / "images/part-000001.parquet").unlink()
    assert places(verify(str(run), 0)) == ["images/part-000001.parquet"]


# --- the seal -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("zarr.json", '"images": 20', '"images": 21'),
        ("zarr.json", '"status": "done"', '"status": "donf"'),
        ("zarr.json", '"sealed"', '"sealee"'),
        ("layers/relu2/zarr.json", '"height": 16', '"height": 17'),
        ("layers/relu2/score/zarr.json", '"meaning"', '"meening"'),
        ("ledger/projection/relu2/item-000000.json", '"projections": 18', '"projections": 16'),
    ],
)
def test_what_is_still_well_formed_but_not_what_was_written_is_found(
    run: Path, path: str, old: str, new: str
) -> None:
    content = (run / path).read_text()
    assert old in content, content
    (run / path).write_text(content.replace(old, new, 1))
    assert path in places(verify(str(run), 0))


def test_a_seal_that_is_gone_or_broken_is_found_and_resuming_sets_it_anew(run: Path) -> None:
    whole = (run / SEAL).read_bytes()
    (run / SEAL).unlink()
    assert places(verify(str(run), 0)) == [SEAL]
    resume_inline(run)
    assert verify(str(run), 0).faults == [] and (run / SEAL).read_bytes() != b""
    for broken in (b"", whole[:-10], whole.replace(b"a", b"b", 1)):
        (run / SEAL).write_bytes(broken)
        assert places(verify(str(run), 0)) == [SEAL]


def test_a_run_that_is_older_than_seals_is_verified_as_ever(run: Path) -> None:
    (run / SEAL).unlink()
    attributes = json.loads((run / "zarr.json").read_text())
    attributes["attributes"]["state"] = {"status": "done"}
    (run / "zarr.json").write_text(json.dumps(attributes))
    assert verify(str(run), 5).faults == []
