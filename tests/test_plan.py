"""What `plan` foretells is what then happens: the layers, the bytes; and a full disk is refused.

Seconds are never asserted, since they are the machine's; how they follow from the pilot's is.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import deconvoy
from deconvoy.errors import DiskTooSmall
from deconvoy.spec import JobSpec
from deconvoy.store import FolderStore
from tests.runs import run_inline, small_spec
from workers import plan as planning
from workers import shards
from workers.examples import Entries
from workers.job import Job, settle
from workers.pilot import Pilot, images_in_lane, measure
from workers.plan import Plan, most_bytes, plan, require_room, works_of
from workers.topk import Hits

EVERY_LAYER = {
    "layers": "all",
    "analyses": [{"kind": "top"}, {"kind": "projection", "units": {"sample": 0.25}}],
}
TOP_ONLY = {"layers": "all", "analyses": [{"kind": "top"}]}


@dataclass(frozen=True)
class Foretold:
    """A job, what was foretold of it, and the pilot that told it."""

    job: Job
    plan: Plan
    pilot: Pilot


def foretold(spec: JobSpec) -> Foretold:
    job = settle(spec)
    pilots: list[Pilot] = []

    def keep(*arguments: Any) -> Pilot:
        pilots.append(measure(*arguments))
        return pilots[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "measure", keep)
        told = plan(job)
    return Foretold(job, told, pilots[0])


@pytest.fixture(scope="module")
def every_layer() -> Foretold:
    return foretold(small_spec(**EVERY_LAYER))


def bytes_by_kind(run: FolderStore) -> dict[str, int]:
    kinds = dict.fromkeys(("patch", "projection", "tables", "images", "ledger", "metadata"), 0)
    for path in (p for p in run.root.rglob("*") if p.is_file()):
        top, *rest = path.relative_to(run.root).parts
        array = rest[1] if top == "layers" and len(rest) > 1 else ""
        kind = array if array in ("patch", "projection") else "tables" if rest else top
        kind = top if top in ("images", "ledger") else kind
        kinds["metadata" if path.name == "zarr.json" else kind] += path.stat().st_size
    return kinds


def within_a_fifth(told: float, happened: float) -> bool:
    return abs(told / happened - 1) < 0.2


# --- bytes ----------------------------------------------------------------------------------------


def test_the_bytes_are_those_of_the_run(every_layer: Foretold, tmp_path: Path) -> None:
    run_inline(every_layer.job.spec, tmp_path / "run")
    run = FolderStore(tmp_path / "run")
    happened = bytes_by_kind(run)
    assert within_a_fifth(every_layer.plan.bytes["total"], run.bytes_used())
    for kind in ("patch", "projection", "metadata"):
        assert within_a_fifth(every_layer.plan.bytes[kind], happened[kind]), kind
    assert most_bytes(every_layer.job) > run.bytes_used()


def test_the_bytes_of_a_run_without_pictures_are_foretold_too(tmp_path: Path) -> None:
    told = foretold(small_spec(**TOP_ONLY, data={"uri": "shapes?size=120"}))
    run_inline(told.job.spec, tmp_path / "run")
    assert within_a_fifth(told.plan.bytes["total"], FolderStore(tmp_path / "run").bytes_used())
    assert told.plan.bytes["patch"] == told.plan.bytes["projection"] == told.plan.projections == 0
    assert told.plan.seconds["projection"] == 0


EXAMPLES = {
    "kind": "top",
    "bottom": 3,
    "per_class": 2,
    "bands": {"count": 4, "examples": 2},
    "outliers": {"at_most": 20},
}


@pytest.mark.parametrize("compact_every", [64, 4])
def test_what_is_kept_besides_the_strongest_is_foretold_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compact_every: int
) -> None:
    for module in (planning, shards):
        monkeypatch.setattr(module, "COMPACT_EVERY", compact_every)
    told = foretold(
        small_spec(
            analyses=[EXAMPLES], layers=["relu2", "relu7"], data={"uri": "shapes?size=72&seed=1"}
        )
    )
    run_inline(told.job.spec, tmp_path / "run")
    run = FolderStore(tmp_path / "run")
    prefixes = [name for name in run.names("ledger/scan") if name.startswith("prefix-")]
    assert len(prefixes) == (compact_every < told.job.shards)
    happened = bytes_by_kind(run)
    for kind in ("ledger", "tables", "metadata"):
        assert 0.7 < told.plan.bytes[kind] / happened[kind] < 1.4, kind
    assert within_a_fifth(told.plan.bytes["total"], run.bytes_used())
    assert most_bytes(told.job) > run.bytes_used()


def test_moves_of_images_are_foretold_too(tmp_path: Path) -> None:
    moving = {"kind": "invariance", "images": {"sample": 5}, "translation": [1, 2], "scale": None}
    spec = small_spec(layers=["relu1", "logits"], analyses=[{"kind": "top"}, moving])
    told = foretold(spec)
    run_inline(spec, tmp_path / "run")
    found = deconvoy.open(tmp_path / "run").invariance()
    assert told.plan.further == {"invariance": found.distance[:, :, 0].size} == {"invariance": 135}
    files = [p for p in (tmp_path / "run/invariance").rglob("*") if p.is_file()]
    stored = sum(path.stat().st_size for path in files)
    assert 0.5 * told.plan.bytes["invariance"] < stored <= told.plan.bytes["invariance"]
    assert told.plan.seconds["invariance"] > 0


def test_squares_and_their_bytes_are_foretold_too(tmp_path: Path) -> None:
    """Not the seconds, which are the machine's."""
    occlusion = {"kind": "occlusion", "images": {"sample": 5}, "patch": 16, "units": ["relu1"]}
    spec = small_spec(layers=["relu1", "logits"], analyses=[{"kind": "top"}, occlusion])
    told = foretold(spec)
    run_inline(spec, tmp_path / "run")
    run = deconvoy.open(tmp_path / "run")
    covered = [run.unit("relu1", index).occlusion for index in range(32)]
    squares = 5 * 49 + sum(one.activation.size for unit in covered for one in unit)
    assert within_a_fifth(told.plan.squares, squares)
    files = [p for p in (tmp_path / "run").rglob("*/occlusion/**/*") if "ledger" not in p.parts]
    files += (tmp_path / "run/occlusion").rglob("*")
    assert within_a_fifth(
        told.plan.bytes["occlusion"], sum(p.stat().st_size for p in files if p.is_file())
    )
    store = FolderStore(tmp_path / "run")
    assert within_a_fifth(told.plan.bytes["total"], store.bytes_used())
    assert most_bytes(told.job) > store.bytes_used()
    assert told.plan.seconds["occlusion"] > 0


