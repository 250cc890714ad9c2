"""Test studies: networks are edited as the paper edits them, trained by its recipe, and come to the
same bits whoever trains them and however often they are cut off.
"""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import deconvoy
from deconvoy import queries, specs
from deconvoy.errors import DeconvoyError, JobFailed, RequestError, RunExists, RunNotFound
from deconvoy.schema import checkpoint_path
from deconvoy.store import RunStore
from deconvoy.study import BANDS, Study
from deconvoy.study_figure import draw_curves, filter_wall, study_figure, walls_title
from deconvoy.study_spec import StudySpec
from service import studies
from tests import reference
from tests.runs import (
    Killed,
    assert_same_files,
    grants_of,
    ignore,
    killed_at,
    write_photographs,
)
from tests.studies import resume_study, run_study, spec_of
from workers import extend, pipeline, seal, study_items
from workers.executors.inline import InlineExecutor
from workers.first_layer import SPECTRUM, bands_of, peaks_of, rms_of
from workers.fresh import occlude
from workers.leasing import Advance
from workers.models import pack
from workers.plan_study import plan_study
from workers.study_items import StudyJob, settle_study
from workers.trainer import Trainer
from workers.training import Recipe, Training, decayed, draw_shapes, top_errors
from workers.undertaking import create, execute, reopen
from workers.verify import verify
from workers.zfnet import SHAPES_MEAN, SHAPES_STD, zfnet, zfnet_small

RATE = 0.2
"""At which the wider of two networks diverges."""

FOLDERS = ("study", "networks", "ledger/study")
"""What two runs must agree in."""


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("calm") / "run"
    run_study(spec_of(), url)
    return url


# --- edits ---------------------------------------------------------------------------------------


def weights_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        name.removesuffix(".weight"): tuple(value.shape)
        for name, value in model.state_dict().items()
        if name.endswith(".weight")
    }


def test_networks_without_layers_are_those_of_table_3() -> None:
    whole = weights_of(zfnet())
    middle = weights_of(zfnet(remove=[3, 4]))
    assert middle == {**{k: whole[k] for k in whole if k not in ("conv3", "conv4")}} | {
        "conv5": (256, 256, 3, 3)
    }
    assert weights_of(zfnet(remove=[7])) == {k: v for k, v in whole.items() if k != "fc7"}
    top = weights_of(zfnet(remove=[6, 7]))
    assert "fc6" not in top and top["fc8"] == (1000, 256 * 6 * 6)
    least = weights_of(zfnet(remove=[3, 4, 6, 7]))
    assert list(least) == ["conv1", "conv2", "conv5", "fc8"]


def test_networks_of_other_widths_are_those_of_table_3() -> None:
    """Layers 3, 4, 5: 512, 1024, 512 maps, and 6, 7: 8192 units."""
    found = weights_of(zfnet_small(widths={"3": 512, "4": 1024, 5: 512, 6: 8192, 7: 8192}))
    assert found["conv4"] == (1024, 512, 3, 3) and found["conv5"] == (512, 1024, 3, 3)
    assert found["fc6"] == (8192, 512 * 4 * 4) and found["fc7"] == (8192, 8192)


