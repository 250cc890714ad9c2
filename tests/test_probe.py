"""Test the probe: features are means over cells, folds are as drawn, classifiers are those of their
objectives; a run holds the same whoever computes it and however often it is cut off.
"""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import deconvoy
from deconvoy import queries
from deconvoy.errors import (
    ActivationInvalid,
    JobStopped,
    RequestError,
    RunNotFound,
    TooManyBadImages,
)
from deconvoy.probe_figure import probe_figure
from deconvoy.spec import JobSpec
from tests import reference
from tests.runs import (
    Killed,
    assert_same_files,
    committed_in,
    grants_of,
    ignore,
    killed_at,
    model_of,
    places_of,
    resume_inline,
    run_inline,
    run_on_ray,
    small_spec,
    write_photographs,
)
from workers import pipeline
from workers.actor import Actor
from workers.executors.inline import InlineExecutor
from workers.folds import require_enough, split
from workers.graph import Network
from workers.job import settle
from workers.models import pack_module
from workers.plan import plan
from workers.pooling import cells, count, pooled, told
from workers.probe import accuracy, fit, standard
from workers.scratch import FirstOutputs, _told
from workers.scratch_stage import scratch_work
from workers.training import Recipe, Training
from workers.verify import verify

PROBE: dict[str, Any] = {
    "kind": "probe",
    "data": {"uri": "shapes?size=60&seed=7"},
    "layers": ["relu1", "relu5", "logits"],
    "features": 128,
    "train": [1, 3],
    "test": 2,
    "folds": 2,
}


FOLDERS = ("probe", "ledger/probe", "ledger/probe-features", "layers", "images")
"""What two runs must agree in."""


def spec_of(probe: dict[str, Any], **changes: Any) -> JobSpec:
    fields = {
        "data": {"uri": "shapes?size=16&seed=1"},
        "analyses": [{"kind": "top", "k": 2}, probe],
    }
    return small_spec(**(fields | {"layers": ["relu1", "relu5", "logits"]} | changes))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("calm") / "run"
    run_inline(spec_of(PROBE), url)
    return url


# --- features -------------------------------------------------------------------------------------


def layers_of() -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.ReLU6(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 5 * 5, 7),
    )  # fmt: skip
    return Network(model.eval(), (3, 15, 15))


@pytest.mark.parametrize("grid", [1, 2, 3, 5, None])
def test_features_are_means_over_cells(grid: int | None) -> None:
    network = layers_of()
    images = 20 * torch.randn(2, 3, 15, 15, generator=torch.Generator().manual_seed(1))
    found: dict[str, torch.Tensor] = {}
    shown: dict[str, torch.Tensor] = {}

    def see(layer: Any, values: torch.Tensor) -> None:
        own = grid if layer.is_map else None
        found[layer.name] = pooled(values, layer, own)
        cut = values.clamp(0, 6) if layer.ceiling else values
        shown[layer.name] = cut.clone()

    network.forward(images, see)
    for layer in network.layers:
        for image in range(2):
            maps = shown[layer.name][image]
            expected = reference.cell_means(maps, grid) if grid and layer.is_map else maps
            assert found[layer.name][image].tolist() == pytest.approx(
                expected.flatten().tolist(), rel=1e-5, abs=1e-6
            )
        own = grid if layer.is_map else None
        assert found[layer.name].shape[1] == count(layer, own)


def test_the_finest_grid_is_taken_that_leaves_few_features() -> None:
    maps, _, logits = layers_of().layers  # 4 × 7 × 7, 6 × 5 × 5, 7
    assert cells(maps, "auto", 64) == 4 and cells(maps, "auto", 1) == 1
    assert cells(maps, "auto", 10_000) == 7 and cells(maps, 3, 1) == 3 and cells(maps, 50, 1) == 7
    assert cells(maps, "flat", 1) is None and cells(logits, 3, 1) is None
    assert told(maps, 4) == "mean over 4×4 cells" and told(maps, None) == "flattened"
    assert told(logits, None) == "as they are"


# --- folds ----------------------------------------------------------------------------------------

LABEL = np.array([0, 1, 0, 1, 0, 1, 0, -1, 1, 0, 2, 2, 2, 2])


