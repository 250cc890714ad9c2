"""A run written under one version of Zarr is read under another: two are checked in, see
``tests/data/README.md``."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

import deconvoy
from deconvoy.errors import RequestError
from deconvoy.schema import FORMAT
from tests.runs import grants_of, ignore, results_of, resume_inline
from workers import extend, pipeline
from workers.executors.inline import InlineExecutor
from workers.verify import verify

DATA = Path(__file__).parent / "data"
LAYERS = ("relu1", "logits")
PROJECTED = (0, 5)
WRITERS = ("zarr-3.1", "zarr-3.4")


def values_of(url: Path) -> dict[str, np.ndarray]:
    """Everything a reader gets out of a run, as plain arrays."""
    run = deconvoy.open(url)
    found: dict[str, np.ndarray] = {}
    for layer in LAYERS:
        for name, column in zip(run.table(layer).column_names, run.table(layer), strict=True):
            found[f"table/{layer}/{name}"] = np.array(column.to_pylist())
        for name in ("mean", "density", "histogram"):
            found[f"{name}/{layer}"] = np.asarray(run.layer_group(layer)[name][...])  # type: ignore
    for index in PROJECTED:
        unit = run.unit("relu1", index)
        found[f"window/{index}"], found[f"box/{index}"] = unit.window, unit.box
        found[f"patches/{index}"] = unit.patches
        found[f"projections/{index}"] = unit.projections
    for name in ("id", "uri", "label", "predicted", "probability"):
        found[f"images/{name}"] = np.array(run.images()[name].to_pylist())
    return found


def write_expected(url: Path) -> None:
    np.savez_compressed(DATA / "expected.npz", allow_pickle=False, **values_of(url))


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(DATA / "expected.npz", allow_pickle=False) as stored:
        return dict(stored)


@pytest.fixture(params=WRITERS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with zipfile.ZipFile(DATA / f"{request.param}.zip") as archive:
        archive.extractall(tmp_path / "run")
    return tmp_path / "run"


def test_runs_of_other_versions_of_zarr_are_read_as_they_were_written(
    written: Path, expected: dict[str, np.ndarray]
) -> None:
    found = values_of(written)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
        assert found[name].dtype == values.dtype, name


def test_the_runs_were_written_by_what_they_are_named_after(written: Path) -> None:
    run = deconvoy.open(written)
    assert run.attributes["format"] == FORMAT
    version = run.attributes["provenance"]["versions"]["zarr"]
    assert version.startswith(("3.1.", "3.4.")) and run.projected_units("relu1") == [0, 5]


def test_both_writers_are_there() -> None:
    found = set()
    for name in WRITERS:
        with zipfile.ZipFile(DATA / f"{name}.zip") as archive:
            found.add(archive.read("zarr.json").split(b'"zarr": "')[1][:4])
    assert found == {b"3.1.", b"3.4."}


def test_runs_of_other_versions_are_whole(written: Path) -> None:
    report = verify(str(written), 0)
    assert report.faults == [] and report.chunks > 20


def test_runs_of_before_there_were_norms_are_taken_up_again(written: Path) -> None:
    (written / "ledger/projection/relu1/item-000000.json").unlink()
    before = results_of(written)
    resume_inline(written)
    after = results_of(written)
    # Projections are computed anew, maybe by another torch: one rounding step apart.
    for name in ("score", "image", "label", "position", "histogram", "mean"):
        chunks = [path for path in before if f"/relu1/{name}/c/" in path]
        assert chunks and all(after[path] == before[path] for path in chunks)


def test_a_transform_that_truly_differs_is_still_refused(written: Path) -> None:
    attributes = json.loads((written / "zarr.json").read_text())
    attributes["attributes"]["provenance"]["transform"]["interpolation"] = "bicubic"
    (written / "zarr.json").write_text(json.dumps(attributes))
    with pytest.raises(RequestError, match="began with another transform"):
        pipeline.reopen(str(written))


def test_runs_of_before_there_were_norms_are_extended(written: Path, tmp_path: Path) -> None:
    job, run = extend.create(str(written), "shapes?size=6&seed=9", str(tmp_path / "more"))
    summary = pipeline.execute(job, run, InlineExecutor(), ignore)
    assert summary["images"] == 16
    assert verify(str(tmp_path / "more"), 10).faults == []
    assert {item for item in grants_of(tmp_path / "more") if item.startswith("scan")} == {
        "scan/part-000002", "scan/part-000003",
    }  # fmt: skip


def test_a_table_of_an_old_run_that_was_changed_would_be_seen(
    written: Path, expected: dict[str, np.ndarray]
) -> None:
    assert expected["patches/0"].any() and expected["projections/5"].any()
    group = deconvoy.open(written)._store.zarr("r+")
    group["layers/relu1/score"][5, 0] = 7.0  # type: ignore[index]
    found = values_of(written)
    assert not np.array_equal(found["table/relu1/score"], expected["table/relu1/score"])