@pytest.mark.parametrize("arguments", [{}, {"remove": [3, 4, 5, 6, 7]}, {"widths": {"1": 5}}])
def test_every_edited_network_runs(arguments: dict[str, Any]) -> None:
    assert zfnet_small(num_classes=7, **arguments)(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_what_cannot_be_edited_is_refused() -> None:
    for arguments in ({"remove": [1]}, {"remove": [3], "widths": {3: 9}}, {"widths": {8: 9}}):
        with pytest.raises(ValueError, match="remove is of|widths has"):
            zfnet_small(**arguments)


# --- training ------------------------------------------------------------------------------------


def test_training_is_the_papers_recipe_by_hand() -> None:
    images, labels = draw_shapes(seed=3, size=10)
    torch.manual_seed(0)
    ours, theirs = zfnet_small(), zfnet_small()
    for model in (ours, theirs):
        for part in (model.dropout6, model.dropout7):
            part.p = 0.0
    theirs.load_state_dict(ours.state_dict())
    recipe = Recipe(epochs=2, batch_size=4, learning_rate=0.05, max_filter_rms=0.05)
    training = Training(
        ours.double(), images, labels, mean=SHAPES_MEAN, std=SHAPES_STD, recipe=recipe, seed=5,
    )  # fmt: skip
    training._batches = _Double(training._batches)
    orders = []
    for epoch in (1, 2):
        state = int(np.random.SeedSequence([5, epoch]).generate_state(1, np.uint64)[0] >> 1)
        generator = torch.Generator().manual_seed(state)
        orders.append(torch.randperm(10, generator=generator).tolist())
        training.go_through()
    pixels = reference.normalise(images, SHAPES_MEAN, SHAPES_STD).double()
    rates = [decayed(0.05, epoch, 2) for epoch in (1, 2)]
    reference.trained(theirs.double(), pixels, labels, orders, rates, 4, 0.9, 0.05)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    found = top_errors(
        ours.float(), images, labels, mean=SHAPES_MEAN, std=SHAPES_STD
    )  # fmt: skip
    assert found == reference.errors(ours, pixels.float(), labels)


class _Double:
    """The same batches in float64."""

    def __init__(self, batches: Any) -> None:
        self._batches, self.labels = batches, batches.labels

    def in_order(self, order: Any) -> Any:
        for pixels, labels in self._batches.in_order(order):
            yield pixels.double(), labels


def test_a_training_that_is_taken_up_elsewhere_comes_to_the_same_bits() -> None:
    images, labels = draw_shapes(seed=3, size=16)

    def begun() -> tuple[nn.Module, Training]:
        torch.manual_seed(0)
        model = zfnet_small()
        return model, Training(
            model, images, labels, mean=SHAPES_MEAN, std=SHAPES_STD, recipe=Recipe(3, 8), seed=1
        )

    whole, training = begun()
    for _ in range(3):
        training.go_through()
    _, first = begun()
    first.go_through()
    state = first.state({"said": "hello"})
    torch.rand(7)  # elsewhere the generators are somewhere else
    parted, second = begun()
    assert second.take_up(state) == {"said": "hello"} and second.epoch == 1
    second.go_through()
    second.go_through()
    for one, other in zip(whole.parameters(), parted.parameters(), strict=True):
        assert torch.equal(one, other)


# --- the first layer -----------------------------------------------------------------------------


def test_power_by_frequency_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    filters = rng.normal(size=(2, 5, 4, 2)).astype(np.float32)
    found = bands_of(filters)
    expected = [reference.power_by_frequency(one, SPECTRUM, BANDS) for one in filters]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_frequencies_on_paper() -> None:
    flat = np.ones((1, 16, 16, 1), np.float32)
    board = (np.indices((16, 16)).sum(0) % 2 * 2 - 1).astype(np.float32)[None, ..., None]
    nothing = np.zeros((1, 16, 16, 1), np.float32)
    found = bands_of(np.concatenate([flat, board, nothing]))
    assert found[0, 0] > 0.9 and found[1, 2] > 0.9 and np.isnan(found[2]).all()


def test_dead_and_dominating_filters_are_seen() -> None:
    model = zfnet_small()
    with torch.no_grad():
        model.conv1.bias[0] = -1e6
        model.conv1.weight[1] = 0.5
    pixels = torch.rand(3, 3, 64, 64)
    peaks = peaks_of(model, iter([pixels[:2], pixels[2:]]))
    maps = [model.conv1(one[None]).detach()[0, 5] for one in pixels]
    expected = max(0.0, *(float(one.max()) for one in maps))
    assert peaks[0] == 0 and peaks[5] == pytest.approx(expected, rel=1e-5)
    filters = model.conv1.weight.detach().permute(0, 2, 3, 1).numpy()
    assert rms_of(filters)[1] == pytest.approx(0.5)


# --- a study -------------------------------------------------------------------------------------


def test_a_study_holds_what_its_weights_do(calm: Path) -> None:
    """Errors, filters and parameters, counted again from the weights that were kept."""
    run = deconvoy.open(calm)
    study, (job, store) = run.study(), reopen(str(calm))
    assert isinstance(job, StudyJob)
    assert study.networks == ("base", "without 3, 4; 6, 7: 32 wide") == spec_of().titles
    sets = Trainer(job.assignment(str(calm), 1))
    for network, arguments in enumerate(study.arguments):
        for repeat in range(2):
            content = store.read(checkpoint_path(network, repeat, 3))
            spec = deconvoy.JobSpec.parse(
                {
                    "model": {"name": run.study_spec.base, "arguments": arguments},
                    "data": {"uri": "x"},
                }
            )
            model = pack(spec.model, 9).build()
            model.load_state_dict(safetensors.torch.load(content))
            count = sum(value.numel() for value in model.parameters())
            assert study.parameters[network] == count
            for images, said in (
                (sets.validation, study.validation_error[network, repeat, -1]),
                (sets.training, study.training_error[network, repeat]),
            ):
                pixels = reference.normalise(images.pixels, SHAPES_MEAN, SHAPES_STD)
                assert reference.errors(model, pixels, images.labels) == pytest.approx(said)
            layer = study.first_layer(network)
            filters = model.conv1.weight.detach().permute(0, 2, 3, 1).numpy()
            assert np.array_equal(layer.of_repeat(repeat), filters)
            np.testing.assert_allclose(
                layer.rms[repeat], np.sqrt((filters.astype(float) ** 2).mean((1, 2, 3)))
            )
    assert (study.loss > 0).all() and ((study.running_error >= 0) & (study.loss < 5)).all()
    kept = sorted(path.name for path in (calm / "networks/1/0").iterdir())
    assert kept == ["epoch-001.safetensors", "epoch-003.safetensors"]
    assert not list((calm / "ledger/study").glob("state-*"))


def test_the_first_repeat_is_that_of_its_seed(calm: Path, tmp_path: Path) -> None:
    """A study of the edit alone, begun with the next seed, is the second repeat."""
    run_study(spec_of(repeats=1, seed=1), tmp_path / "run")
    alone, both = (deconvoy.open(url).study() for url in (tmp_path / "run", calm))
    assert np.array_equal(alone.loss[:, 0], both.loss[:, 1])
    assert not np.array_equal(both.loss[:, 0], both.loss[:, 1])


def test_queries_are_table_3_and_the_curves(calm: Path) -> None:
    run, study = deconvoy.open(calm), deconvoy.open(calm).study()
    rows = queries.study(run).to_pylist()
    assert [row["network"] for row in rows] == list(study.networks)
    last = study.validation_error[1, :, -1]
    assert rows[1]["validation_top1"] == pytest.approx(last[:, 0].mean())
    assert rows[1]["deviation"] == pytest.approx(last[:, 0].std())
    assert rows[1]["filters"] == 64 and rows[1]["dead"] == int(
        (study.first_layers[1].peak <= 0).sum()
    )
    assert rows[0]["low"] + rows[0]["middle"] + rows[0]["high"] == pytest.approx(1)
    curves = queries.study_curves(run).to_pylist()
    assert [(row["network"], row["epoch"]) for row in curves][:4] == [
        ("base", 1), ("base", 2), ("base", 3), (study.networks[1], 1)
    ]  # fmt: skip
    assert curves[4]["validation_top5"] == pytest.approx(study.validation_error[1, :, 1, 1].mean())


def test_figures_are_drawn(calm: Path) -> None:
    study = deconvoy.open(calm).study()
    page = study_figure(study)
    assert page.width > 900 and page.height > 400
    wall = filter_wall(study.first_layers[0].of_repeat(0), 10)
    assert wall.shape == (4 * 12 - 2, 8 * 12 - 2, 3)
    one = np.zeros((1, 2, 2, 3), np.float32)
    one[0, 0, 0] = 1, -1, 0
    assert filter_wall(one, 2)[0, 0].tolist() == [255, 0, 128]


def test_a_figure_of_many_networks_says_how_many_it_shows(calm: Path) -> None:
    study = deconvoy.open(calm).study()
    many = _repeated(study, 12)
    page = study_figure(many)
    assert page.height > study_figure(study).height
    assert walls_title(12).endswith("; first 8 of 12 networks")
    assert walls_title(8).endswith("scale")


def test_curves_that_are_the_same_are_both_seen(calm: Path) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    draw_curves(axes, _repeated(deconvoy.open(calm).study(), 20))
    lines = axes.get_lines()
    looks = {(line.get_linestyle(), line.get_marker(), line.get_color()) for line in lines}
    widths = [line.get_linewidth() for line in lines]
    assert len(looks) == 20 and widths == sorted(set(widths), reverse=True)


def _repeated(study: Study, count: int) -> Study:
    """Its first network so many times."""
    rows = [0] * count
    arrays = {
        name: getattr(study, name)[rows]
        for name in (
            "parameters", "loss", "running_error", "validation_error", "training_error", "diverged",
        )
    }  # fmt: skip
    return replace(
        study,
        networks=tuple(f"network {number}" for number in range(count)),
        arguments=study.arguments[:1] * count,
        first_layers=study.first_layers[:1] * count,
        **arrays,
    )


def test_progress_counts_the_images_learned_from(tmp_path: Path) -> None:
    seen: list[Advance] = []
    run_study(spec_of(repeats=1), tmp_path / "run", seen.append)
    done = [advance.done for advance in seen]
    # Two networks; 24 and 12 images are read, seen in three epochs, and judged at the end.
    assert done[0] == 0 and done == sorted(done)
    assert done[-1] == 2 * (1 + 3 + 1) * (24 + 12) == seen[-1].total
    assert {advance.stage for advance in seen} == {"study"}


@pytest.mark.ray
def test_any_workers_give_the_bits_of_the_inline_executor(
    ray_cluster: str, calm: Path, tmp_path: Path
) -> None:
    from workers.executors.ray import RayExecutor

    compute = {"workers": 2, "gpus_per_worker": 0}
    job, run = create(spec_of(compute=compute), str(tmp_path / "run"))
    execute(job, run, RayExecutor(job.compute), ignore)
    assert_same_files(calm, tmp_path / "run", *FOLDERS)


def test_a_study_cut_off_goes_on_to_the_same_bits_and_trains_no_epoch_twice(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, epochs = tmp_path / "run", list[int]()
    go_through = Training.go_through

    def counted(self: Training) -> Any:
        epochs.append(self.epoch + 1)
        return go_through(self)

    monkeypatch.setattr(Training, "go_through", counted)
    job, run = create(spec_of(), str(url))
    # What the second training puts away after its second epoch; then the marker of the third.
    killed_at(monkeypatch, "ledger/study", 5, 10)
    with pytest.raises(Killed, match="item-000002"):
        execute(job, run, InlineExecutor(), ignore)
    part = deconvoy.open(url).study()  # what has come to its end can be read, marked or not
    assert part.finished.tolist() == [[True, True], [True, False]]
    assert [part.first_layers[network].known for network in (0, 1)] == [64, 32]
    assert [row["repeats"] for row in part.table().to_pylist()] == [2, 1]
    assert study_figure(part).width > 900
    resume_study(url)
    assert_same_files(calm, url, *FOLDERS)
    # The epoch that could not be put away, and the last of the training without a marker, whose
    # second epoch is where it is taken up.
    assert len(epochs) == 4 * 3 + 1 + 1
    assert grants_of(url) == {
        "study/item-000000": 1, "study/item-000001": 2, "study/item-000002": 2,
        "study/item-000003": 1,
    }  # fmt: skip


def test_what_was_put_away_and_is_damaged_is_not_trusted(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "run"
    job, run = create(spec_of(), str(url))
    killed_at(monkeypatch, "ledger/study/item-000000", 1)
    with pytest.raises(Killed):
        execute(job, run, InlineExecutor(), ignore)
    state = url / "ledger/study/state-000000.safetensors"
    content = bytearray(state.read_bytes())
    content[-5] ^= 1
    state.write_bytes(content)
    resume_study(url)
    assert_same_files(calm, url, *FOLDERS)


def test_a_share_of_the_images_is_judged_by(tmp_path: Path) -> None:
    job = settle_study(spec_of(validation=0.25))
    assert (len(job.training), len(job.validation)) == (18, 6)
    assert not set(job.training.uris) & set(job.validation.uris)
    whole = settle_study(spec_of()).training
    labels = dict(zip(whole.uris, whole.labels.tolist(), strict=True))
    for part in (job.training, job.validation):
        assert [labels[uri] for uri in part.uris] == part.labels.tolist()
    other = settle_study(spec_of(validation=0.25, seed=1))
    assert other.validation.uris != job.validation.uris


def test_folders_are_classes_and_bad_images_are_left_out(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "images", 12)
    photographs[0].write_bytes(b"no image")
    data = {"uri": str(tmp_path / "images"), "max_bad": 0.2}
    spec = spec_of(data=data, validation=0.3, repeats=1, edits=[])
    run_study(spec, tmp_path / "run")
    run = deconvoy.open(tmp_path / "run")
    assert run.study().classes == ("a", "b") and run.study().networks == ("base",)
    marker = json.loads((tmp_path / "run/ledger/study/item-000000.json").read_text())
    assert sum(marker["skipped"]) == 1
    strict = spec_of(data=data | {"max_bad": 0.0}, validation=0.3)
    with pytest.raises(JobFailed, match="unreadable, more than max_bad"):
        run_study(strict, tmp_path / "strict")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"data": {"uri": "shapes?size=9", "where": {"wrong": True}}}, "a study begins with none"),
    (
        {"validation": {"uri": "shapes?size=9&seed=2", "transform": {"resize": 64, "crop": 64}}},
        "validation.transform is not used",
    ),
    ({"validation": {"uri": "shapes?size=9&seed=1"}}, "has 9 of the images of data"),
    ({"data": {"uri": "shapes?size=40", "where": {"classes": ["face"]}}}, "are of one class"),
    ({"validation": 0.001}, "which is 0: at least one must"),
    ({"data": {"uri": "shapes?size=9", "transform": {"resize": 32, "crop": 32}}}, "takes 3 × 64"),
    ({"data": {"uri": "shapes?size=9", "where": {"ids": [0, 1]}}, "validation": 0.8}, "which is 2"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    wrong: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=words):
        create(spec_of(**wrong), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_images_without_labels_or_of_one_class_are_refused(tmp_path: Path) -> None:
    for photograph in write_photographs(tmp_path / "images", 4):
        photograph.rename(tmp_path / "images" / photograph.name)
    for folder in "ab":
        (tmp_path / "images" / folder).rmdir()
    with pytest.raises(RequestError, match="none of the images has a label, but training"):
        settle_study(spec_of(data={"uri": str(tmp_path / "images")}))
    with pytest.raises(RequestError, match="networks learn to tell two or more apart"):
        (tmp_path / "one").mkdir()
        shutil.move(tmp_path / "images", tmp_path / "one" / "cats")
        settle_study(spec_of(data={"uri": str(tmp_path / "one")}, validation=0.5))


def test_images_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_items, "MAX_BYTES", 10**5)
    with pytest.raises(RequestError, match="8 at most fit .* Lower data.limit"):
        settle_study(spec_of())


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"base": "torchvision/alexnet"}, "'base' is 'torchvision/alexnet'.* takes `deconvoy/zfnet`"),
    ({"edits": [{}]}, "an edit has remove or widths"),
    ({"edits": [{"remove": [2]}]}, "takes a list of layers of 3 to 7"),
    ({"edits": [{"remove": [3], "widths": {"3": 5}}]}, "removed and given a width"),
    ({"edits": [{"remove": [3]}, {"remove": [3]}]}, "has 'without 3' twice"),
    ({"edits": [{"widths": {"nine": 5}}]}, "whole numbers of 1 or more by layer"),
    ({"training": {"checkpoints": [4], "epochs": 3}}, "names epoch 4, but a training has 3"),
    ({"training": {"epoch": 3}}, "'training.epoch' is unknown; did you mean 'epochs'"),
    ({"validation": 1.5}, "takes a share between 0 and 1, or a section"),
    ({"kind": "studies"}, "'kind' is 'studies', .* takes `study`"),
    ({"model": {"name": "deconvoy/zfnet"}}, "'model' is unknown; known here: kind"),
]


