"""Test the analysis of invariance: images move as the definition says, distances are those of two
plain forward passes, and a run holds the same bits whoever computes it and however often it is cut
off; what does not fit is refused.
"""

import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import deconvoy
from deconvoy import queries
from deconvoy.errors import ModelUnsupported, RequestError, RunNotFound
from deconvoy.figure5 import figure5
from deconvoy.schema import INVARIANCE_ARRAYS
from deconvoy.spec import InvarianceSpec, JobSpec, Transform
from tests import reference
from tests.runs import (
    Killed,
    assert_same_files,
    committed_in,
    grants_of,
    ignore,
    images_of,
    killed_at,
    model_of,
    places_of,
    resume_inline,
    run_inline,
    run_on_ray,
    small_spec,
)
from workers import pipeline
from workers.executors.inline import InlineExecutor
from workers.graph import Network
from workers.invariance import compare, invariance
from workers.invariance_items import moves_of
from workers.transformations import Border, Move, Transformation, moved
from workers.verify import verify

MOVES: dict[str, Any] = {
    "kind": "invariance",
    "images": {"sample": 3},
    "translation": [-8, 0, 3.5],
    "scale": [1, 1.5],
    "rotation": {"first": 0, "last": 90, "count": 3},
}

NOISE = torch.randint(0, 256, (2, 6, 7), generator=torch.Generator().manual_seed(3)).byte()

BORDERS: tuple[Border, ...] = ("mean", "edge", "reflect")


FOLDERS = ("invariance", "ledger/invariance", "layers", "images")
"""What two runs must agree in."""


def spec_of(invariance: dict[str, Any], **changes: Any) -> JobSpec:
    """18 images in three shards."""
    fields = {
        "data": {"uri": "shapes?size=18&seed=1"},
        "layers": ["relu1", "relu5", "relu7", "logits"],
        "analyses": [{"kind": "top", "k": 2}, invariance],
    }
    return small_spec(**(fields | changes))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("calm") / "run"
    run_inline(spec_of(MOVES), url)
    return url


# --- moves of pixels ------------------------------------------------------------------------------


def ramp(height: int, width: int) -> torch.Tensor:
    return torch.arange(height * width, dtype=torch.uint8).reshape(1, height, width)


def test_moves_on_paper() -> None:
    image = torch.tensor([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]], dtype=torch.uint8)
    down, left, back, quarter = moved(
        image,
        [
            Move("translation", 1.0),
            Move("rotation", 90.0),
            Move("rotation", 180.0),
            Move("scale", 3.0),
        ],
        "mean",
        (10.0,),
    )
    assert down[0].tolist() == [[10, 10, 10], [1, 2, 3], [4, 5, 6]]
    assert left[0].tolist() == [[3, 6, 9], [2, 5, 8], [1, 4, 7]]  # counter-clockwise
    assert back[0].tolist() == [[9, 8, 7], [6, 5, 4], [3, 2, 1]]
    thirds = [5 - 4 / 3, 5 - 1, 5 - 2 / 3], [5 - 1 / 3, 5, 5 + 1 / 3], [5 + 2 / 3, 6, 5 + 4 / 3]
    assert quarter[0].numpy() == pytest.approx(np.array(thirds), abs=1e-5)
    (half,) = moved(image, [Move("translation", -0.5)], "mean", (0.0,))
    assert half[0].tolist() == [[2.5, 3.5, 4.5], [5.5, 6.5, 7.5], [3.5, 4.0, 4.5]]


def test_what_comes_in_from_beyond_the_border() -> None:
    image, down = ramp(4, 2), [Move("translation", 2.0)]
    shown = {border: moved(image, down, border, (100.0,))[0, 0, :, 0] for border in BORDERS}
    assert shown["mean"].tolist() == [100, 100, 0, 2]
    assert shown["edge"].tolist() == [0, 0, 0, 2]
    assert shown["reflect"].tolist() == [2, 0, 0, 2]


