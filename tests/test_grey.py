"""Models of one channel: what they are given, what is stored, and the sentence where that fails."""

import pickle
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import deconvoy
from deconvoy.errors import ModelUnsupported, RequestError
from deconvoy.spec import JobSpec, Transform
from tests import reference
from tests.runs import images_of, model_of, places_of, run_inline, small_spec, write_photographs
from workers import pipeline
from workers.graph import Network
from workers.images import decode, from_pixels
from workers.job import Job
from workers.models import IMAGENET, IMAGENET_GREY, default_transform
from workers.verify import verify

GREY = Transform(resize=30, crop=28, mean=(0.4,), std=(0.5,))

NET = """
    from torch import nn

    def net():
        model = nn.Sequential(
            nn.Conv2d(1, 4, 5, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU(),
            nn.Flatten(), nn.Linear(80, 3),
        )
        model.transform = {"resize": 30, "crop": 28, "mean": [0.4], "std": [0.5]}
        return model
"""


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, deconvoy.Run]:
    folder = tmp_path_factory.mktemp("grey")
    (folder / "net.py").write_text(textwrap.dedent(NET))
    write_photographs(folder / "images", 11, side=33)
    spec = JobSpec.parse(
        {
            "model": {"name": f"{folder / 'net.py'}:net"},
            "data": {"uri": str(folder / "images")},
            "compute": {"shard_size": 4, "batch_size": 2},
        }
    )
    run_inline(spec, folder / "run")
    job, _ = pipeline.reopen(str(folder / "run"))
    return job, deconvoy.open(folder / "run")


def test_grey_is_pillows() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    transform = GREY.model_copy(update={"resize": 28})
    picture = from_pixels(pixels, transform).pixels
    assert picture.shape == (1, 28, 28)
    red, green, blue = pixels.astype(float).transpose(2, 0, 1)
    assert np.abs(picture[0].numpy() - (0.299 * red + 0.587 * green + 0.114 * blue)).max() < 1


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA"])
def test_files_of_every_mode_give_one_channel(mode: str, tmp_path: Path) -> None:
    place = tmp_path / "image.png"
    Image.new("RGB", (40, 31), (10, 200, 30)).convert(mode).save(place)
    assert decode(place.read_bytes(), GREY).pixels.shape == (1, 28, 28)


def test_hits_of_a_grey_model_equal_the_oracles(analysed: tuple[Job, deconvoy.Run]) -> None:
    job, run = analysed
    found = reference.brute_force(model_of(job), images_of(job))
    for name, place in zip(run.layer_names, places_of(job), strict=True):
        for number, hits in enumerate(found[place]):
            unit = run.unit(name, number)
            assert unit.image.tolist() == [hit.image for hit in hits]


def test_hits_of_a_grey_model_are_verified(analysed: tuple[Job, deconvoy.Run]) -> None:
    report = verify(analysed[1].url, 30)
    assert report.faults == [] and report.hits == 30


def test_pictures_of_a_grey_model_have_three_equal_channels(
    analysed: tuple[Job, deconvoy.Run],
) -> None:
    job, run = analysed
    model, images = model_of(job), dict(images_of(job))
    for place, name in enumerate(run.layer_names[:2]):
        for number in range(4):
            unit = run.unit(name, number)
            for rank in np.flatnonzero(unit.image >= 0):
                y0, x0, y1, x1 = unit.window[rank]
                patch, projection = unit.patches[rank], unit.projections[rank]
                assert patch.shape[2] == projection.shape[2] == 3
                assert (patch == patch[..., :1]).all()
                assert (projection == projection[..., :1]).all()
                image = images[int(unit.image[rank])]
                pixels = (image[0] * 0.5 + 0.4) * 255
                assert np.abs(patch[..., 0] - pixels[y0:y1, x0:x1].numpy()).max() < 0.5
                y, x = (int(i) for i in unit.position[rank])
                whole = reference.deconvnet(model, image, place, number, y, x)[0]
                step = float(whole.abs().max()) / 127
                theirs = whole[y0:y1, x0:x1].numpy()
                assert np.abs(projection[..., 0] - theirs).max() <= 0.51 * step


def test_a_figure_of_a_grey_model_is_drawn(analysed: tuple[Job, deconvoy.Run]) -> None:
    _, run = analysed
    picture = np.asarray(run.unit("1", 0).figure())
    assert picture.ndim == 3


def test_without_a_word_a_grey_model_gets_imagenets_mean_in_grey() -> None:
    assert default_transform(nn.Conv2d(1, 2, 3)) == IMAGENET_GREY
    assert default_transform(nn.Conv2d(3, 2, 3)) == default_transform(nn.Linear(1, 1)) == IMAGENET
    assert (IMAGENET.channels, IMAGENET_GREY.channels) == (3, 1)


@pytest.mark.parametrize(
    ("wanted", "given", "words"),
    [
        (1, 3, "takes images of 1 channels (0), but the transform's mean has 3: give data.trans"),
        (3, 1, "a mean and a std of 3 numbers."),
        (4, 3, "images are read as RGB (3) or grey (1): wrap it"),
    ],
)
def test_channels_that_do_not_fit_are_told(wanted: int, given: int, words: str) -> None:
    model = nn.Sequential(nn.Conv2d(wanted, 2, 3), nn.ReLU())
    with pytest.raises(ModelUnsupported) as caught:
        Network(model, (given, 8, 8))
    assert words in str(pickle.loads(pickle.dumps(caught.value)))


def test_a_mean_of_one_and_a_deviation_of_three_do_not_fit() -> None:
    with pytest.raises(RequestError, match="three numbers each .or one each"):
        small_spec(data={"transform": {"resize": 8, "crop": 8, "mean": [0.5]}})


def test_a_spec_with_one_channel_survives_json() -> None:
    spec = small_spec(data={"transform": GREY.model_dump()})
    assert JobSpec.parse(spec.to_json()) == spec