def test_folds_are_nested_disjoint_and_drawn_by_the_seed() -> None:
    large = split(LABEL, 2, 2, 9, fold=0, seed=3)
    small = split(LABEL, 1, 2, 9, fold=0, seed=3)
    assert set(small.train) < set(large.train) and list(small.test) == list(large.test)
    assert not set(large.train) & set(large.test) and 7 not in {*large.train, *large.test}
    assert np.bincount(LABEL[large.train]).tolist() == [2, 2, 2]
    assert np.bincount(LABEL[large.test]).tolist() == [3, 2, 2]
    assert list(split(LABEL, 2, 2, 9, 0, 3).train) == list(large.train)
    others = [split(LABEL, 2, 2, 9, fold, seed).train.tolist() for fold, seed in ((1, 3), (0, 4))]
    assert large.train.tolist() not in others
    assert np.bincount(LABEL[split(LABEL, 2, 2, 1, 0, 3).test]).tolist() == [1, 1, 1]


def test_too_few_images_are_told_with_their_class() -> None:
    require_enough(LABEL, ("a", "b", "c"), (3,))
    with pytest.raises(RequestError, match="class 'b' has 4 in all|class 'c' has 4 in all"):
        require_enough(LABEL, ("a", "b", "c"), (2, 4))
    with pytest.raises(RequestError, match="images of 1 class"):
        require_enough(np.zeros(4, np.int64), ("a",), (1,))


# --- classifiers ----------------------------------------------------------------------------------


def test_accuracies_on_paper() -> None:
    label, found = np.array([0, 0, 0, 0, 1, 2]), np.array([0, 0, 0, 1, 1, 0])
    assert accuracy(found, label) == pytest.approx((3 / 4 + 1 + 0) / 3)
    assert accuracy(found, label) == pytest.approx(
        reference.class_accuracy(found.tolist(), label.tolist())
    )


def test_standardised_by_what_is_learned_from() -> None:
    features = np.array([[1.0, 5.0], [3.0, 5.0]], np.float32)
    mean, deviation = standard(features)
    assert mean.tolist() == [2, 5] and deviation.tolist() == [1, 1]


def blobs(seed: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(3), 12)
    centres = rng.normal(size=(3, 4))
    return (centres[label] + spread * rng.normal(size=(36, 4))).astype(np.float32), label


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_softmax_regression_is_that_of_its_objective(c: float) -> None:
    features, label = blobs(0, 1.2)
    images = split(label, 8, 8, 4, 0, 0)
    mean, deviation = standard(features[images.train])
    learned = torch.from_numpy((features[images.train] - mean) / deviation)
    weight, bias = reference.softmax_regression(
        learned, torch.from_numpy(label[images.train]), 3, c
    )
    judged = torch.from_numpy((features[images.test] - mean) / deviation)
    expected = (judged @ weight.T + bias).argmax(1).tolist()
    found = fit(features, label, images, "softmax", c)
    assert found.converged
    assert found.accuracy == pytest.approx(
        reference.class_accuracy(expected, label[images.test].tolist())
    )


@pytest.mark.parametrize("classifier", ["softmax", "svm"])
def test_what_is_apart_is_told_apart_and_bits_stay(classifier: str) -> None:
    features, label = blobs(1, 0.05)
    images = split(label, 8, 8, 4, 0, 0)
    one, two = (fit(features, label, images, classifier, 1.0) for _ in range(2))
    assert one == two and one.accuracy == 1.0 and one.converged


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_holds_the_features_of_the_oracle(calm: Path) -> None:
    import zarr

    job, _ = pipeline.reopen(str(calm))
    assert job.probing is not None
    model, transform = model_of(job), job.packed.transform
    root = zarr.open_group(calm, mode="r", use_consolidated=False)
    image = 23
    pixels = job.probing.listing.source.read(str(image), transform).pixels
    whole = reference.layer_outputs(
        model, reference.normalise(pixels, transform.mean, transform.std)[None]
    )
    for name, place, layer in zip(
        ("relu1", "relu5", "logits"), places_of(job), job.layers, strict=True
    ):
        stored: Any = root[f"probe/trained/{name}/features"]
        grid = cells(layer, "auto", 128)
        maps = whole[place][0]
        expected = reference.cell_means(maps, grid) if grid else maps
        assert stored[image].tolist() == pytest.approx(
            expected.flatten().tolist(), rel=1e-3, abs=1e-4
        )
    trained, plain = (root[f"probe/{w}/relu5/features"] for w in ("trained", "random"))
    assert np.array_equal(trained[:], plain[:])  # the model's own weights are random by the seed