@pytest.mark.parametrize("border", BORDERS)
def test_a_move_of_nothing_changes_no_bit(border: Border) -> None:
    still = [
        Move("translation", 0.0),
        Move("scale", 1.0),
        Move("rotation", 0.0),
        Move("rotation", 360.0),
    ]
    image = torch.randint(0, 256, (3, 61, 61), generator=torch.Generator().manual_seed(0)).byte()
    for same in moved(image, still, border, (1.0, 2.0, 3.0)):
        assert torch.equal(same, image.float())


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(
    "transformation,amount",
    [
        *product(["translation"], [-7.0, -1.25, 2.0, 20.0]),
        *product(["scale"], [0.4, 0.9, 1.7, 5.0]),
        *product(["rotation"], [-30.0, 45.0, 91.0, 270.0, 721.5]),
    ],
)
def test_moves_equal_the_oracles(
    border: Border, transformation: Transformation, amount: float
) -> None:
    (found,) = moved(NOISE, [Move(transformation, amount)], border, (30.0, 200.0))
    expected = reference.moved(NOISE, transformation, amount, border, (30.0, 200.0))
    assert found.numpy() == pytest.approx(expected.numpy(), abs=255 * 1e-6)


@settings(max_examples=30, deadline=None)
@given(
    amount=st.floats(-400, 400),
    transformation=st.sampled_from(["translation", "rotation"]),
    border=st.sampled_from(BORDERS),
)
def test_any_move_equals_the_oracles_and_stays_among_the_levels(
    amount: float, transformation: Transformation, border: Border
) -> None:
    image = NOISE[:, :4, :4]
    (found,) = moved(image, [Move(transformation, amount)], border, (30.0, 200.0))
    expected = reference.moved(image, transformation, amount, border, (30.0, 200.0))
    assert 0 <= found.min() and found.max() <= 255
    assert found.numpy() == pytest.approx(expected.numpy(), abs=255 * 1e-6)


def test_automatic_translations_are_the_papers() -> None:
    moves = moves_of(InvarianceSpec(kind="invariance"), 224)
    down = [move.amount for move in moves if move.transformation == "translation"]
    assert down == [-60, -50, -40, -30, -20, -10, 0, 10, 20, 30, 40, 50, 60]
    scales = [move.amount for move in moves if move.transformation == "scale"]
    assert scales == pytest.approx([1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8])
    assert [move.amount for move in moves if move.transformation == "rotation"][:3] == [0, 15, 30]
    few = [m.amount for m in moves_of(InvarianceSpec(kind="invariance"), 8)[:5]]
    assert few == [-2, -1, 0, 1, 2]


