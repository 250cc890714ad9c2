"""Test the analysis of evolution: what a run holds of every checkpoint is what full forward and
backward passes of that checkpoint give, whoever computes it and however often it is cut off.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import deconvoy
from deconvoy import figure4, queries
from deconvoy.errors import RequestError, RunNotFound
from deconvoy.evolution import settled, short_names
from deconvoy.spec import JobSpec
from tests import reference
from tests.runs import (
    Killed,
    assert_same_files,
    committed_in,
    grants_of,
    ignore,
    images_of,
    killed_at,
    places_of,
    resume_inline,
    run_inline,
    run_on_ray,
    small_spec,
    write_photographs,
)
from workers import pipeline
from workers.evolution import cosine, filters, overlap
from workers.executors.inline import InlineExecutor
from workers.graph import Network
from workers.plan import plan
from workers.verify import verify
from workers.zfnet import zfnet_small

K = 4
LAYERS = ("relu1", "relu5", "relu6", "logits")
EVOLUTION: dict[str, Any] = {
    "kind": "evolution",
    "layers": ["relu1", "relu5", "logits"],
    "units": {"ids": [0, 1, 9]},
}


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three states of one network on its way: a start, halfway to an end, and the end."""
    folder = tmp_path_factory.mktemp("training")
    torch.manual_seed(0)
    start = zfnet_small().state_dict()
    torch.manual_seed(1)
    end = zfnet_small().state_dict()
    paths = []
    for number, share in enumerate((0.0, 0.5, 1.0)):
        state = {name: (1 - share) * start[name] + share * end[name] for name in start}
        paths.append(str(folder / f"epoch-{number}.safetensors"))
        save_file(state, paths[-1])
    return paths


FOLDERS = ("evolution", "ledger/evolution", "layers", "images")
"""What two runs must agree in."""


def spec_of(training: list[str], **changes: Any) -> JobSpec:
    """18 images in three shards; the last checkpoint is the end, which counts once."""
    fields = {
        "model": {"weights": training[-1], "checkpoints": training},
        "data": {"uri": "shapes?size=18&seed=1"},
        "layers": list(LAYERS),
        "analyses": [{"kind": "top", "k": K}, EVOLUTION],
    }
    return small_spec(**(fields | changes))


