"""Test occlusion as an analysis of a job: what a run holds equals full forward passes of covered
images, whoever computes it and however often it is cut off; what does not fit is refused.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import deconvoy
import workers
from deconvoy.errors import JobStopped, ModelUnsupported, RequestError, RunNotFound
from deconvoy.occlusion import Occlusion
from deconvoy.schema import OCCLUSION_ARRAYS
from deconvoy.spec import JobSpec, OcclusionSpec
from deconvoy.store import FolderStore, RunStore
from tests import reference
from tests.runs import (
    committed_in,
    grants_of,
    ignore,
    images_of,
    model_of,
    places_of,
    resume_inline,
    run_inline,
    run_on_ray,
    small_spec,
    write_photographs,
)
from workers import extend, pipeline
from workers.boxes import FileBoxes, in_input
from workers.executors.inline import InlineExecutor
from workers.image_choice import drawn
from workers.job import settle
from workers.occluding import Occluder, parts_of
from workers.occlusion_items import grid_of
from workers.plan import plan
from workers.verify import verify

EXACT = 1e-4
"""float32, of the largest value: sums in another order."""

SQUARES = {"kind": "occlusion", "images": {"sample": 3}, "patch": 24, "stride": 20, "top5": True}

RESIDUAL = """
import torch
from torch import nn

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.norm.running_mean += torch.rand(6)
        self.norm.running_var += torch.rand(6)
        self.one = nn.Conv2d(6, 6, 3, padding=1)
        self.two = nn.Conv2d(6, 6, 3, padding=1)
        self.down = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 7)

    def forward(self, images):
        maps = torch.relu(self.norm(self.stem(images)))
        maps = torch.relu(maps + self.two(torch.relu(self.one(maps))))
        maps = torch.relu(self.down(maps))
        return self.head(maps.mean((2, 3)))