# --- distances ------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """A linear bottleneck, a ceiling, a sum, a concatenation, a functional rectifier, neurons."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU6())
        self.narrow = nn.Conv2d(6, 4, 1)
        self.wide = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.head = nn.Linear(12, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.stem(images * 6)  # many values reach the ceiling
        more = torch.relu(self.wide(self.narrow(maps)) + maps)
        return self.head(torch.cat([maps, more], 1).mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_distances_equal_the_oracles(dtype: torch.dtype) -> None:
    model = Mixed().to(dtype).eval()
    network = Network(model, (3, 16, 16))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 16, 16, generator=generator).to(dtype)
    found = compare(network, network.layers, images, others=2)
    precise = 1e-12 if dtype == torch.float64 else 1e-5
    for other in range(2):
        expected = reference.distances(model, images[0], images[other + 1], also=["narrow"])
        apart, norm = zip(*expected, strict=True)
        assert found.distance[other] == pytest.approx(np.array(apart), rel=precise)
        assert found.norm == pytest.approx(np.array(norm), rel=precise)
    logits = model(images[:3]).detach().numpy()
    assert found.logits == pytest.approx(logits, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_batches_of_any_size_give_the_same(batch_size: int) -> None:
    network = Network(Mixed().eval(), (3, 16, 16))
    transform = Transform(resize=16, crop=16)
    pixels = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(1)).byte()
    moves = [Move("translation", float(step)) for step in range(-3, 4)]
    found = invariance(
        network, network.layers, pixels, moves, "edge", (0.0, 0.0, 0.0), transform, batch_size
    )
    assert found.distance.shape == (7, len(network.layers)) and (found.distance[3] == 0).all()
    alone = invariance(
        network, network.layers, pixels, moves[5:6], "edge", (0.0, 0.0, 0.0), transform, 4
    )
    assert found.distance[5:6] == pytest.approx(alone.distance, rel=1e-5)


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_equals_the_oracles(calm: Path) -> None:
    job, _ = pipeline.reopen(str(calm))
    model, transform = model_of(job), job.packed.transform
    found = deconvoy.open(calm).invariance()
    fill = [255 * mean for mean in transform.mean]
    images = dict(images_of(job))
    places = places_of(job)
    assert found.layers == ("relu1", "relu5", "relu7", "logits") and len(found.image) == 3
    assert found.transformation == ("translation",) * 3 + ("scale",) * 2 + ("rotation",) * 3
    assert found.amount.tolist() == [-8, 0, 3.5, 1, 1.5, 0, 45, 90]
    image, row = int(found.image[1]), 1
    pixels = job.listing.source.read(found.uris[row], transform).pixels
    for step, (kind, amount) in enumerate(zip(found.transformation, found.amount, strict=True)):
        levels = reference.moved(pixels, kind, amount, "mean", fill).float()
        other = reference.normalise(levels, transform.mean, transform.std)
        expected = [reference.distances(model, images[image], other)[place] for place in places]
        apart, norm = zip(*expected, strict=True)
        assert found.distance[row, step] == pytest.approx(np.array(apart), rel=1e-4, abs=1e-4)
        assert found.norm[row] == pytest.approx(np.array(norm), rel=1e-4)
        shares = torch.softmax(model(other[None]).double(), 1)[0].detach().numpy()
        assert found.probability[row, step] == pytest.approx(shares[found.target[row]], rel=1e-3)
        assert found.label[row, step] == shares.argmax()
    still = [1, 3, 5]
    assert (found.distance[:, still] == 0).all() and (found.relative[:, still] == 0).all()
    assert (found.probability[:, still] == found.clean_probability[:, None]).all()
    assert found.target.tolist() == deconvoy.open(calm).images_of(found.image)["label"].to_pylist()


def test_the_query_means_over_the_images(calm: Path) -> None:
    run = deconvoy.open(calm)
    found = run.invariance()
    table = queries.ask(run, "invariance", ["relu5", "scale"])
    assert table.num_rows == 2 and table["amount"].to_pylist() == [1, 1.5]
    relative = found.distance[:, 4, 1] / found.norm[:, 1]
    row = table.to_pylist()[1]
    assert row["relative"] == pytest.approx(relative.mean())
    assert row["deviation"] == pytest.approx(relative.std())
    assert row["distance"] == pytest.approx(found.distance[:, 4, 1].mean())
    assert row["probability"] == pytest.approx(found.probability[:, 4].mean())
    with pytest.raises(RequestError, match="no transformation 'scaling'; nearest: scale"):
        queries.ask(run, "invariance", [], {"transformation": "scaling"})
    with pytest.raises(RunNotFound, match="no layer 'relu6'"):
        queries.ask(run, "invariance", ["relu6"])


def test_the_figure_has_a_row_a_transformation(calm: Path) -> None:
    found = deconvoy.open(calm).invariance()
    page = figure5(found)
    assert page.height > 3 * 200 and figure5(found, "relu5").size != (0, 0)
    with pytest.raises(RunNotFound, match="The invariance has no layer 'relu9'"):
        figure5(found, "relu9")


def test_a_silent_layer_has_no_relative_distance() -> None:
    network = Network(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten()).eval(), (3, 4, 4))
    images = torch.zeros(2, 3, 4, 4)
    for parameter in network.steps[1].module.parameters():  # type: ignore[union-attr]
        parameter.data.fill_(-1.0)
    found = compare(network, network.layers, images, 1)
    assert found.norm[0] == 0 and found.distance[0, 0] == 0