def test_no_byte_of_a_marker_is_below_what_it_is_at_most_counted_as(tmp_path: Path) -> None:
    for kept, each in ((Hits.none(), planning.HIT_BYTES), (Entries.none(), planning.ENTRY_BYTES)):
        columns = vars(kept).values()
        assert each == sum(c.itemsize * math.prod(c.shape[1:]) for c in columns)


def test_what_is_kept_besides_counts_before_a_run_is_let_go(tmp_path: Path) -> None:
    plain, more = (
        most_bytes(settle(small_spec(analyses=[top]))) for top in ({"kind": "top"}, EXAMPLES)
    )
    run_inline(small_spec(analyses=[EXAMPLES], layers=["relu2"]), tmp_path / "run")
    assert more > plain + FolderStore(tmp_path / "run").bytes_used()


def test_units_that_are_silent_on_every_image_take_no_room(every_layer: Foretold) -> None:
    number, layer = next(
        (n, one) for n, one in enumerate(every_layer.job.layers) if one.name == "relu5"
    )
    active = every_layer.pilot.fold.sums.active
    units = every_layer.job.index.units_of(number)
    before = active[units].copy()
    try:
        active[units] = 0
        told = again(every_layer.job, every_layer.pilot)
    finally:
        active[units] = before
    mine = {row.name: row for row in told.layers}
    assert mine[layer.name].bytes == 0
    assert mine["relu4"].bytes > 0