def test_the_query_means_over_the_folds(calm: Path) -> None:
    run = deconvoy.open(calm)
    found = run.probe()
    assert found.accuracy.shape == (2, 3, 2, 2, 2) and found.chance == 0.1
    assert found.classes[0] == "face" and found.train == (1, 3)
    rows = queries.ask(run, "probe", ["relu5"]).to_pylist()
    assert len(rows) == 8 and rows[0]["weights"] == "trained" and rows[0]["train"] == 1
    assert rows[1]["accuracy"] == pytest.approx(found.accuracy[0, 1, 0, 1].mean())
    assert rows[1]["deviation"] == pytest.approx(found.accuracy[0, 1, 0, 1].std())
    with pytest.raises(RunNotFound, match="no layer 'relu9'"):
        queries.ask(run, "probe", ["relu9"])


def test_the_figure_shows_a_curve_more_where_there_are_several_sizes(calm: Path) -> None:
    found = deconvoy.open(calm).probe()
    both = probe_figure(found)
    last = {name: getattr(found, name)[:, :, :, 1:] for name in ("accuracy", "converged")}
    alone = probe_figure(replace(found, train=(3,), **last))
    assert both.width > alone.width > 300 and both.height > 300


def test_the_number_of_threads_changes_no_bit_and_progress_is_counted(
    calm: Path, tmp_path: Path
) -> None:
    seen: list[pipeline.Advance] = []
    job, run = pipeline.create(spec_of(PROBE), str(tmp_path / "run"))
    pipeline.execute(job, run, InlineExecutor(threads=3), seen.append)
    assert_same_files(calm, tmp_path / "run", *FOLDERS)
    for stage, total in (("probe-features", 2 * 60), ("probe", 2 * 3 * 8)):
        done = [advance.done for advance in seen if advance.stage == stage]
        assert done[0] == 0 and done == sorted(done) and done[-1] == total


@pytest.mark.ray
def test_any_workers_give_the_bits_of_the_inline_executor(
    ray_cluster: str, calm: Path, tmp_path: Path
) -> None:
    run_on_ray(spec_of(PROBE), tmp_path / "run", workers=2)
    assert_same_files(calm, tmp_path / "run", *FOLDERS)


