"""Test `workers.analyse`: a model object and images at hand make a run like any other."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import deconvoy
import workers
from deconvoy.errors import JobStopped, RequestError, RunExists
from tests import reference
from tests.runs import write_photographs
from workers import pipeline

ROOT = Path(__file__).resolve().parents[1]

TRANSFORM = {"resize": 16, "crop": 16, "mean": [0.5] * 3, "std": [0.25] * 3}


class Small(nn.Module):
    """Two convolutions and four outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 5, 3, stride=2)
        self.last = nn.Linear(5, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(self.second(torch.relu(self.first(images))))
        return self.last(maps.mean((2, 3)))


def pictures(count: int = 12) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(count)]


def analysed(out: Path, images: Any = None, **changes: Any) -> deconvoy.Run:
    given = {"transform": TRANSFORM, "out": out, **changes}
    return workers.analyse(Small(), pictures() if images is None else images, **given)


def test_a_model_object_is_analysed_as_a_named_one_would_be(tmp_path: Path) -> None:
    model = Small().train()
    run = workers.analyse(
        model, pictures(), transform=TRANSFORM, labels=[0, 1, 2, 3] * 3, classes="abcd",
        out=tmp_path / "run",
    )  # fmt: skip
    assert model.training, "the caller's model was changed"
    assert (run.status, run.layer_names) == ("done", ("relu", "relu_1", "logits"))
    images = [
        (number, reference.normalise(torch.from_numpy(p).permute(2, 0, 1), [0.5] * 3, [0.25] * 3))
        for number, p in enumerate(pictures())
    ]
    expected = reference.brute_force(Small().eval(), images)
    for layer, units in zip(run.layer_names, expected, strict=True):
        for index, hits in enumerate(units):
            assert run.unit(layer, index).image.tolist() == [hit.image for hit in hits]
    unit = run.unit("relu_1", 0)
    assert unit.labels == tuple("abcd"[i % 4] if i >= 0 else "" for i in unit.image)
    assert unit.projections.shape[0] == 9


def test_pictures_may_come_as_pillow_images_or_as_a_folder(tmp_path: Path) -> None:
    arrays = analysed(tmp_path / "arrays")
    drawn = analysed(tmp_path / "drawn", [Image.fromarray(p) for p in pictures()])
    assert drawn.table().equals(arrays.table())
    write_photographs(tmp_path / "folder", 4)
    run = analysed(tmp_path / "read", str(tmp_path / "folder"))
    assert run.images().num_rows == 4


def deep() -> Image.Image:
    """16 bits a pixel."""
    return Image.fromarray((np.arange(256, dtype=np.uint16) * 256).reshape(16, 16))


def turned() -> Image.Image:
    """A picture whose EXIF says that it lies on its side."""
    picture = Image.fromarray(pictures(1)[0][:, :12])
    picture.getexif()[0x0112] = 6
    return picture


@pytest.mark.parametrize("kind", [deep, turned])
def test_a_pillow_image_is_what_its_file_would_be(
    tmp_path: Path, kind: Callable[[], Image.Image]
) -> None:
    (tmp_path / "folder").mkdir()
    given = kind()
    given.save(tmp_path / "folder/one.png", exif=given.getexif())
    of_file = analysed(tmp_path / "file", str(tmp_path / "folder"))
    of_picture = analysed(tmp_path / "picture", [given])
    assert len(set(of_file.table().column("score").to_pylist())) > 3, "nothing to compare"
    assert of_picture.table().drop_columns(["uri"]) == of_file.table().drop_columns(["uri"])


def cut_off() -> Image.Image:
    buffer = io.BytesIO()
    Image.fromarray(pictures(1)[0]).save(buffer, "png")
    return Image.open(io.BytesIO(buffer.getvalue()[:-400]))


@pytest.mark.parametrize(
    ("images", "changes", "told"),
    [
        ([], {}, "images is empty"),
        ([deep().convert("F")], {}, r"images\[0\] cannot be read: .*floating-point.*save it with"),
        ([cut_off()], {}, r"images\[0\] cannot be read: image file is truncated.*leave it out"),
        ([np.zeros((4, 4), np.uint8)], {}, r"images\[0\] is ndarray \(4, 4\)"),
        (None, {"labels": [1]}, "labels has 1 entries for 12 images"),
        (None, {"labels": [9] * 12}, r"labels\[0\] is 9, but the model has 4 outputs"),
        ("shapes?size=4", {"labels": [1] * 4}, "labels are for images given as pictures"),
        ("nowhere", {}, "'nowhere' does not exist"),
        (None, {"layers": ["relu_9"]}, "nearest: relu"),
        (None, {"transform": {"resize": 16}}, "crop"),
        (None, {"k": 9}, "The field 'k' is unknown"),
        (None, {"compute": {"workers": 2}}, "the inline executor has one worker"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(
    tmp_path: Path, images: Any, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(RequestError, match=told):
        analysed(tmp_path / "run", images, **changes)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("analyse(3, 'shapes', out='run')", "model is int, but workers.analyse takes a torch"),
        ("analyse(torch.nn.ReLU(), 7, out='run')", "images is int: give a folder"),
    ],
)
def test_arguments_of_another_kind_are_refused(tmp_path: Path, call: str, told: str) -> None:
    # in a process of its own, where no type checker of the tests is before ours
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import torch, workers; workers.{call}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert f"RequestError: {told}" in done.stderr and not (tmp_path / "run").exists()


def test_a_run_that_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    analysed(tmp_path / "run")
    with pytest.raises(RunExists, match="overwrite"):
        analysed(tmp_path / "run")
    assert analysed(tmp_path / "run", overwrite=True).status == "done"


def test_ctrl_c_says_that_only_this_process_has_the_model(tmp_path: Path) -> None:
    def observe(_: pipeline.Advance) -> None:
        raise KeyboardInterrupt

    with pytest.raises(JobStopped, match=r"call workers\.analyse again, overwrite=True"):
        analysed(tmp_path / "run", observe=observe)