"""


def spec_of(occlusion: dict[str, Any], **changes: Any) -> JobSpec:
    """18 images in three shards; the strongest two of every unit."""
    fields = {
        "data": {"uri": "shapes?size=18&seed=1"},
        "layers": ["relu1", "relu5", "logits"],
        "analyses": [{"kind": "top", "k": 2}, occlusion],
    }
    return small_spec(**(fields | changes))


def residual_spec(folder: Path, occlusion: dict[str, Any]) -> JobSpec:
    (folder / "residual.py").write_text(RESIDUAL, encoding="utf-8")
    return spec_of(
        occlusion,
        model={"name": f"{folder / 'residual.py'}:Residual"},
        data={"uri": "shapes?size=9&seed=2", "transform": {"resize": 32, "crop": 32}},
        layers="all",
    )


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("calm") / "run"
    run_inline(spec_of(SQUARES | {"units": ["relu1"]}), url)
    return url


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("residual")
    occlusion = {
        "kind": "occlusion",
        "images": {"ids": ["3", 0]},
        "patch": 9,
        "stride": 7,
        "fill": [0, 100, 255],
        "units": "maps",
    }
    run_inline(residual_spec(folder, occlusion), folder / "run")
    return folder / "run"


def files_of(url: Path) -> dict[str, bytes]:
    """Everything that was found, and the markers of occlusion."""
    folders = ("layers", "images", "occlusion", "ledger/occlusion", "ledger/unit-occlusion")
    files = [p for folder in folders for p in (url / folder).rglob("*") if p.is_file()]
    return {p.relative_to(url).as_posix(): p.read_bytes() for p in files}


def assert_same_files(one: Path, other: Path) -> None:
    of_one, of_other = files_of(one), files_of(other)
    assert of_one.keys() == of_other.keys() and any(p.startswith("occlusion/") for p in of_one)
    assert [p for p in of_one if of_one[p] != of_other[p]] == []


class Oracle:
    """Full forward passes of the untraced model."""

    def __init__(self, url: Path, also: tuple[str, ...] = ()) -> None:
        self.job, _ = pipeline.reopen(str(url))
        self.model, self.also = model_of(self.job), also
        self.images = dict(images_of(self.job))
        self.places = places_of(self.job)

    def layers(self, image: Tensor) -> list[reference.Layer]:
        found = reference.layers(self.model, image[None].clone(), self.also)
        return [found[place] for place in self.places]


def colour_of(oracle: Oracle, colour: tuple[float, ...]) -> Tensor:
    """Normalised by hand, as the images are."""
    transform = oracle.job.packed.transform
    values = [
        (grey / 255 - mean) / std
        for grey, mean, std in zip(colour, transform.mean, transform.std, strict=True)
    ]
    return torch.tensor(values)


def assert_is_the_oracles(oracle: Oracle, one: Occlusion) -> None:
    image = oracle.images[one.image]
    copies = reference.occluded(image, one.patch, one.stride, colour_of(oracle, one.fill))
    shape = len(one.y), len(one.x)
    assert len(copies) == shape[0] * shape[1] == one.probability.size
    clean = oracle.layers(image)
    with torch.no_grad():
        logits = torch.stack([oracle.model(copy[None])[0] for copy in copies])
        clean_shares = torch.softmax(oracle.model(image[None])[0], 0)
    shares = torch.softmax(logits, 1)
    truth = shares[:, one.target].numpy().reshape(shape)
    assert np.abs(one.probability - truth).max() <= EXACT
    assert abs(one.clean_probability - float(clean_shares[one.target])) <= EXACT
    own = shares.numpy()[np.arange(len(copies)), one.label.flatten()]
    assert (shares.amax(1).numpy() - own).max() <= EXACT
    assert one.clean_label == int(clean_shares.argmax())
    if one.top5 is not None and one.top5_probability is not None:
        five = shares.sort(1, descending=True).values[:, :5].numpy().reshape(*shape, 5)
        assert np.abs(one.top5_probability - five).max() <= EXACT
        assert (one.top5[..., 0] == one.label).all()
    seen = [oracle.layers(copy) for copy in copies]
    for number, layer in enumerate(oracle.job.layers):
        unit = one.unit[layer.name]
        strength = clean[number].ranking[0].flatten(1).amax(1)
        assert strength[unit] >= strength.max() - EXACT * strength.abs().max()
        maps = torch.stack([layers[number].activation[0, unit] for layers in seen])
        sums = maps.flatten(1).sum(1).numpy().reshape(shape)
        size = float(maps.abs().flatten(1).sum(1).max())
        assert np.abs(one.activity[layer.name] - sums).max() <= EXACT * size, layer.name
        total = float(clean[number].activation[0, unit].sum())
        assert abs(one.clean_activity[layer.name] - total) <= EXACT * size


def test_panels_of_every_image_are_the_oracles(calm: Path) -> None:
    run, oracle = deconvoy.open(calm), Oracle(calm)
    rows = run.occluded().to_pylist()
    assert len(rows) == 3
    for row in rows:
        one = run.occlusion(row["image_id"])
        assert one.fill == tuple(255 * mean for mean in oracle.job.packed.transform.mean)
        assert one.target == row["image_id"] % 10 and one.uri == str(row["image_id"])
        assert_is_the_oracles(oracle, one)


def test_panels_of_a_residual_network_and_of_images_named_are_the_oracles(residual: Path) -> None:
    run = deconvoy.open(residual)
    assert run.occluded().column("image_id").to_pylist() == [3, 0]
    oracle = Oracle(residual)
    one = run.occlusion("3")
    assert one.fill == (0, 100, 255) and one.top5 is None
    assert one.predicted and one.target == one.clean_label  # its labels are not the model's classes
    assert_is_the_oracles(oracle, one)


def test_the_table_tells_where_the_probability_is_lowest(calm: Path) -> None:
    run = deconvoy.open(calm)
    for row in run.occluded().to_pylist():
        one = run.occlusion(row["image_id"])
        place = np.flatnonzero(one.y == row["y"])[0], np.flatnonzero(one.x == row["x"])[0]
        assert row["lowest"] == one.probability.min() == one.probability[place]
        assert row["probability"] == np.float32(one.clean_probability)


def test_the_picture_and_the_projection_of_the_strongest_map_are_those_of_the_image(
    calm: Path,
) -> None:
    run, oracle = deconvoy.open(calm), Oracle(calm)
    one = run.occlusion(run.occluded().column("image_id")[0].as_py())
    transform = oracle.job.packed.transform
    pixels = oracle.job.listing.source.read(one.uri, transform).pixels
    assert np.array_equal(one.picture, pixels.permute(1, 2, 0).numpy())
    image = oracle.images[one.image]
    clean = oracle.layers(image)
    for number, layer in enumerate(oracle.job.layers):
        unit = one.unit[layer.name]
        maps = clean[number].activation[0, unit]
        y, x = divmod(int(maps.flatten().argmax()), layer.width)
        found = reference.deconvnet(oracle.model, image, oracle.places[number], unit, y, x)
        truth = found.permute(1, 2, 0).numpy()
        ours = one.projection[layer.name]
        assert np.abs(ours - truth).max() <= np.abs(truth).max() / 200, layer.name  # int8


@pytest.mark.parametrize("layer", ["relu", "relu_2", "relu_3"])
def test_the_hits_of_a_residual_network_under_squares_are_the_oracles(
    residual: Path, layer: str
) -> None:
    run, oracle = deconvoy.open(residual), Oracle(residual)
    number = run.layer_names.index(layer)
    told: Any = run.layer_group(layer)["occlusion"].attrs
    side = {"relu": 1, "relu_2": 3, "relu_3": 4}[layer]  # fields of 3, 11 and 15 pixels
    assert (told["patch"], told["stride"]) == (side, max(1, side // 2))
    for index in (0, 3) if layer == "relu" else (3,):
        unit = run.unit(layer, index)
        assert len(unit.occlusion) == (unit.image >= 0).sum()
        for one in unit.occlusion:
            image, box = oracle.images[int(unit.image[one.rank])], unit.box[one.rank].tolist()
            fill = colour_of(oracle, one.fill)
            copies = reference.occluded(image, one.patch, one.stride, fill, box)
            y, x = unit.position[one.rank]
            truth = [float(oracle.layers(c)[number].activation[0, index, y, x]) for c in copies]
            assert one.activation.shape == (len(one.y), len(one.x))
            assert np.abs(one.activation.flatten() - truth).max() <= EXACT * max(map(abs, truth))


def test_grids_of_hits_whose_field_the_border_cuts_are_smaller(residual: Path) -> None:
    run = deconvoy.open(residual)
    shapes = set()
    for index in range(6):
        unit = run.unit("relu_2", index)
        for one in unit.occlusion:
            y0, x0, y1, x1 = unit.box[one.rank].tolist()
            assert one.y[0] == y0 and one.y[-1] == y1 - one.patch and one.x[-1] == x1 - one.patch
            shapes.add(one.activation.shape)
    assert len(shapes) > 1 and max(shapes) <= (9, 9)  # a field of 11 pixels, a square of 3


# --- the same bits --------------------------------------------------------------------------------


def test_the_number_of_threads_changes_no_bit_and_progress_counts_positions(
    calm: Path, tmp_path: Path
) -> None:
    seen: list[pipeline.Advance] = []
    job, run = pipeline.create(spec_of(SQUARES | {"units": ["relu1"]}), str(tmp_path / "run"))
    pipeline.execute(job, run, InlineExecutor(threads=3), seen.append)
    assert_same_files(calm, tmp_path / "run")
    for stage in ("occlusion", "unit-occlusion"):
        own = [advance for advance in seen if advance.stage == stage]
        done = [advance.done for advance in own]
        assert done[0] == 0 and done == sorted(done) and done[-1] == own[-1].total > 0
    covered = [deconvoy.open(calm).unit("relu1", index).occlusion for index in range(32)]
    assert own[-1].total == sum(one.activation.size for unit in covered for one in unit)


@pytest.mark.ray
def test_any_workers_give_the_bits_of_the_inline_executor(
    ray_cluster: str, calm: Path, tmp_path: Path
) -> None:
    run_on_ray(spec_of(SQUARES | {"units": ["relu1"]}), tmp_path / "run", workers=2)
    assert_same_files(calm, tmp_path / "run")


class Killed(Exception):
    """The worker goes down here."""


def test_a_run_cut_off_at_any_item_goes_on_to_the_same_bits_and_does_nothing_twice(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, written = tmp_path / "run", 0
    job, run = pipeline.create(spec_of(SQUARES | {"units": ["relu1"]}), str(url))
    whole = FolderStore.write

    def write(self: FolderStore, path: str, content: bytes) -> None:
        nonlocal written
        if "occlusion/" in path:
            written += 1
            if written in (2, 4, 6):  # its arrays are written, its marker is not
                raise Killed(path)
        whole(self, path, content)

    monkeypatch.setattr(FolderStore, "write", write)
    with pytest.raises(Killed):
        pipeline.execute(job, run, InlineExecutor(), ignore)
    assert deconvoy.open(url).occluded().num_rows == 2
    for _ in range(2):
        with pytest.raises(Killed):
            resume_inline(url)
    assert deconvoy.open(url).occluded().num_rows == 3
    resume_inline(url)
    assert_same_files(calm, url)
    grants = {item: n for item, n in grants_of(url).items() if "occlusion" in item}
    assert sorted(grants.values()) == [1, 1, 2, 2, 2]
    assert set(grants) <= committed_in(url)
    before = grants_of(url)
    resume_inline(url)
    assert grants_of(url) == before


def test_a_worker_that_fails_in_the_middle_of_an_image_does_it_again(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [Killed("gone"), Killed("gone again")]
    whole = Occluder.panels

    def panels(self: Occluder, *arguments: Any) -> Any:
        found = whole(self, *arguments)
        if failures:
            raise failures.pop()
        return found

    monkeypatch.setattr(Occluder, "panels", panels)
    run_inline(spec_of(SQUARES | {"units": ["relu1"]}), tmp_path / "run")
    assert grants_of(tmp_path / "run")["occlusion/item-000000"] == 3
    assert_same_files(calm, tmp_path / "run")


def test_a_job_is_stopped_between_two_batches_of_a_sweep(tmp_path: Path) -> None:
    def observe(advance: pipeline.Advance) -> None:
        if advance.stage == "occlusion":
            raise KeyboardInterrupt

    with pytest.raises(JobStopped):
        run_inline(spec_of(SQUARES), tmp_path / "run", observe)
    with pytest.raises(RunNotFound, match="stopped|no square"):
        deconvoy.open(tmp_path / "run").occlusion(0)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 27])
def test_parts_of_a_grid_are_all_its_rows_once(rows: int) -> None:
    from workers.grids import grid_over_image

    parts = parts_of(grid_over_image(rows + 1, 9, 2, 1), 4)
    assert sorted(np.concatenate(parts).tolist()) == list(range(rows))


# --- which images ---------------------------------------------------------------------------------

ONE_SQUARE = {"kind": "occlusion", "patch": 64}
"""The quickest sweep there is."""


def images_under(spec: JobSpec, url: Path) -> list[int]:
    run_inline(spec, url)
    found: list[int] = deconvoy.open(url).occluded().column("image_id").to_pylist()
    return found


def test_a_sample_is_drawn_by_the_seed_and_never_larger_than_there_are(tmp_path: Path) -> None:
    spec = spec_of(ONE_SQUARE | {"images": {"sample": 5}}, layers=["logits"], seed=4)
    assert images_under(spec, tmp_path / "run") == drawn(range(18), 5, 4, "occlusion")
    five, others = (drawn(range(18), 5, seed, "occlusion") for seed in (4, 5))
    assert five == sorted(set(five)) != others
    assert drawn(range(18), 99, 4, "occlusion") == list(range(18))


def test_images_of_units_are_those_of_their_hits_each_once(tmp_path: Path) -> None:
    units = [{"layer": "relu5", "unit": 3}, {"layer": "logits", "unit": 1}]
    found = images_under(spec_of(ONE_SQUARE | {"images": {"top_of": units}}), tmp_path / "run")
    run = deconvoy.open(tmp_path / "run")
    hits = [i for u in units for i in run.unit(str(u["layer"]), int(str(u["unit"]))).image.tolist()]
    assert found == list(dict.fromkeys(hits))


def test_numbers_and_paths_name_images_as_where_does(tmp_path: Path) -> None:
    photos = write_photographs(tmp_path / "photos", 6)
    names = sorted(p.relative_to(tmp_path / "photos").as_posix() for p in photos)
    data = {"uri": str(tmp_path / "photos"), "where": {"without": [0, 1]}}
    occlusion = ONE_SQUARE | {"images": {"ids": [4, names[2], 2]}}
    images_under(spec_of(occlusion, data=data, layers=["logits"]), tmp_path / "run")
    run = deconvoy.open(tmp_path / "run")
    assert run.occluded().column("uri").to_pylist() == [names[4], names[2]]
    assert run.occlusion(names[4]).image == 2  # ids of the run count what is taken


def test_an_unreadable_image_is_left_out_of_a_sample_and_refused_by_name(tmp_path: Path) -> None:
    photos = write_photographs(tmp_path / "photos", 4)
    photos[1].write_bytes(b"no picture")
    data = {"uri": str(tmp_path / "photos"), "max_bad": 0.5}
    occlusion = ONE_SQUARE | {"images": {"sample": 4}}
    found = images_under(spec_of(occlusion, data=data, layers=["logits"]), tmp_path / "run")
    assert len(found) == 3
    name = photos[1].relative_to(tmp_path / "photos").as_posix()
    named = spec_of(ONE_SQUARE | {"images": {"ids": [name]}}, data=data, layers=["logits"])
    with pytest.raises(RequestError, match=f"names '{name}', which cannot .*none of JPEG"):
        pipeline.create(named, str(tmp_path / "named"))
    assert not (tmp_path / "named").exists()


def test_an_image_that_the_scan_leaves_out_is_refused_with_the_reason(tmp_path: Path) -> None:
    data = {"uri": "shapes?size=18&seed=1", "where": {"wrong": True}}
    spec = spec_of(ONE_SQUARE | {"images": {"ids": list(range(18))}}, data=data, layers=["logits"])
    with pytest.raises(RequestError, match=r"cannot be used: left out by data\.where\.wrong"):
        run_inline(spec, tmp_path / "run")


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("occlusion", "said"),
    [
        ({"patch": 65}, "analyses.occlusion: patch is 65, but images are 64×64 pixels"),
        ({"images": {"ids": [18]}}, "analyses.occlusion.images.ids has 18, but the job's 18 imag"),
        ({"images": {"ids": ["a.png"]}}, "has 'a.png', but the job's 18 images are named like '0'"),
        (
            {"images": {"top_of": [{"layer": "relu55", "unit": 0}]}},
            "has the layer 'relu55', which the job has not; nearest: relu5",
        ),
        (
            {"images": {"top_of": [{"layer": "relu5", "unit": 64}]}},
            "has unit 64 of layer 'relu5', but that has units 0 to 63",
        ),
        ({"units": ["conv*"]}, "analyses.occlusion.units: no layer matches 'conv*'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, occlusion: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError) as caught:
        pipeline.create(spec_of({"kind": "occlusion", **occlusion}), str(tmp_path / "run"))
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "layer",
    [
        "nn.BatchNorm2d(4, track_running_stats=False)",
        "Alone()",
        "Dropped()",
    ],
)
def test_a_model_whose_images_depend_on_each_other_is_refused(tmp_path: Path, layer: str) -> None:
    body = f"""