def test_a_run_cut_off_goes_on_to_the_same_bits_and_does_nothing_twice(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "run"
    job, run = pipeline.create(spec_of(PROBE), str(url))
    killed_at(monkeypatch, "ledger/probe", 3, 19)
    with pytest.raises(Killed):
        pipeline.execute(job, run, InlineExecutor(), ignore)
    with pytest.raises(Killed):
        resume_inline(url)
    with pytest.raises(RunNotFound, match="is not finished: the run is failed"):
        deconvoy.open(url).probe()
    resume_inline(url)
    assert_same_files(calm, url, *FOLDERS)
    grants = {item: n for item, n in grants_of(url).items() if "probe" in item}
    assert sorted(grants.values()) == [1] * (len(grants) - 2) + [2, 2]
    assert set(grants) <= committed_in(url)


def test_the_plan_foretells_it() -> None:
    told = plan(settle(spec_of(PROBE)))
    assert told.further == {"probe-features": 120, "probe": 48}
    assert told.bytes["probe-features"] > 0 < told.seconds["probe"]


def test_folders_are_classes_and_bad_images_are_left_out(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "images", 12)
    photographs[0].write_bytes(b"no image")
    data = {"uri": str(tmp_path / "images"), "max_bad": 0.1}
    probe = PROBE | {"data": data, "train": [2], "random_weights": False}
    run_inline(spec_of(probe), tmp_path / "run")
    found = deconvoy.open(tmp_path / "run").probe()
    assert found.classes == ("a", "b") and found.weights == ("trained",)
    with pytest.raises(TooManyBadImages, match="1 of 12 images of analyses.probe.data"):
        run_inline(spec_of(probe | {"data": data | {"max_bad": 0.05}}), tmp_path / "strict")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"train": [6]}, "analyses.probe.train takes 6 images .* 'face' has 6 in all"),
        ({"layers": ["relu9"]}, "analyses.probe.layers: no layer matches 'relu9'"),
        ({"data": {"uri": "nowhere"}}, "analyses.probe.data"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(
    tmp_path: Path, wrong: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        pipeline.create(spec_of(PROBE | wrong), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_wrong_fields_get_a_sentence() -> None:
    for wrong in ({"train": []}, {"pool": "max"}, {"classifiers": ["tree"]}, {"c": 0}):
        with pytest.raises(RequestError, match=next(iter(wrong))) as raised:
            spec_of(PROBE | wrong)
        assert "\n" not in str(raised.value)


def test_verify_finds_what_is_missing(calm: Path, tmp_path: Path) -> None:
    assert verify(str(calm), sample=0).faults == []
    url = tmp_path / "run"
    shutil.copytree(calm, url)
    (url / "ledger/probe/random/item-000001.json").unlink()
    (url / "probe/accuracy/c/0/1/0/0/0").unlink()
    shutil.rmtree(url / "probe/trained/relu5/features/c")
    faults = {fault.place for fault in verify(str(url), sample=0).faults}
    assert "ledger/probe/random/item-000001.json" in faults
    assert "probe/accuracy/c/0/1/0/0/0" in faults
    assert any(place.startswith("probe/trained/relu5/features/c") for place in faults)


# --- from scratch ---------------------------------------------------------------------------------

NETWORK = """
from torch import nn

def network(outputs=5):
    made = nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, outputs),
    )
    made.transform = {"resize": 24, "crop": 24, "mean": [0.5] * 3, "std": [0.25] * 3}
    return made
"""
"""Learns a little of a few images in no time; one output more than there are classes."""

SCRATCH = {"epochs": 6, "batch_size": 8, "learning_rate": 0.05}
CLASSES, EACH = "abcd", 26


def network_of(seed: int) -> nn.Module:
    made: dict[str, Any] = {}
    exec(NETWORK, made)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = made["network"]()
    return model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with that network's file, with weights of it, and with images of noise in a tint
    that tells the class of some."""
    folder, rng = tmp_path_factory.mktemp("scratch"), np.random.default_rng(0)
    (folder / "net.py").write_text(NETWORK)
    save_file(network_of(5).state_dict(), folder / "net.safetensors")
    tints = 28 * np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    for number in range(len(CLASSES) * EACH):
        kind = number % len(CLASSES)
        pixels = rng.normal(128, 60, (24, 24, 3)) + rng.normal(0, 25, 3) + tints[kind]
        path = folder / "images" / CLASSES[kind] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return folder


def scratch_spec(place: Path, changes: dict[str, Any] | None = None, outputs: int = 5) -> JobSpec:
    probe = {
        "kind": "probe", "data": {"uri": str(place / "images")}, "classifiers": ["softmax"],
        "train": [3, 12], "test": 12, "folds": 2, "random_weights": False, "scratch": SCRATCH,
    }  # fmt: skip
    model: dict[str, Any] = {"name": f"{place}/net.py:network", "arguments": {"outputs": outputs}}
    if outputs == 5:
        model["weights"] = f"{place}/net.safetensors"
    return spec_of(probe | (changes or {}), model=model, layers=["logits"])


@pytest.fixture(scope="module")
def scratched(place: Path) -> Path:
    run_inline(scratch_spec(place), place / "run")
    return place / "run"


SCRATCHED = (*FOLDERS, "ledger/probe-scratch")


def plainly_trained(
    model: nn.Module, images: torch.Tensor, label: torch.Tensor, *, epochs: int, seed: int
) -> None:
    """Its first outputs, in place, eight images a step, from a rate of 0.05 down in a line."""
    orders = (reference.order_of(seed, epoch, len(label)) for epoch in range(1, epochs + 1))
    rates = [0.05 * (1 - epoch / epochs) for epoch in range(epochs)]
    reference.trained(model.train(), images, label, orders, rates, 8, 0.9, 0.1, len(CLASSES))
    model.eval()


def test_the_first_outputs_are_trained_by_plain_steps() -> None:
    rng = np.random.default_rng(1)
    pixels = torch.from_numpy(rng.integers(0, 256, (21, 3, 24, 24), dtype=np.uint8))
    label = torch.from_numpy(np.arange(21) % 4)
    one, other = network_of(3), network_of(3)
    with torch.no_grad():
        for model in (one, other):
            model[0].weight[0] *= 10  # type: ignore[index,operator,union-attr]
    training = Training(
        FirstOutputs(one, 4), pixels, label, mean=[0.5] * 3, std=[0.25] * 3,
        recipe=Recipe(epochs=3, batch_size=8, learning_rate=0.05), seed=9,
    )  # fmt: skip
    for _ in range(3):
        training.go_through()
    images = torch.stack([reference.normalise(one, [0.5] * 3, [0.25] * 3) for one in pixels])
    with torch.random.fork_rng():
        plainly_trained(other, images, label, epochs=3, seed=9)
    for (name, found), expected in zip(
        one.state_dict().items(), other.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_batchnorm_does_not_learn_from_scratch_by_one_image_at_a_time(place: Path) -> None:
    changes = {"scratch": {**SCRATCH, "batch_size": 1}}
    spec = scratch_spec(place, changes).to_json()
    spec["model"] = {"name": "torchvision/resnet18"}
    spec["layers"] = "all"
    with pytest.raises(RequestError, match="scratch.batch_size is 1, but .* has BatchNorm"):
        settle(JobSpec.parse(spec))


def test_from_scratch_is_what_plain_steps_come_to(scratched: Path) -> None:
    job, _ = pipeline.reopen(str(scratched))
    probing, transform = job.probing, job.packed.transform
    assert probing is not None
    images = torch.stack([
        reference.normalise(
            probing.listing.source.read(uri, transform).pixels, transform.mean, transform.std
        )
        for uri in probing.listing.uris
    ])  # fmt: skip
    found = deconvoy.open(scratched).probe().scratch
    assert found is not None and found.shape == (2, 2) and len(np.unique(found)) > 2
    label = torch.from_numpy(probing.label)
    for size, fold in np.ndindex(2, 2):
        drawn = split(probing.label, (3, 12)[size], 12, 12, fold, job.spec.seed)
        model = network_of(job.spec.seed)
        with torch.random.fork_rng():
            plainly_trained(
                model, images[drawn.train], label[drawn.train], epochs=6, seed=job.spec.seed
            )
        with torch.no_grad():
            told = model(images[drawn.test])[:, : len(CLASSES)].argmax(1).tolist()
        expected = reference.class_accuracy(told, label[drawn.test].tolist())
        # Rounding may tell one image of the 48 otherwise.
        assert found[size, fold] == pytest.approx(expected, abs=1.01 / 48)


def test_the_query_the_figure_and_the_view_have_it_last(scratched: Path) -> None:
    from dashboard.views.probe import _table

    found = deconvoy.open(scratched).probe()
    assert found.scratch is not None
    *others, small, large = queries.ask(deconvoy.open(scratched), "probe", []).to_pylist()
    assert [row["weights"] for row in others] == ["trained"] * 2
    assert small | large == large and large == {
        "layer": "whole network", "features": "", "weights": "scratch", "classifier": "softmax",
        "train": 12, "accuracy": found.scratch[1].mean(), "deviation": found.scratch[1].std(),
        "converged": None,
    }  # fmt: skip
    pages = [np.asarray(probe_figure(one)) for one in (found, replace(found, scratch=None))]
    assert pages[0].shape == pages[1].shape and (pages[0] != pages[1]).any()
    mean, deviation = 100 * found.scratch[1].mean(), 100 * found.scratch[1].std()
    assert f'from scratch</td><td colspan="1">{mean:.1f} ± {deviation:.1f} %' in _table(found, 1)
    assert "scratch" not in _table(replace(found, scratch=None), 1)


def test_threads_change_no_bit_of_it_and_every_image_is_counted(
    place: Path, scratched: Path, tmp_path: Path
) -> None:
    seen: list[pipeline.Advance] = []
    job, run = pipeline.create(scratch_spec(place), str(tmp_path / "run"))
    pipeline.execute(job, run, InlineExecutor(threads=3), seen.append)
    assert_same_files(scratched, tmp_path / "run", *SCRATCHED)
    done = [advance.done for advance in seen if advance.stage == "probe-scratch"]
    total = 2 * (7 * 4 * 3 + 48) + 2 * (7 * 4 * 12 + 48)
    assert done[0] == 0 and done == sorted(done) and done[-1] == total
    assert plan(settle(scratch_spec(place))).further["probe-scratch"] == total


@pytest.mark.ray
def test_any_workers_train_to_the_bits_of_the_inline_executor(
    ray_cluster: str, place: Path, scratched: Path, tmp_path: Path
) -> None:
    run_on_ray(scratch_spec(place), tmp_path / "run", workers=2)
    assert_same_files(scratched, tmp_path / "run", *SCRATCHED)


def test_trainings_cut_off_go_on_to_the_same_bits_and_none_is_done_twice(
    place: Path, scratched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "run"
    job, run = pipeline.create(scratch_spec(place), str(url))
    killed_at(monkeypatch, "ledger/probe-scratch", 2, 4)
    with pytest.raises(Killed):
        pipeline.execute(job, run, InlineExecutor(), ignore)
    with pytest.raises(Killed):
        resume_inline(url)
    with pytest.raises(RunNotFound, match="is not finished: the run is failed"):
        deconvoy.open(url).probe()
    resume_inline(url)
    assert_same_files(scratched, url, *SCRATCHED)
    grants = {item: n for item, n in grants_of(url).items() if "probe" in item}
    names = [f"probe-scratch/item-{number:06d}" for number in range(4)]
    assert [grants[name] for name in names] == [1, 2, 2, 1]
    assert sum(grants.values()) == len(grants) + 2 and set(grants) <= committed_in(url)


def test_a_worker_can_be_stopped_between_two_batches(scratched: Path) -> None:
    job, run = pipeline.reopen(str(scratched))
    assert job.probing is not None
    work = scratch_work(run, job.probing)
    assert work is not None and work.left == [] and work.done == work.total
    lease: Any = work.lease_of("probe-scratch/item-000003")
    actor = Actor(job.assignment(run.url, 1))
    with ThreadPoolExecutor(1) as pool:
        long = replace(lease, recipe=replace(lease.recipe, epochs=500))
        training = pool.submit(actor.work, long)
        while actor.progress() <= len(lease.train) and not training.done():
            time.sleep(0.01)
        actor.stop()
        with pytest.raises(JobStopped):
            training.result(timeout=60)


def test_outputs_that_are_not_finite_are_no_answer() -> None:
    with pytest.raises(ActivationInvalid, match="not finite: lower .*scratch.learning_rate"):
        _told(nn.Flatten(), torch.tensor([1.0, torch.nan]).reshape(1, 2, 1, 1))


def test_what_cannot_be_trained_is_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = "takes an output for each of the 4 classes .*/net.py:network has 3 outputs: give it more"
    with pytest.raises(RequestError, match=few):
        pipeline.create(scratch_spec(place, outputs=3), str(tmp_path / "run"))
    spec = scratch_spec(place)
    own = spec.model_copy(update={"model": spec.model.model_copy(update={"name": "object/Mine"})})
    packed = settle(spec).packed
    model = pack_module(packed.build(), "object/Mine", {}, None, (), packed.transform, "the call")
    with pytest.raises(RequestError, match=r"probe.scratch needs .* object \(object/Mine\): leave"):
        settle(own, replace(model, module=packed.build()))
    monkeypatch.setattr("workers.scratch_items.MAX_BYTES", 24 * 24 * 3 * 4 * 10)
    with pytest.raises(
        RequestError, match="and 12 .* of each of 4 classes take .* take 10 at most"
    ):
        pipeline.create(spec, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"epochs": 0}, "scratch.epochs"),
        ({"batch_size": 1.5}, "scratch.batch_size"),
        ({"learning_rate": 0}, "scratch.learning_rate"),
        ({"momentum": 0.5}, "momentum"),
    ],
)
def test_wrong_fields_of_a_training_get_a_sentence(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words) as raised:
        spec_of(PROBE | {"scratch": wrong})
    assert "\n" not in str(raised.value)


def test_verify_finds_what_is_missing_of_trainings(scratched: Path, tmp_path: Path) -> None:
    assert verify(str(scratched), sample=0).faults == []
    url = tmp_path / "run"
    shutil.copytree(scratched, url)
    (url / "ledger/probe-scratch/item-000001.json").unlink()
    (url / "probe/scratch/c/1/0").unlink()
    faults = {fault.place for fault in verify(str(url), sample=0).faults}
    assert {"ledger/probe-scratch/item-000001.json", "probe/scratch/c/1/0"} <= faults
    shutil.rmtree(url / "probe/scratch")
    faults = {fault.place for fault in verify(str(url), sample=0).faults}
    assert "probe/scratch/zarr.json" in faults
