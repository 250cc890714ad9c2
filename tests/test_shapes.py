"""Test that ``shapes`` is reproducible, truthful about where things lie, and not told by colour.

Classifiers here are the smallest that make the point: a softmax on histograms of colours.
"""

import subprocess
import sys
from hashlib import sha256

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from deconvoy.errors import RequestError
from workers import shapes
from workers.drawings import KINDS
from workers.shapes import CLASSES, SIDE, render

DIGEST = """
from hashlib import sha256
from workers.shapes import render
print(sha256(b"".join(render(3, index).image.tobytes() for index in range(20))).hexdigest())
"""


def test_an_image_has_the_side_the_type_and_the_label_its_index_says() -> None:
    for index in range(2 * len(CLASSES)):
        shape = render(0, index)
        assert shape.image.shape == (SIDE, SIDE, 3)
        assert shape.image.dtype == np.uint8
        assert shape.label == index % len(CLASSES)


def test_another_process_draws_the_same_bytes_in_any_order() -> None:
    drawn = {index: render(3, index).image.tobytes() for index in reversed(range(20))}
    here = sha256(b"".join(drawn[index] for index in range(20))).hexdigest()
    there = subprocess.run(
        [sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert there == here


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1]
    render(0, 0)
    assert np.array_equal(before, np.random.get_state()[1])


def test_no_two_seeds_or_indices_share_an_image() -> None:
    images = {render(seed, index).image.tobytes() for seed in range(3) for index in range(30)}
    assert len(images) == 90


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1)])
def test_negative_numbers_are_refused_with_their_values(seed: int, index: int) -> None:
    with pytest.raises(RequestError, match=f"seed {seed}, index {index}: both must be 0 or more"):
        render(seed, index)


@pytest.mark.parametrize("index", range(4 * len(CLASSES)))
def test_the_box_is_the_extent_of_what_is_painted(
    index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def white_on_black(
        ground: Float[np.ndarray, "row col rgb"], polygons: list, colours: list
    ) -> Float[np.ndarray, "row col rgb"]:
        return paint(np.zeros_like(ground), polygons, [(255, 255, 255)] * len(colours))

    paint = shapes._paint
    monkeypatch.setattr(shapes, "_paint", white_on_black)
    monkeypatch.setattr(shapes, "_light", lambda rng, picture: picture)
    shape = render(5, index)
    rows, cols = np.nonzero(shape.image.sum(axis=2) > 0)
    painted = (rows.min(), cols.min(), rows.max() + 1, cols.max() + 1)
    # A pixel's grace: a sliver narrower than half a supersample paints nothing, and Pillow draws
    # the rim of a polygon outside its corners.
    np.testing.assert_allclose(painted, shape.box, atol=1)


@pytest.mark.parametrize("index", range(6 * len(CLASSES)))
def test_the_thing_lies_inside_the_image_and_its_parts_inside_the_thing(index: int) -> None:
    shape = render(1, index)
    y0, x0, y1, x1 = shape.box
    assert 0 < y0 < y1 < SIDE and 0 < x0 < x1 < SIDE
    assert shape.parts
    for top, left, bottom, right in shape.parts.values():
        assert y0 <= top < bottom <= y1 and x0 <= left < right <= x1


def test_a_face_has_two_eyes_above_and_beside_its_nose() -> None:
    for index in range(CLASSES.index("face"), 30 * len(CLASSES), len(CLASSES)):
        parts = render(2, index).parts
        assert {"left_eye", "right_eye", "nose"} <= parts.keys()
        left, right, nose = (_centre(parts[name]) for name in ("left_eye", "right_eye", "nose"))
        assert left[1] < nose[1] < right[1]
        assert max(left[0], right[0]) < nose[0]


def test_the_pixels_of_an_eye_are_an_eye() -> None:
    """Its white is the lightest thing in a face and its pupil dark: the box holds both."""
    for index in range(CLASSES.index("face"), 20 * len(CLASSES), len(CLASSES)):
        shape = render(4, index)
        for name in ("left_eye", "right_eye"):
            y0, x0, y1, x1 = shape.parts[name]
            brightness = shape.image[y0:y1, x0:x1].mean(axis=2)
            assert brightness.max() > 150
            assert brightness.min() < 80


def test_every_class_varies_in_place_size_and_colour() -> None:
    for label in range(len(CLASSES)):
        drawn = [render(6, label + len(CLASSES) * turn) for turn in range(40)]
        boxes = np.array([shape.box for shape in drawn])
        heights = boxes[:, 2] - boxes[:, 0]
        assert np.ptp(boxes[:, 0]) > 8 and np.ptp(boxes[:, 1]) > 8 and np.ptp(heights) > 8
        colours = np.stack([_mean_colour(shape) for shape in drawn])
        assert (colours.std(axis=0) > 15).all()


def test_things_that_may_face_either_way_do() -> None:
    assert {name for name, kind in KINDS.items() if kind.mirrored} >= {"fish", "car"}
    facing = set()
    for index in range(CLASSES.index("car"), 20 * len(CLASSES), len(CLASSES)):
        parts = render(0, index).parts
        facing.add(_centre(parts["front_wheel"])[1] > _centre(parts["back_wheel"])[1])
    assert facing == {True, False}


def test_colours_do_not_tell_the_class() -> None:
    """Joint 4x4x4 colour histograms, softmax regression, held out: below 40 % (chance is 10)."""
    train, train_labels = _histograms(seed=0, size=1000)
    test, test_labels = _histograms(seed=1, size=400)
    weight, bias = _softmax_regression(train, train_labels)
    assert _share_right(train @ weight + bias, train_labels) > 1 / len(CLASSES)
    assert _share_right(test @ weight + bias, test_labels) < 0.40


def _centre(box: tuple[int, int, int, int]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _mean_colour(shape: shapes.Shape) -> Float[np.ndarray, " rgb"]:
    y0, x0, y1, x1 = shape.box
    return shape.image[y0:y1, x0:x1].mean(axis=(0, 1))


def _histograms(seed: int, size: int) -> tuple[Float[Tensor, "image bin"], Int64[Tensor, " image"]]:
    counts, labels = [], []
    for index in range(size):
        shape = render(seed, index)
        level = (shape.image >> 6).astype(np.int64)
        bins = 16 * level[..., 0] + 4 * level[..., 1] + level[..., 2]
        counts.append(np.bincount(bins.ravel(), minlength=64))
        labels.append(shape.label)
    # Square roots spread the many small shares; they made the classifier better, not worse.
    return torch.tensor(np.sqrt(counts) / SIDE, dtype=torch.float32), torch.tensor(labels)


def _softmax_regression(
    features: Float[Tensor, "image bin"], labels: Int64[Tensor, " image"]
) -> tuple[Float[Tensor, "bin label"], Float[Tensor, " label"]]:
    weight = torch.zeros(features.shape[1], len(CLASSES), requires_grad=True)
    bias = torch.zeros(len(CLASSES), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200)

    def loss() -> Tensor:
        optimizer.zero_grad()
        fit = functional.cross_entropy(features @ weight + bias, labels)
        value = fit + 1e-4 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def _share_right(logits: Float[Tensor, "image label"], labels: Int64[Tensor, " image"]) -> float:
    return float((logits.argmax(1) == labels).float().mean())