import torch.nn.functional as F
from torch import nn

class Alone(nn.Module):
    def forward(self, maps):
        return maps - maps.mean(0, keepdim=True)

class Dropped(nn.Module):
    def forward(self, maps):
        return F.dropout(maps, training=True)

def mixed():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), {layer}, nn.ReLU(), nn.Flatten(), nn.Linear(784, 3)
    )
"""
    (tmp_path / "mixed.py").write_text(body, encoding="utf-8")
    changes: dict[str, Any] = {
        "model": {"name": f"{tmp_path / 'mixed.py'}:mixed"},
        "data": {"uri": "shapes?size=4", "transform": {"resize": 16, "crop": 16}},
        "layers": "all",
    }
    with pytest.raises(ModelUnsupported, match=r"analyses\.occlusion: .*the other images"):
        settle(spec_of(SQUARES, **changes))


def test_the_square_of_a_grey_model_has_one_colour(tmp_path: Path) -> None:
    (tmp_path / "grey.py").write_text(
        "from torch import nn\n"
        "def grey():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3))\n"
    )
    transform = {"resize": 16, "crop": 16, "mean": [0.5], "std": [0.25]}
    changes: dict[str, Any] = {
        "model": {"name": f"{tmp_path / 'grey.py'}:grey"},
        "data": {"uri": "shapes?size=4", "transform": transform},
        "layers": "all",
    }
    wrong = {"kind": "occlusion", "fill": [1, 2, 3]}
    with pytest.raises(RequestError, match="takes grey images: give `mean` or one number"):
        settle(spec_of(wrong, **changes))
    run_inline(spec_of({"kind": "occlusion", "fill": 200}, **changes), tmp_path / "run")
    one = deconvoy.open(tmp_path / "run").occlusion(1)
    assert one.fill == (200,) and one.picture.shape == (16, 16, 3)
    assert (one.patch, one.stride) == (2, 1)
    assert_is_the_oracles(Oracle(tmp_path / "run"), one)


@pytest.mark.parametrize(
    ("side", "patch", "stride"), [(224, 16, 8), (64, 5, 3), (32, 2, 1), (299, 21, 11), (1, 1, 1)]
)
def test_automatic_squares_follow_the_size_of_the_image(side: int, patch: int, stride: int) -> None:
    grid = grid_of(OcclusionSpec(kind="occlusion"), side)
    assert (grid.patch, grid.stride) == ((patch, patch), stride)


def test_runs_without_squares_say_so(calm: Path, tmp_path: Path) -> None:
    run_inline(spec_of(SQUARES, analyses=[{"kind": "top", "k": 2}]), tmp_path / "run")
    run = deconvoy.open(tmp_path / "run")
    with pytest.raises(RunNotFound, match="an analysis of kind occlusion in the spec asks for it"):
        run.occluded()
    with pytest.raises(RunNotFound, match="were not covered: units of the occlusion analysis"):
        _ = run.unit("relu1", 0).occlusion
    for image in ("no such", "-1", 999, -1):
        with pytest.raises(RunNotFound, match=r"Run\.occluded\(\) lists them"):
            deconvoy.open(calm).occlusion(image)


# --- boxes ----------------------------------------------------------------------------------------


def test_boxes_of_the_objects_are_kept_where_the_data_has_them(tmp_path: Path) -> None:
    spec = spec_of(ONE_SQUARE | {"images": {"ids": [3, 4]}}, layers=["logits"])
    job, run = pipeline.create(spec, str(tmp_path / "run"))
    known = {"3": np.array([[8.0, 4.0, 40.0, 32.0], [0.0, 0.0, 9.0, 9.0]])}
    job = replace(job, boxes=FileBoxes(known))
    pipeline.execute(job, run, InlineExecutor(), ignore)
    opened = deconvoy.open(tmp_path / "run")
    transform = job.packed.transform
    truth = in_input(known["3"], (64, 64), transform)
    assert np.array_equal(opened.occlusion(3).boxes, truth) and len(truth) == 2
    assert len(opened.occlusion(4).boxes) == 0
    assert verify(str(tmp_path / "run"), 0).faults == []


# --- verify, extend, notebook ---------------------------------------------------------------------


@pytest.fixture
def run(calm: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(calm, tmp_path / "run")
    return tmp_path / "run"


ARRAYS = [
    *(f"occlusion/{field.name}" for field in OCCLUSION_ARRAYS if field.name != "box"),
    "layers/relu1/occlusion",
]


def test_a_whole_run_is_found_whole(calm: Path) -> None:
    report = verify(str(calm), 5)
    assert report.faults == [] and (report.hits, report.squares) == (5, 10)


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_every_damaged_chunk_is_found_and_named(run: Path, damage: str) -> None:
    chunks = [
        max(p for p in (run / name / "c").rglob("*") if p.is_file()).relative_to(run).as_posix()
        for name in ARRAYS
    ]
    for chunk in chunks:
        content = bytearray((run / chunk).read_bytes())
        content[len(content) // 2] ^= 4
        (run / chunk).write_bytes(bytes(content)) if damage == "flipped" else (run / chunk).unlink()
    whole = {"occlusion/y/c/0", "occlusion/x/c/0"} if damage == "missing" else set()
    named = {fault.place for fault in verify(str(run), 0).faults}
    assert set(chunks) - whole <= named


@pytest.mark.parametrize(
    "path",
    [
        "occlusion/zarr.json",
        "occlusion/probability/zarr.json",
        "layers/relu1/occlusion/zarr.json",
        "ledger/occlusion/item-000001.json",
        "ledger/unit-occlusion/relu1/item-000001.json",
    ],
)
def test_other_missing_files_are_found_and_named(run: Path, path: str) -> None:
    (run / path).unlink()
    assert path in {fault.place for fault in verify(str(run), 0).faults}


@pytest.mark.parametrize(
    "path", ["ledger/occlusion/item-000001.json", "ledger/unit-occlusion/relu1/item-000001.json"]
)
def test_markers_that_cannot_be_read_are_named(run: Path, path: str) -> None:
    (run / path).write_bytes((run / path).read_bytes()[:5])
    assert path in {fault.place for fault in verify(str(run), 0).faults}


def changed(run: Path, path: str, place: Any, by: float) -> None:
    array: Any = RunStore(run).zarr("r+")[path]
    array[place] = np.asarray(array[place]) + by


@pytest.mark.parametrize(
    ("path", "by", "said"),
    [
        ("occlusion/probability", 0.01, "the probability is"),
        ("occlusion/activity", 2.0, "the activity of unit"),
        ("layers/relu1/occlusion", 0.5, "of relu1 is"),
    ],
)
def test_numbers_that_are_not_the_models_are_found_by_plain_forward_passes(
    run: Path, path: str, by: float, said: str
) -> None:
    changed(run, path, slice(None), by)
    reasons = [fault.reason for fault in verify(str(run), 2).faults]
    assert len(reasons) == 2 and all(said in reason for reason in reasons)


@pytest.mark.parametrize(
    ("path", "place", "place_named"),
    [
        ("occlusion/image", 1, "occlusion/image"),
        ("occlusion/y", slice(None), "occlusion/y"),
        ("occlusion/target", 2, "occlusion/target"),
    ],
)
def test_values_that_contradict_each_other_are_found(
    run: Path, path: str, place: Any, place_named: str
) -> None:
    changed(run, path, place, 1)
    assert place_named in [fault.place for fault in verify(str(run), 0).faults]


def test_numbers_beyond_a_box_are_found(residual: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(residual, run)
    array: Any = RunStore(run).zarr("r+")["layers/relu_2/occlusion"]
    values = np.asarray(array[...])
    unit, rank, *_ = np.argwhere(np.isnan(values))[0]
    array[unit] = np.nan_to_num(values[unit])
    (fault,) = verify(str(run), 0).faults
    assert f"unit {unit}, rank {rank + 1}" in fault.reason


def test_an_extended_run_covers_its_images_anew(calm: Path, tmp_path: Path) -> None:
    new = "shapes?size=7&seed=5"
    job, store = extend.create(str(calm), new, str(tmp_path / "extended"))
    pipeline.execute(job, store, InlineExecutor(), ignore)
    data = {"uri": ["shapes?size=18&seed=1", new]}
    run_inline(spec_of(SQUARES | {"units": ["relu1"]}, data=data), tmp_path / "all")
    assert_same_files(tmp_path / "all", tmp_path / "extended")


def test_a_model_object_in_a_notebook_is_covered_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(4)]
    namespace: dict[str, Any] = {}
    exec(RESIDUAL, namespace)
    run = workers.analyse(
        namespace["Residual"](),
        pictures,
        transform={"resize": 32, "crop": 32},
        labels=[0, 1, None, 3],
        analyses=[{"kind": "top", "k": 2}, {"kind": "occlusion", "images": {"ids": [3, 2]}}],
        out=tmp_path / "run",
    )
    assert run.occluded().column("image_id").to_pylist() == [3, 2]
    assert run.occlusion(3).target == 3
    assert run.occlusion(2).target == run.occlusion(2).clean_label


def lines_of(url: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((url / "ledger/occlusion").iterdir()):
        yield json.loads(path.read_text())


def test_a_marker_says_which_image_and_how_many_positions(calm: Path) -> None:
    run = deconvoy.open(calm)
    assert list(lines_of(calm)) == [
        {"image": row["image_id"], "positions": 9} for row in run.occluded().to_pylist()
    ]


# What others broke ------------------------------------------------------------------------------


def boxed_photographs(folder: Path, last: str) -> Path:
    """Twelve photographs of 80 pixels with a box each; the last one's is given."""
    photos = folder / "photos"
    names = [str(path.relative_to(photos)) for path in write_photographs(photos, 12)]
    rows = [f"{name},5,6,40,40" for name in names[:-1]] + [f"{names[-1]},{last}"]
    (folder / "boxes.csv").write_text("\n".join(["path,x0,y0,x1,y1", *rows]) + "\n")
    return folder