@pytest.fixture(scope="module")
def calm(training: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("calm") / "run"
    run_inline(spec_of(training), url)
    return url


# --- numbers --------------------------------------------------------------------------------------


def test_overlaps_on_paper() -> None:
    final = np.array([[5, 6, 7], [5, 6, -1], [-1, -1, -1], [1, 2, 3]])
    image = np.array([[7, 5, 1], [9, 5, -1], [4, -1, -1], [-1, -1, -1]])
    found = overlap(image, final)
    assert found[:2].tolist() == pytest.approx([2 / 3, 1 / 2])
    assert np.isnan(found[2]) and found[3] == 0


def test_cosines_on_paper() -> None:
    now = torch.tensor([[1.0, 0.0], [3.0, 4.0], [-2.0, 0.0], [0.0, 0.0]])
    final = torch.tensor([[0.0, 2.0], [4.0, 3.0], [1.0, 0.0], [1.0, 1.0]])
    found = cosine(now, final)
    assert found[:3].tolist() == pytest.approx([0, 24 / 25, -1]) and np.isnan(found[3])


def test_a_curve_settles_where_it_stays_above() -> None:
    assert settled([0.2, 0.95, 0.8, 0.9, 1.0]) == 3
    assert settled([0.95, 0.95]) == 0 and settled([1.0, 0.5]) is None and settled([]) is None
    assert settled([float("nan"), 1.0]) == 1 and settled([float("nan")]) is None


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.way, self.down = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 6, 3)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(6, 5)
        nn.init.uniform_(self.norm.weight, 0.5, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(self.norm(self.stem(images)))
        summed = torch.relu(maps + self.way(maps))  # of no filter alone
        pooled = torch.relu(self.pool(self.down(summed)))  # behind a pool
        return self.head(pooled.mean((2, 3)))


def test_the_filter_of_a_layer_is_that_of_its_convolution() -> None:
    model = Mixed().eval()
    network = Network(model, (3, 16, 16))
    found = {layer.name: filters(network, layer) for layer in network.layers}
    folded = model.norm.weight / torch.sqrt(model.norm.running_var + model.norm.eps)
    assert torch.allclose(found["relu"], (model.stem.weight * folded.view(-1, 1, 1, 1)).flatten(1))
    assert torch.equal(found["logits"], model.head.weight)
    assert found["relu_1"] is None and found["relu_2"] is None


def test_names_are_short_where_they_differ() -> None:
    assert short_names(["a/epoch-1.pt", "b/epoch-2.pt"]) == ("epoch-1", "epoch-2")
    assert short_names(["a/last.pt", "b/last.pt"]) == ("a/last.pt", "b/last.pt")


# --- a run ----------------------------------------------------------------------------------------


def network_of(path: str) -> nn.Module:
    from safetensors.torch import load_file

    model = zfnet_small()
    model.load_state_dict(load_file(path))
    return model.eval()


def test_a_run_equals_the_oracles(calm: Path, training: list[str]) -> None:
    job, _ = pipeline.reopen(str(calm))
    images, places = images_of(job), places_of(job)
    run = deconvoy.open(calm)
    hits = [reference.brute_force(network_of(path), images, k=K) for path in training]
    by_id = dict(images)
    for layer, place in zip(LAYERS, places, strict=True):
        found = run.evolution(layer)
        assert found.names == ("epoch-0", "epoch-1", "epoch-2")
        final = [{hit.image for hit in unit if hit.image >= 0} for unit in hits[-1][place]]
        for column, every in enumerate(hits):
            scale = max(abs(own[0].score) for own in every[place] if own[0].image >= 0)
            for unit, own in enumerate(every[place]):
                assert found.image[unit, column] == own[0].image
                assert found.score[unit, column] == pytest.approx(own[0].score, abs=scale * 1e-4)
                if own[0].image >= 0:
                    assert found.position[unit, column].tolist() == [own[0].y, own[0].x]
                now = {hit.image for hit in own if hit.image >= 0}
                if final[unit]:
                    share = len(now & final[unit]) / len(final[unit])
                    assert found.overlap[unit, column] == pytest.approx(share)
                else:
                    assert np.isnan(found.overlap[unit, column])
        module = {"relu1": "conv1", "relu5": "conv5", "relu6": "fc6", "logits": "fc8"}[layer]
        weights = [
            getattr(network_of(path), module).weight.detach().flatten(1).double()
            for path in training
        ]
        for unit, column in ((0, 0), (3, 1), (7, 2)):
            one, two = weights[column][unit].tolist(), weights[-1][unit].tolist()
            dot = sum(a * b for a, b in zip(one, two, strict=True))
            norms = sum(a * a for a in one) ** 0.5 * sum(b * b for b in two) ** 0.5
            assert found.cosine[unit, column] == pytest.approx(dot / norms, abs=1e-6)
    found = run.evolution("relu5")
    layer = next(layer for layer in job.layers if layer.name == "relu5")
    for column, path in enumerate(training):
        own = hits[column][places[1]][9][0]
        if own.image < 0:
            continue
        whole = reference.deconvnet(
            network_of(path), by_id[own.image], places[1], 9, own.y, own.x
        ).permute(1, 2, 0).numpy()  # fmt: skip
        y0, x0, y1, x1 = layer.field.windows(np.array([[own.y, own.x]]))[0].tolist()
        shown = found.pictures(9).projections[column]
        padded = np.pad(whole, ((64, 64), (64, 64), (0, 0)))[y0 + 64 : y1 + 64, x0 + 64 : x1 + 64]
        assert shown.shape == padded.shape
        assert np.abs(shown - padded).max() <= np.abs(padded).max() / 100  # int8


def test_the_end_is_that_of_the_run(calm: Path) -> None:
    run = deconvoy.open(calm)
    for layer in LAYERS:
        found, hits = run.evolution(layer), run.table(layer).to_pylist()
        first = {hit["unit"]: hit for hit in hits if hit["rank"] == 0}
        for unit, hit in first.items():
            assert found.image[unit, -1] == hit["image_id"]
            assert found.score[unit, -1] == np.float32(hit["score"])
        alive = ~np.isnan(found.overlap[:, -1])
        assert (found.overlap[alive, -1] == 1).all()
        assert found.cosine[:, -1] == pytest.approx(np.ones(len(found.score)))
    projected = np.flatnonzero(run.evolution("relu5").projected).tolist()
    assert projected == [0, 1, 9] and not run.evolution("relu6").projected.any()


def test_queries_tell_the_curves_and_where_they_settle(calm: Path) -> None:
    run = deconvoy.open(calm)
    table = queries.ask(run, "evolution", ["relu1"])
    assert table["checkpoint"].to_pylist() == ["epoch-0", "epoch-1", "epoch-2"]
    curves = run.evolution("relu1").curves
    assert table["overlap"].to_pylist() == pytest.approx(curves["overlap"].tolist())
    assert queries.ask(run, "evolution").num_rows == 3 * len(LAYERS)
    rows = queries.ask(run, "settled", ["90"]).to_pylist()
    assert [row["layer"] for row in rows] == list(LAYERS)
    assert rows[0]["overlap_at"] == settled(curves["overlap"].tolist())
    assert rows[0]["cosine"] == "epoch-2"
    low = queries.ask(run, "settled", ["1"]).to_pylist()
    assert all(row["cosine_at"] <= 2 for row in low)


def test_the_figure_has_a_row_a_unit_and_a_column_a_checkpoint(calm: Path) -> None:
    found = deconvoy.open(calm).evolution("relu5")
    two = figure4.figure4(found, [0, 9], tile=32)
    one = figure4.figure4(found, [9], tile=32)
    assert two.height > one.height > 64 and two.width == one.width >= 3 * 32
    assert figure4.strongest(found) == [0, 1, 9]
    with pytest.raises(RunNotFound, match="unit 2 .* no pictures over time|Unit 2"):
        figure4.figure4(found, [2])
    with pytest.raises(RunNotFound, match="No unit of layer 'relu6'"):
        figure4.figure4(deconvoy.open(calm).evolution("relu6"))


def test_the_number_of_threads_changes_no_bit_and_progress_is_counted(
    calm: Path, training: list[str], tmp_path: Path
) -> None:
    seen: list[pipeline.Advance] = []
    job, run = pipeline.create(spec_of(training), str(tmp_path / "run"))
    pipeline.execute(job, run, InlineExecutor(threads=3), seen.append)
    assert_same_files(calm, tmp_path / "run", *FOLDERS)
    for stage, total in (("evolution-scan", 2 * 18), ("evolution", None)):
        own = [advance for advance in seen if advance.stage == stage]
        done = [advance.done for advance in own]
        assert done[0] == 0 and done == sorted(done) and done[-1] == own[-1].total > 0
        assert total in (None, own[-1].total)


@pytest.mark.ray
def test_any_workers_give_the_bits_of_the_inline_executor(
    ray_cluster: str, calm: Path, training: list[str], tmp_path: Path
) -> None:
    run_on_ray(spec_of(training), tmp_path / "run", workers=2)
    assert_same_files(calm, tmp_path / "run", *FOLDERS)


def test_a_run_cut_off_goes_on_to_the_same_bits_and_does_nothing_twice(
    calm: Path, training: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "run"
    job, run = pipeline.create(spec_of(training), str(url))
    killed_at(monkeypatch, "ledger/evolution", 2, 6)
    with pytest.raises(Killed):
        pipeline.execute(job, run, InlineExecutor(), ignore)
    with pytest.raises(RunNotFound, match="has no evolution: the run is failed"):
        deconvoy.open(url).evolution("relu1")
    with pytest.raises(Killed):
        resume_inline(url)
    resume_inline(url)
    assert_same_files(calm, url, *FOLDERS)
    grants = {item: n for item, n in grants_of(url).items() if "evolution" in item}
    assert sorted(grants.values()) == [1] * (len(grants) - 2) + [2, 2]
    assert set(grants) <= committed_in(url)


def test_equal_images_count_once_at_every_checkpoint(training: list[str], tmp_path: Path) -> None:
    data = {"uri": ["shapes?size=6&seed=1", "shapes?size=6&seed=1"], "distinct": True}
    run_inline(spec_of(training, data=data, layers=["relu1"], analyses=[
        {"kind": "top", "k": K}, EVOLUTION | {"layers": ["relu1"]}]), tmp_path / "run")  # fmt: skip
    found = deconvoy.open(tmp_path / "run").evolution("relu1")
    assert found.image.max() < 6


def test_a_shard_of_which_no_image_can_be_read_has_no_hits(
    training: list[str], tmp_path: Path
) -> None:
    broken, *_ = write_photographs(tmp_path / "images", 4)
    broken.write_bytes(b"no image")
    data = {"uri": str(tmp_path / "images"), "max_bad": 0.5}
    run_inline(spec_of(training, data=data, compute={"shard_size": 1}), tmp_path / "run")
    found = deconvoy.open(tmp_path / "run").evolution("relu5")
    assert set(found.image.ravel().tolist()) <= {-1, 1, 2, 3}
    assert verify(str(tmp_path / "run"), sample=0).faults == []


def test_the_plan_foretells_it(training: list[str]) -> None:
    from workers.job import settle

    told = plan(settle(spec_of(training)))
    assert told.further == {"evolution-scan": 36, "evolution": 27}
    assert told.bytes["evolution"] > 0 and told.seconds["evolution-scan"] > 0


# --- wrong input ----------------------------------------------------------------------------------


def test_wrong_specs_get_a_sentence(training: list[str], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="needs model.checkpoints"):
        spec_of(training, model={"weights": training[-1]})
    with pytest.raises(RequestError, match=r"model.weights, what they led to \(here: 3 "):
        spec_of(training, model={"checkpoints": training})
    top = {"kind": "top", "k": K, "outliers": {}}
    with pytest.raises(RequestError, match="top.outliers leaves images out"):
        spec_of(training, analyses=[top, EVOLUTION])
    with pytest.raises(RequestError, match="data.where.wrong takes other images"):
        spec_of(training, data={"where": {"wrong": True}})
    same = {"weights": training[-1], "checkpoints": [training[-1]]}
    with pytest.raises(RequestError, match="nothing evolves"):
        pipeline.create(spec_of(training, model=same), str(tmp_path / "run"))
    gone = {"weights": training[-1], "checkpoints": ["gone.safetensors"]}
    with pytest.raises(RequestError, match="model.checkpoints: .*gone.safetensors"):
        pipeline.create(spec_of(training, model=gone), str(tmp_path / "run"))
    unknown = EVOLUTION | {"layers": ["relu9"]}
    with pytest.raises(RequestError, match="analyses.evolution.layers: no layer matches 'relu9'"):
        pipeline.create(
            spec_of(training, analyses=[{"kind": "top"}, unknown]), str(tmp_path / "run")
        )
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_only_with_its_checkpoints(training: list[str], tmp_path: Path) -> None:
    copies = [shutil.copy(path, tmp_path) for path in training]
    pipeline.create(spec_of(copies), str(tmp_path / "run"))
    shutil.copy(training[1], copies[0])
    with pytest.raises(RequestError, match="began with another checkpoints_sha256"):
        pipeline.reopen(str(tmp_path / "run"))


def test_a_run_without_the_analysis_says_how_to_get_it(tmp_path: Path) -> None:
    run_inline(small_spec(layers=["relu1"], analyses=[{"kind": "top"}]), tmp_path / "run")
    with pytest.raises(RunNotFound, match="an analysis of kind evolution in the spec"):
        deconvoy.open(tmp_path / "run").evolution("relu1")


def test_verify_finds_what_is_missing_or_changed(calm: Path, tmp_path: Path) -> None:
    assert verify(str(calm), sample=5).faults == []
    url = tmp_path / "run"
    shutil.copytree(calm, url)
    shutil.rmtree(url / "evolution/relu1/overlap")
    shutil.rmtree(url / "evolution/relu5/patch/c")
    marker = url / "ledger/evolution-scan/part-000001.npz"
    marker.write_bytes(marker.read_bytes()[:-30])
    faults = {fault.place for fault in verify(str(url), sample=0).faults}
    assert faults == {
        "evolution/relu1/overlap/zarr.json",
        "evolution/relu5/patch/c/0/0/0/0/0",
        "ledger/evolution-scan/part-000001.npz",
    }