def test_float16_projections_take_more_than_twice_the_room_of_int8(every_layer: Foretold) -> None:
    job = settle(small_spec(**EVERY_LAYER, storage={"projection": "float16"}))
    assert plan(job).bytes["projection"] > 2 * every_layer.plan.bytes["projection"]


# --- layers, work, time ---------------------------------------------------------------------------


def test_the_plan_says_all_there_is_to_know_before_a_run(every_layer: Foretold) -> None:
    told = json.loads(json.dumps(every_layer.plan.to_json()))
    assert told["images"] == 40 and told["shards"] == 5 and told["batch_size"] == 4
    assert told["labels_from"] == "the generator"
    assert told["transform"]["crop"] == 64 and told["transform_from"] == "the model's factory"
    assert set(told["seconds"]) == {"start", "scan", "merge", "projection", "total"}
    assert sum(told["bytes"].values()) == 2 * told["bytes"]["total"]
    assert told["free_bytes"] == pytest.approx(shutil.disk_usage(".").free, rel=0.1)
    assert [row["name"] for row in told["layers"]] == [
        *(f"relu{number}" for number in range(1, 8)),
        "logits",
    ]
    first = told["layers"][0]
    assert (first["units"], first["height"], first["width"], first["op"]) == (32, 32, 32, "relu")
    assert first["receptive_field"]["size"] == [7, 7]
    assert first["receptive_field"]["stride"] == [2, 2]
    assert first["projectable"] is True and first["obstacle"] is None
    assert first["projected_units"] == 8  # a quarter of 32
    assert told["layers"][-1]["projected_units"] == 0  # neurons are projected when named
    assert told["layers"][-1]["receptive_field"]["whole_image"] is True


def test_work_is_counted_in_multiply_adds_of_the_graph(every_layer: Foretold) -> None:
    work = works_of(every_layer.job)
    second = every_layer.job.layers[1]
    first = 32 * 32 * 32 * (3 * 7 * 7)  # places × filters × taps
    assert work["relu1"] == first
    assert work["relu2"] == first + second.height * second.width * 64 * (32 * 5 * 5)
    assert work["logits"] == work["relu7"] + 256 * 10
    assert every_layer.plan.multiply_adds_per_image == work["logits"]


def test_a_layer_that_cannot_be_projected_is_listed_with_its_obstacle(tmp_path: Path) -> None:
    source = (
        "from torch import nn\n"
        "def bent():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))\n"
    )
    (tmp_path / "bent.py").write_text(source, encoding="utf-8")
    spec = small_spec(
        model={"name": f"{tmp_path}/bent.py:bent"},
        data={"transform": {"resize": 32, "crop": 32}},
        layers="all",
        analyses=[{"kind": "top"}, {"kind": "projection"}],
    )
    told = plan(settle(spec))
    rectified = next(layer for layer in told.layers if layer.op == "relu")
    assert rectified.obstacle is not None and "GELU" in rectified.obstacle
    assert not rectified.projectable and rectified.projected_units == rectified.bytes == 0