def boxed_spec(folder: Path) -> JobSpec:
    return small_spec(
        data={"uri": str(folder / "photos"), "boxes": str(folder / "boxes.csv")},
        layers=["relu2", "logits"],
        analyses=[
            {"kind": "top"},
            {"kind": "occlusion", "images": {"sample": 12}, "patch": 32, "stride": 32},
        ],
    )


def test_a_box_beyond_its_file_is_told_before_any_image_is_covered(tmp_path: Path) -> None:
    place = boxed_photographs(tmp_path, "5,6,900,40")
    job, store = pipeline.create(boxed_spec(place), str(tmp_path / "run"))
    with pytest.raises(RequestError, match=r"boxes\.csv.*11.*900.*80×91"):
        pipeline.execute(job, store, InlineExecutor(), ignore)
    assert not (tmp_path / "run/ledger/occlusion").exists()


def test_a_run_does_not_go_on_with_other_boxes(tmp_path: Path) -> None:
    place = boxed_photographs(tmp_path, "5,6,50,40")
    pipeline.create(boxed_spec(place), str(tmp_path / "run"))
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(boxes.read_text().replace("5,6,50,40", "5,6,60,40"))
    with pytest.raises(RequestError, match="boxes_sha256"):
        resume_inline(tmp_path / "run")


def test_a_square_as_large_as_the_image_is_foretold_in_seconds() -> None:
    spec = small_spec(analyses=[{"kind": "top"}, {"kind": "occlusion", "patch": 64}])
    assert plan(settle(spec)).seconds["occlusion"] < 600


def test_two_choices_of_images_are_refused() -> None:
    with pytest.raises(RequestError, match="one of sample, ids and top_of"):
        small_spec(
            analyses=[{"kind": "top"}, {"kind": "occlusion", "images": {"sample": 3, "ids": [1]}}]
        )