@pytest.mark.parametrize(("wrong", "words"), FIELDS)
def test_a_wrong_spec_gets_a_sentence(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        specs.parse(spec_of().to_json() | wrong)


def test_a_spec_survives_json_and_yaml(tmp_path: Path) -> None:
    spec = spec_of()
    assert specs.parse(json.loads(json.dumps(spec.to_json()))) == spec
    (tmp_path / "study.json").write_text(json.dumps(spec.to_json()))
    assert specs.from_file(tmp_path / "study.json", ("repeats=1",)) == spec_of(repeats=1)
    assert StudySpec.from_file(tmp_path / "study.json") == spec


def test_what_only_a_job_has_is_told(calm: Path) -> None:
    run = deconvoy.open(calm)
    assert run.kind == "study" and run.status == "done" and not run.resumable
    for ask in (lambda: run.spec, run.layers, run.table, run.images):
        with pytest.raises(RunNotFound, match="is a study of architectures"):
            ask()
    with pytest.raises(RunExists):
        create(spec_of(), str(calm))
    for use in (
        lambda: pipeline.reopen(str(calm)),
        lambda: occlude(str(calm), "cat.jpg"),
        lambda: extend.create(str(calm), "shapes?size=9", str(calm) + "-2"),
    ):
        with pytest.raises(DeconvoyError, match="is a study of architectures"):
            use()


def test_a_job_is_no_study(tmp_path: Path) -> None:
    from tests.runs import run_inline, small_spec

    run_inline(small_spec(analyses=[{"kind": "top"}], layers=["logits"]), tmp_path / "job")
    with pytest.raises(RunNotFound, match="no study of architectures.*examples/study.yaml"):
        deconvoy.open(tmp_path / "job").study()


def test_a_study_goes_on_only_with_its_images(calm: Path, tmp_path: Path) -> None:
    url = tmp_path / "run"
    shutil.copytree(calm, url)
    content = json.loads((url / "zarr.json").read_text())
    content["attributes"]["provenance"]["listing_fingerprint"] = "another"
    (url / "zarr.json").write_text(json.dumps(content))
    with pytest.raises(RequestError, match="began with another listing_fingerprint"):
        reopen(str(url))


def test_others_are_judged_by_only_if_their_classes_are_known(tmp_path: Path) -> None:
    for place, names in (("data", "ab"), ("others", "bc")):
        for photograph in write_photographs(tmp_path / place, 4):
            folder = tmp_path / place / names["ab".index(photograph.parent.name)].upper()
            folder.mkdir(exist_ok=True)
            photograph.rename(folder / photograph.name)
        for empty in "ab":
            (tmp_path / place / empty).rmdir()
    uris = {place: {"uri": str(tmp_path / place)} for place in ("data", "others")}
    with pytest.raises(RequestError, match="validation has images of 'C', which is no class of"):
        settle_study(spec_of(data=uris["data"], validation=uris["others"]))
    with pytest.raises(RequestError, match="has 4 of the images of data .one is 'A"):
        settle_study(spec_of(data=uris["data"], validation=uris["data"]))
    assert settle_study(spec_of(data=uris["data"], validation=0.5)).classes == ("A", "B")


def test_a_plan_of_batches_larger_than_the_data() -> None:
    told = plan_study(settle_study(spec_of(training={"epochs": 1, "batch_size": 500})))
    assert told.seconds > 0


def test_the_plan_foretells_it() -> None:
    told = plan_study(settle_study(spec_of())).to_json()
    assert told["kind"] == "study" and told["images"] == 24 and told["validation_images"] == 12
    assert [network["name"] for network in told["networks"]] == list(spec_of().titles)
    assert told["networks"][0]["parameters"] == 580_554 and told["seconds"] > 0 < told["bytes"]
    json.dumps(told)


def test_what_it_stores_is_no_more_than_was_foretold(calm: Path) -> None:
    job, run = reopen(str(calm))
    assert isinstance(job, StudyJob)
    assert run.bytes_used() < plan_study(job).bytes


def test_verify_judges_networks_again_and_finds_what_is_missing(calm: Path, tmp_path: Path) -> None:
    report = verify(str(calm), 3)
    assert (report.faults, report.networks) == ([], 3)
    for path in (
        "ledger/study/item-000001.json", "study/loss/c/1/0", "study/1/filter/c/0/0/0/0/0",
        "networks/0/1/epoch-003.safetensors", "study/0/rms/zarr.json",
    ):  # fmt: skip
        url = tmp_path / path.replace("/", "-")
        shutil.copytree(calm, url)
        (url / path).unlink()
        assert path in [fault.place for fault in verify(str(url), 0).faults]


def test_verify_finds_weights_that_are_others(calm: Path, tmp_path: Path) -> None:
    """By their bytes, and, where the ledger knows those, by what they come to."""
    url = tmp_path / "swapped"
    shutil.copytree(calm, url)
    for epoch in (1, 3):
        shutil.copy(url / f"networks/0/1/epoch-{epoch:03d}.safetensors", url / "networks/0/0")
    faults = verify(str(url), 0).faults
    assert [fault.place for fault in faults] == [
        "networks/0/0/epoch-001.safetensors", "networks/0/0/epoch-003.safetensors"
    ]  # fmt: skip
    assert "its sha256 differs" in faults[0].reason
    marker = url / "ledger/study/item-000000.json"
    fields = json.loads(marker.read_text())
    for path in fields["weights"]:
        fields["weights"][path] = hashlib.sha256((url / path).read_bytes()).hexdigest()
    marker.write_text(json.dumps(fields))
    seal.finish(RunStore(str(url)))
    found = {fault.place for fault in verify(str(url), 1).faults}
    assert {"study/0/filter", "study/0/rms", "study/0/frequency", "study/0/peak"} <= found
    cut = url / "networks/1/1/epoch-003.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    assert str(cut).endswith([fault.place for fault in verify(str(url), 4).faults][-1])


def test_errors_that_weights_do_not_have_are_found(calm: Path, tmp_path: Path) -> None:
    url = tmp_path / "run"
    shutil.copytree(calm, url)
    group: Any = RunStore(str(url)).zarr("r+")["study"]
    group["training_error"][1] = group["training_error"][1] - 3 / 24
    (fault,) = verify(str(url), 4).faults
    assert fault.place == "networks/0/1/epoch-003.safetensors"
    assert "of 24 training images wrong" in fault.reason and "the study says" in fault.reason


def test_a_network_that_diverges_leaves_the_others_readable(tmp_path: Path) -> None:
    """Of three networks the one that is told to learn too fast has no numbers, and says when."""
    url = tmp_path / "run"
    wide = {"name": "wide", "widths": {6: 2048, 7: 2048}}
    recipe = {"epochs": 3, "batch_size": 8, "learning_rate": RATE, "max_filter_rms": None}
    summary = run_study(spec_of(edits=[wide], repeats=1, training=recipe), url)
    run = deconvoy.open(url)
    study = run.study()
    told = {one["network"]: one["epoch"] for one in summary["diverged"]}
    assert told and run.status == "done" and study.diverged.max() == max(told.values())
    for network, name in enumerate(study.networks):
        ended, epochs = name not in told, np.isfinite(study.loss[network, 0])
        assert study.finished[network, 0] == ended
        assert epochs.sum() == (3 if ended else told[name] - 1)
    row = next(row for row in study.table().to_pylist() if row["network"] in told)
    assert row["diverged"] == 1 and row["validation_top1"] is None
    assert not verify(str(url), 2).faults
    assert study_figure(study).width > 900
    none = replace(study, training_error=np.full_like(study.training_error, np.nan))
    with pytest.raises(RunNotFound, match="Every network of this study diverged"):
        study_figure(none)
    assert "lower training.learning_rate" in studies.summary(run.attributes["results"])


def test_a_state_left_by_a_kill_between_marker_and_deletion_is_swept(
    calm: Path, tmp_path: Path
) -> None:
    url = tmp_path / "run"
    shutil.copytree(calm, url)
    left = url / "ledger/study/state-000001.safetensors"
    left.write_bytes(b"whatever")
    resume_study(url)
    assert not left.exists()


def test_a_share_is_the_same_of_every_class() -> None:
    job = settle_study(spec_of(data={"uri": "shapes?size=200&seed=1"}, validation=0.25))
    everywhere = np.concatenate([job.training.labels, job.validation.labels])
    for label in np.unique(everywhere):
        share = (job.validation.labels == label).sum() / (everywhere == label).sum()
        assert abs(share - 0.25) <= 1 / (everywhere == label).sum()
    assert len(job.validation) == 50


def test_a_study_goes_on_with_other_versions_but_says_so(
    calm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = tmp_path / "run"
    shutil.copytree(calm, url)
    content = json.loads((url / "zarr.json").read_text())
    content["attributes"]["provenance"]["versions"]["torch"] = "1.0"
    (url / "zarr.json").write_text(json.dumps(content))
    reopen(str(url))
    assert "began with versions" in caplog.text