def again(job: Job, pilot: Pilot) -> Plan:
    """The plan of a job by a pilot at hand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "measure", lambda *_: pilot)
        return plan(job)


def test_ten_times_the_images_take_ten_times_the_scan(every_layer: Foretold) -> None:
    more = settle(small_spec(**EVERY_LAYER, data={"uri": "shapes?size=400&seed=1"}))
    told = again(more, every_layer.pilot)
    assert told.seconds["scan"] == pytest.approx(10 * every_layer.plan.seconds["scan"])
    assert told.multiply_adds == 10 * every_layer.plan.multiply_adds


@pytest.mark.parametrize(("workers", "shards_of_the_busiest"), [(1, 5), (2, 3), (3, 2), (5, 1)])
def test_workers_share_whole_shards(
    every_layer: Foretold, workers: int, shards_of_the_busiest: int
) -> None:
    compute = {"workers": workers, "threads": 1, "shard_size": 8, "batch_size": 4}
    told = again(settle(small_spec(**EVERY_LAYER, compute=compute)), every_layer.pilot)
    batches = 2 * shards_of_the_busiest
    assert told.seconds["scan"] == pytest.approx(batches * every_layer.pilot.batch_seconds)


@pytest.mark.parametrize(
    ("images", "lanes", "in_the_busiest"),
    [(5, 2, 3), (8, 2, 4), (1, 2, 1), (17, 2, 9), (64, 1, 64)],
)
def test_lanes_share_the_images_that_are_forwarded(
    images: int, lanes: int, in_the_busiest: int
) -> None:
    assert images_in_lane(images, lanes) == in_the_busiest


def test_a_layer_far_from_any_measured_one_costs_what_its_neighbours_say(
    every_layer: Foretold,
) -> None:
    sample = every_layer.pilot.samples[0]
    twice = replace(sample, work=sample.work * 100, patch=2 * sample.patch)
    told = again(every_layer.job, replace(every_layer.pilot, samples=(sample, twice)))
    rows = {row.name: row for row in told.layers}
    halfway = {name: row.bytes for name, row in rows.items() if row.projected_units}
    alone = again(every_layer.job, replace(every_layer.pilot, samples=(sample,)))
    for row in alone.layers:
        if row.projected_units:
            assert row.bytes <= halfway[row.name] <= 2 * row.bytes


def test_a_pilot_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_layer: Foretold
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    torch.set_num_threads(2)
    plan(settle(small_spec()))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("images", [1, 3])
def test_a_handful_of_images_can_be_planned(images: int) -> None:
    told = plan(settle(small_spec(data={"uri": f"shapes?size={images}"})))
    assert told.images == images and told.bytes["total"] > 0 and told.seconds["scan"] > 0


# --- room -----------------------------------------------------------------------------------------

FreeBytes = Callable[[int], None]


@pytest.fixture
def disk_of(monkeypatch: pytest.MonkeyPatch) -> FreeBytes:
    def let(free: int) -> None:
        monkeypatch.setattr(FolderStore, "bytes_free", lambda _: free)

    return let


def test_a_disk_that_holds_everything_uncompressed_needs_no_pilot(
    every_layer: Foretold, disk_of: FreeBytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(planning, "measure", lambda *_: pytest.fail("ran a pilot"))
    disk_of(most_bytes(every_layer.job))
    require_room(every_layer.job, FolderStore(tmp_path / "run"))


def test_a_disk_that_holds_the_compressed_run_will_do(
    every_layer: Foretold, disk_of: FreeBytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(planning, "measure", lambda *_: every_layer.pilot)
    needed = every_layer.plan.bytes["total"]
    assert needed < most_bytes(every_layer.job)
    disk_of(needed + 1000)
    require_room(every_layer.job, FolderStore(tmp_path / "run"))


def test_a_disk_too_small_is_refused_with_what_is_needed_and_what_to_do(
    every_layer: Foretold, disk_of: FreeBytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(planning, "measure", lambda *_: every_layer.pilot)
    disk_of(every_layer.plan.bytes["total"] - 1000)
    said = r"needs about (\d.*) MB, but '.*run' has room for \1 MB: .*storage\.max_side"
    with pytest.raises(DiskTooSmall, match=said):
        require_room(every_layer.job, FolderStore(tmp_path / "run"))


def test_what_a_run_holds_already_needs_no_further_room(
    every_layer: Foretold, disk_of: FreeBytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(planning, "measure", lambda *_: every_layer.pilot)
    run = FolderStore(tmp_path / "run")
    run.write("already", bytes(every_layer.plan.bytes["total"]))
    disk_of(1000)
    require_room(every_layer.job, run)