def test_the_number_of_threads_changes_no_bit_and_progress_counts_moves(
    calm: Path, tmp_path: Path
) -> None:
    seen: list[pipeline.Advance] = []
    job, run = pipeline.create(spec_of(MOVES), str(tmp_path / "run"))
    pipeline.execute(job, run, InlineExecutor(threads=3), seen.append)
    assert_same_files(calm, tmp_path / "run", *FOLDERS)
    own = [advance for advance in seen if advance.stage == "invariance"]
    done = [advance.done for advance in own]
    assert done[0] == 0 and done == sorted(done) and done[-1] == own[-1].total == 3 * 8


@pytest.mark.ray
def test_any_workers_give_the_bits_of_the_inline_executor(
    ray_cluster: str, calm: Path, tmp_path: Path
) -> None:
    run_on_ray(spec_of(MOVES), tmp_path / "run", workers=2)
    assert_same_files(calm, tmp_path / "run", *FOLDERS)


def test_a_run_cut_off_goes_on_to_the_same_bits_and_does_nothing_twice(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "run"
    job, run = pipeline.create(spec_of(MOVES), str(url))
    killed_at(monkeypatch, "ledger/invariance/", 2)
    with pytest.raises(Killed):
        pipeline.execute(job, run, InlineExecutor(), ignore)
    assert len(deconvoy.open(url).invariance().image) == 2
    resume_inline(url)
    assert_same_files(calm, url, *FOLDERS)
    grants = {item: n for item, n in grants_of(url).items() if "invariance" in item}
    assert sorted(grants.values()) == [1, 1, 2] and set(grants) <= committed_in(url)


# --- wrong input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong,words",
    [
        ({"translation": None, "scale": None, "rotation": None}, "nothing would be moved"),
        ({"scale": [0]}, "scale has factors from 0.1 to 10"),
        ({"scale": {"first": 1, "last": 2}}, "scale"),
        ({"rotation": []}, "rotation"),
        ({"border": "wrap"}, "border"),
        ({"images": {"sample": 0}}, "images"),
        ({"images": {"sample": 1, "ids": [0]}}, "are one of sample and ids"),
        ({"layers": ["relu1"]}, "layers"),
        ({"translation": "all"}, "translation"),
    ],
)
def test_a_wrong_spec_gets_a_sentence(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words) as raised:
        spec_of(MOVES | wrong)
    assert "\n" not in str(raised.value)


def test_an_image_that_is_not_there_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="analyses.invariance.images.ids has 99"):
        pipeline.create(spec_of(MOVES | {"images": {"ids": [99]}}), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_model_that_mixes_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mixing.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 8, 8), "
        "nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Flatten(), "
        "nn.LazyLinear(3))\n".replace("nn.LazyLinear(3)", "nn.Linear(256, 3)"),
        encoding="utf-8",
    )
    spec = spec_of(
        MOVES,
        model={"name": f"{tmp_path / 'mixing.py'}:make"},
        data={"uri": "shapes?size=9&seed=2", "transform": {"resize": 64, "crop": 64}},
        layers="all",
    )
    with pytest.raises(ModelUnsupported, match="analyses.invariance: .* BatchNorm"):
        pipeline.create(spec, str(tmp_path / "run"))


def test_a_run_without_the_analysis_says_how_to_get_it(tmp_path: Path) -> None:
    run_inline(spec_of({"kind": "projection", "layers": ["relu1"], "units": {"ids": [0]}}),
               tmp_path / "run")  # fmt: skip
    with pytest.raises(RunNotFound, match="an analysis of kind invariance in the spec"):
        deconvoy.open(tmp_path / "run").invariance()


def test_verify_finds_what_is_missing_or_changed(calm: Path, tmp_path: Path) -> None:
    assert verify(str(calm), sample=0).faults == []
    url = tmp_path / "run"
    shutil.copytree(calm, url)
    (url / "ledger/invariance/item-000001.json").unlink()
    (url / "invariance/distance/c/0/0/0").unlink()
    faults = {fault.place for fault in verify(str(url), sample=0).faults}
    assert faults == {"ledger/invariance/item-000001.json", "invariance/distance/c/0/0/0"}


def test_every_array_of_the_schema_is_written(calm: Path) -> None:
    names = {path.name for path in (calm / "invariance").iterdir() if path.is_dir()}
    assert names == {field.name for field in INVARIANCE_ARRAYS}
