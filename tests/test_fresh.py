"""One picture under a square, now: against full forward passes, and against what a run stores."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn

import deconvoy
import workers
from deconvoy.errors import DeconvoyError, ImageUnreadable, RequestError, RunNotFound
from service import drawing
from tests import reference
from tests.runs import run_inline, small_spec
from tests.test_wrong_inputs import change_attribute
from tests.typing_in import Type, type_
from workers.shapes import render

__all__ = ["type_"]

SQUARE = {"patch": 24, "stride": 20}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
TRANSFORM = {"resize": 40, "crop": 36, "mean": MEAN, "std": STD}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 6, 5, stride=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 7)),
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.body(images)
        return scores


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight shapes, the images 0 and 5 under a square."""
    url = tmp_path_factory.mktemp("fresh") / "run"
    occlusion = {"kind": "occlusion", "images": {"ids": [0, 5]}, **SQUARE}
    projection = {"kind": "projection", "layers": ["relu5"], "units": "all"}
    spec = small_spec(
        data={"uri": "shapes?size=8&seed=1"},
        layers=["relu2", "relu5", "logits"],
        analyses=[{"kind": "top"}, projection, occlusion],
    )
    run_inline(spec, url)
    return url


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(8).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_model_at_hand_sees_what_full_forward_passes_see() -> None:
    model, pixels = Small().eval(), noise(40, 52)
    names = [f"class {n}" for n in range(7)]
    found = workers.occlude(
        model, pixels, patch=9, stride=7, fill=30, label=4, top5=True,
        transform=TRANSFORM, classes=names,
    )  # fmt: skip
    cropped = torch.from_numpy(pixels[2:38, 8:44].transpose(2, 0, 1).copy())
    image = reference.normalise(cropped, MEAN, STD)
    fill = (30 / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    positions = reference.occlusion(model, image, 9, 7, fill)
    clean = reference.layers(model, image[None])
    logits = torch.stack([layers[-1].activation.flatten() for layers in positions])
    shape = len(found.y), len(found.x)
    assert found.y.tolist() == found.x.tolist() == [0, 7, 14, 21, 27]
    close: Any = {"rtol": 0, "atol": 1e-5}
    shares = logits.softmax(1)
    assert np.allclose(found.probability, shares[:, 4].reshape(shape), **close)
    assert found.label.tolist() == logits.argmax(1).reshape(shape).tolist()
    best = shares.topk(5, dim=1)
    assert found.top5 is not None and found.top5_probability is not None
    assert found.top5.reshape(-1, 5).tolist() == best.indices.tolist()
    assert np.allclose(found.top5_probability.reshape(-1, 5), best.values, **close)
    clean_shares = clean[-1].activation.flatten().softmax(0)
    assert found.clean_probability == pytest.approx(float(clean_shares[4]), abs=1e-5)
    assert found.clean_label == int(clean_shares.argmax())
    for number, name in enumerate(found.unit):
        unit = int(clean[number].activation[0].flatten(1).amax(1).argmax())
        sums = [float(layers[number].activation[0, unit].sum()) for layers in positions]
        assert found.unit[name] == unit
        assert np.allclose(found.activity[name].flatten(), sums, rtol=1e-4, atol=1e-4)
    assert (found.picture == pixels[2:38, 8:44]).all()
    assert (found.target, found.name_of(4), found.image) == (4, "class 4", -1)
    assert found.maps == ("body.1", "body.4") and found.fill == (30.0, 30.0, 30.0)
    assert found.boxes.shape == (0, 4)


def test_its_projections_are_the_oracles() -> None:
    model, pixels = Small().eval(), noise(36, 36)
    found = workers.occlude(model, Image.fromarray(pixels), transform=TRANSFORM | {"resize": 36})
    image = reference.normalise(torch.from_numpy(pixels.transpose(2, 0, 1).copy()), MEAN, STD)
    assert list(found.projection) == list(found.unit)
    for number, (name, unit) in enumerate(found.unit.items()):
        values = reference.layers(model, image[None])[number].activation[0, unit]
        place = divmod(int(values.argmax()), values.shape[-1]) if values.ndim else (0, 0)
        theirs = reference.deconvnet(model, image, number, unit, *place).permute(1, 2, 0).numpy()
        # float16 keeps eleven bits of the largest value.
        assert np.abs(found.projection[name] - theirs).max() <= 1e-3 * np.abs(theirs).max(), name


def test_unless_told_the_predicted_class_is_watched_and_the_model_is_left_as_it_is() -> None:
    model, threads = Small().double().train(), torch.get_num_threads()
    found = workers.occlude(model, noise(36, 36), transform=TRANSFORM, patch=18, stride=18)
    assert found.target == found.clean_label and found.top5 is None
    assert found.fill == pytest.approx([255 * value for value in MEAN])
    assert model.training and next(model.parameters()).dtype == torch.float64
    assert torch.get_num_threads() == threads


def test_an_image_of_a_run_is_the_same_now_as_in_the_run(run: Path) -> None:
    stored, now = deconvoy.open(run).occlusion(5), workers.occlude(run, 5, **SQUARE)
    assert (now.image, now.uri, now.target, now.size) == (5, "5", 5, (64, 64))
    assert stored.maps == now.maps == ("relu2", "relu5")
    assert stored.boxes.tolist() == now.boxes.tolist() == [list(render(1, 5).box)]
    for name in ("y", "x", "probability", "label", "picture"):
        assert np.array_equal(getattr(stored, name), getattr(now, name)), name
    assert not stored.predicted and not now.predicted, "it has a label"
    assert stored.unit == now.unit and stored.classes == now.classes
    for name, activity in now.activity.items():
        assert np.array_equal(stored.activity[name], activity), name
    for name, projection in now.projection.items():
        largest = np.abs(projection).max()
        assert np.abs(stored.projection[name] - projection).max() <= largest / 200, name


def test_an_image_the_run_did_not_cover_and_a_file_are_seen_by_its_model(
    run: Path, tmp_path: Path
) -> None:
    Image.fromarray(render(1, 3).image).save(tmp_path / "three.png")
    known, file = (
        workers.occlude(run, image, patch=30, stride=30, layers="relu5")
        for image in (3, tmp_path / "three.png")
    )
    assert (known.image, known.target, len(known.boxes)) == (3, 3, 1)
    assert (file.image, file.target, len(file.boxes)) == (-1, file.clean_label, 0)
    assert list(file.unit) == ["relu5"]
    assert np.array_equal(known.label, file.label)
    named = workers.occlude(
        run, tmp_path / "three.png", patch=30, stride=30, label=known.name_of(3)
    )
    assert np.array_equal(named.probability, known.probability)
    assert (known.predicted, file.predicted, named.predicted) == (False, True, False)


WRONG: dict[str, tuple[Any, dict[str, Any], type[DeconvoyError], str]] = {
    "a file that is not there": ("no.png", {}, ImageUnreadable, "'no.png': cannot be read"),
    "an id that is not there": (8, {}, RunNotFound, "has no image 8"),
    "a square larger than the image": (0, {"patch": 65}, RequestError, "patch is 65, but images"),
    "a square of no size": (0, {"patch": 0}, RequestError, "patch"),
    "a stride of none": (0, {"stride": 0}, RequestError, "stride"),
    "no colour": (0, {"fill": 256}, RequestError, "fill"),
    "no class": (0, {"label": "dgo"}, RequestError, "label is 'dgo', but it must be an output"),
    "a class beyond the outputs": (0, {"label": 10}, RequestError, "from 0 to 9"),
    "no layer": (0, {"layers": ["relu9"]}, RequestError, "no layer matches 'relu9'"),
    "a transform": (0, {"transform": TRANSFORM}, RequestError, "a run has its own"),
    "no picture": (3.5, {}, RequestError, "image is float"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_told(run: Path, what: str) -> None:
    image, options, kind, sentence = WRONG[what]
    with pytest.raises(kind, match=sentence):
        workers.occlude(run, image, **options)


def test_a_run_of_other_weights_or_of_a_model_object_is_refused(tmp_path: Path) -> None:
    url = tmp_path / "run"
    run_inline(small_spec(data={"uri": "shapes?size=2"}, analyses=[{"kind": "top"}]), url)
    provenance = deconvoy.open(url).attributes["provenance"]
    change_attribute(url, provenance={**provenance, "model_sha256": "0" * 64})
    with pytest.raises(RequestError, match="began with other weights"):
        workers.occlude(url, str(tmp_path / "any.png"))
    spec = deconvoy.open(url).spec.to_json()
    change_attribute(url, spec={**spec, "model": {**spec["model"], "name": "object/Small"}})
    with pytest.raises(RequestError, match="give the model itself"):
        workers.occlude(url, str(tmp_path / "any.png"))


# --- the command line -----------------------------------------------------------------------------


def test_figures_of_images_from_the_run_and_from_now(
    type_: Type, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(render(1, 3).image).save(tmp_path / "three.png")
    looked: list[Any] = []
    from workers import fresh

    now = fresh.occlude_each
    monkeypatch.setattr(
        fresh, "occlude_each", lambda *a, **k: (looked.extend(a[1]), now(*a, **k))[1]
    )

    def drawn(*arguments: str | Path) -> Image.Image:
        code, out, err = type_("figure", run, *arguments, "-o", tmp_path / "f.png")
        assert code == 0 and "f.png" in out, err
        return Image.open(tmp_path / "f.png").copy()

    every = drawn("--analysis", "occlusion")
    named = [
        part for image in drawing.most_moved(deconvoy.open(run)) for part in ("--image", image)
    ]
    assert sorted(named[1::2]) == ["0", "5"]
    assert drawn(*named).tobytes() == every.tobytes() and not looked
    assert drawn("relu2", "--image", "5").height < every.height and not looked
    drawn("--image", "5", "--patch", "24", "--stride", "20")
    assert not looked, "it is what the run has"
    drawn("--image", "5", "--patch", "40")
    drawn("--image", "2", "--patch", "40")
    drawn("--image", tmp_path / "three.png", "--patch", "40")
    assert looked == [5, 2, str(tmp_path / "three.png")]


def test_unless_told_the_images_are_drawn_whose_probability_falls_most(
    type_: Type, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, lowest = [0.9, 0.5, 0.99, 0.8, 0.6], [0.8, 0.1, 0.9, 0.2, 0.2]
    told = {"image_id": [4, 5, 2, 7, 0], "probability": clean, "lowest": lowest}
    monkeypatch.setattr(deconvoy.Run, "occluded", lambda self: pa.table(told))
    assert drawing.most_moved(deconvoy.open(run)) == ["7", "5", "0"]
    monkeypatch.setattr(drawing, "SHOWN_IMAGES", 1)
    for moved, column in ((5, [0.9, 0.1]), (0, [0.1, 0.9])):
        told |= {"image_id": [0, 5], "probability": [1.0, 1.0], "lowest": column}
        for name, asked in (
            ("told", ["--image", str(moved)]),
            ("not", ["--analysis", "occlusion"]),
        ):
            code, _, err = type_("figure", run, *asked, "-o", tmp_path / f"{name}.png")
            assert code == 0, err
        assert (tmp_path / "told.png").read_bytes() == (tmp_path / "not.png").read_bytes()


def test_a_command_traces_and_tries_its_model_once_for_all_its_images(
    type_: Type, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers import fresh

    for number in (3, 4):
        Image.fromarray(render(1, number).image).save(tmp_path / f"{number}.png")
    done: list[str] = []
    for name in ("trace", "require_independent"):
        before: Any = getattr(fresh, name)

        def told(*given: Any, name: str = name, before: Any = before) -> Any:
            done.append(name)
            return before(*given)

        monkeypatch.setattr(fresh, name, told)
    images = [str(tmp_path / "3.png"), "5", "2", str(tmp_path / "4.png")]
    asked = [part for image in images for part in ("--image", image)]
    code, _, err = type_("figure", run, *asked, "-o", tmp_path / "f.png")
    assert code == 0, err
    assert done == ["trace", "require_independent"]
    assert [line.split()[4] for line in err.splitlines()] == [images[0], "2", images[3]]


def test_several_images_at_once_are_each_as_alone_and_in_order(run: Path, tmp_path: Path) -> None:
    from workers.fresh import occlude_each

    Image.fromarray(render(1, 3).image).save(tmp_path / "three.png")
    images: list[int | str] = [str(tmp_path / "three.png"), 2, 0]
    for image, found in zip(images, occlude_each(run, images, **SQUARE), strict=True):
        alone = workers.occlude(run, image, **SQUARE)
        assert (found.image, found.uri, found.target) == (alone.image, alone.uri, alone.target)
        assert np.array_equal(found.probability, alone.probability), image


REFUSED: dict[str, tuple[list[str], str]] = {
    "units of an image": (["--image", "0", "--units", "3"], "--units is for figures of feature"),
    "zoom of an image": (["--analysis", "occlusion", "--no-zoom"], "--zoom is for figures of feat"),
    "grey images": (["--image", "0", "--grey"], "--grey is for figures of feature maps"),
    "a square over maps": (["relu5", "--patch", "8"], "--patch is for figures of an occluded"),
    "maps of an image": (["--analysis", "projection", "--image", "0"], "leave one of the two out"),
    "another analysis": (["--analysis", "top"], "'top' is not one of"),
    "an id that is not there": (["--image", "99"], "no image 99: ids run from 0 to 7"),
    "a path that is not there": (["--image", "x/y.png"], "Nor is it a file here"),
    "no image": (["--image", "README.md"], "not readable as an image"),
    "a layer that was not watched": (["relu4", "--image", "0"], "has no layer 'relu4'"),
    "a panel too small": (["--image", "0", "--tile", "20"], "side is 20"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_options_that_do_not_go_together_are_told(type_: Type, run: Path, what: str) -> None:
    arguments, sentence = REFUSED[what]
    code, _, err = type_("figure", run, *arguments, "-o", run.parent / "never.png")
    said = " ".join(err.replace("│", " ").split())
    assert (code in (1, 2), sentence in said) == (True, True), said
    assert "Traceback" not in err and not (run.parent / "never.png").exists()
