"""Fig. 7: cells lie where the square's centre is, scales start at zero, the legend is in order."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from deconvoy import figure7, heat
from deconvoy.errors import RequestError
from deconvoy.figures import EMPTY
from deconvoy.occlusion import Occlusion
from deconvoy.panels import Row, flat_words, probability_of, probability_scale
from tests.occlusions import handmade


def pixels_of(picture: Image.Image, colour: Any) -> np.ndarray:
    """Rows and columns of all pixels of exactly that colour, "pixel yx"."""
    return np.argwhere((np.asarray(picture) == np.array(colour, np.uint8)).all(-1))


def test_a_cell_is_drawn_where_the_centre_of_its_square_is() -> None:
    starts = np.array([0, 8, 16, 21])  # the last one flush with an image of 37 pixels
    found = heat.cells(starts, 16, 37, 37)
    assert [found[start + 8] for start in starts] == [0, 1, 2, 3]
    assert (found[:4] == -1).all() and found[4] == 0, "half a stride before the first centre"
    assert found[30] == 3 and (found[32:] == -1).all(), "half the last step behind the last centre"
    assert (np.diff(found[4:31]) >= 0).all()


def test_a_cell_covers_the_pixels_that_are_nearer_to_its_centre_than_to_any_other() -> None:
    starts = np.array([0, 3, 6, 9, 10])
    found, centres = heat.cells(starts, 5, 15, 150), starts + 2.5
    for pixel in np.flatnonzero(found >= 0).tolist():
        distance = np.abs(centres - (pixel + 0.5) / 10)
        assert distance[found[pixel]] == pytest.approx(distance.min())


def test_one_position_alone_fills_its_square() -> None:
    found = heat.cells(np.array([0]), 4, 4, 8)
    assert (found == 0).all()


def test_colours_grow_lighter_with_the_number() -> None:
    colours = heat.shaded(np.linspace(0, 1, 40)).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(colours) > 0).all()
    assert (heat.shaded(np.array([-1.0, 2.0])) == heat.shaded(np.array([0.0, 1.0]))).all()


def test_the_legend_has_the_most_frequent_first_and_one_entry_for_the_rest() -> None:
    label = np.array([[5, 5, 5, 5], [2, 2, 2, 9], [9, 9, 1, 1], [3, 3, 0, 7]])
    keys = heat.legend(label, target=9, most=4)
    assert [key.label for key in keys] == [5, 2, 9, 1, None]
    assert [key.share for key in keys] == [4 / 16, 3 / 16, 3 / 16, 2 / 16, 4 / 16]
    assert keys[-1].classes == 3
    assert keys[2].colour == heat.TARGET, "the class watched looks alike in every figure"
    assert len({key.colour for key in keys}) == len(keys)


def test_the_class_watched_is_in_the_legend_however_rare_it_is() -> None:
    label = np.array([[5, 5, 5], [2, 2, 9], [3, 3, 3]])
    keys = heat.legend(label, target=9, most=2)
    assert [key.label for key in keys] == [3, 9, None]
    assert keys[-1].classes == 2 and sum(key.share for key in keys) == pytest.approx(1)
    colours = heat.coloured(label, keys)
    assert tuple(colours[1, 2]) == heat.TARGET and tuple(colours[0, 0]) == heat.OTHERS


def test_the_probability_has_its_colour_at_the_place_of_the_square() -> None:
    shares = np.full((5, 5), 0.9)
    shares[1, 3] = 0.25
    shares[3, 1:3] = 0, 1  # the ends of the scale
    one = handmade(shares, activity={"relu5": np.zeros((5, 5), np.float32)}, unit={"relu5": 7},
                   clean_activity={"relu5": 0.0}, maps=("relu5",))  # fmt: skip
    picture = figure7.figure7(one, side=80)
    cell = pixels_of(picture, heat.shaded(np.array(0.25)))
    panel = pixels_of(picture, heat.shaded(np.array(np.float32(0.9))))
    # 2 drawn pixels a pixel of the image: the centre of that square is at 12, 27.
    first = panel.min(0) - 2 * np.array([1, 1])  # the panel's cells begin at 5 - 4 = 1
    inside = cell[(cell >= panel.min(0)).all(1) & (cell <= panel.max(0)).all(1)]
    assert inside.mean(0) - first == pytest.approx([24, 54], abs=2.1)
    assert np.ptp(inside, axis=0) + 1 == pytest.approx([15, 15], abs=1), "one stride of 7.5 pixels"


def test_beyond_the_centres_nothing_is_drawn() -> None:
    picture = figure7.figure7(handmade(np.full((7, 7), 0.9)), side=80)
    assert len(pixels_of(picture, EMPTY)) > 0


def test_the_square_stands_to_scale_where_the_class_is_least_probable() -> None:
    shares = np.full((4, 4), 0.9)
    shares[2, 1] = 0.1  # its top left corner is at 20, 10
    one = handmade(shares, fill=(1.0, 254.0, 3.0))
    found = pixels_of(figure7.figure7(one, side=160), (1, 254, 3))
    outlined = 2  # a line of one pixel around it
    assert tuple(np.ptp(found, axis=0) + 1 + outlined) == (40, 40)
    picture = pixels_of(figure7.figure7(one, side=160), (60, 60, 60)).min(0)
    assert tuple(found.min(0) - 1 - picture) == (80, 40)


def test_the_true_boxes_are_drawn_to_scale() -> None:
    one = handmade(boxes=np.array([[4, 8, 20, 38]], np.int32))
    found = pixels_of(figure7.figure7(one, side=160), figure7.BOX)
    assert tuple(np.ptp(found, axis=0) + 1) == (64, 120)


def test_the_scale_of_the_activity_starts_at_zero_and_holds_the_clean_value() -> None:
    flat = np.full((2, 2), 100.0, np.float32)
    one = handmade(activity={"relu5": flat}, clean_activity={"relu5": 200.0}, unit={"relu5": 0})
    half = heat.shaded(np.array(0.5))
    assert len(pixels_of(figure7.figure7(one, "relu5"), half)) > 1000
    signed = handmade(activity={"logits": flat - 300}, clean_activity={"logits": 200.0},
                      unit={"logits": 0})  # fmt: skip
    assert len(pixels_of(figure7.figure7(signed, "logits"), heat.shaded(np.array(0.0)))) > 1000


def drawn_d(one: Occlusion) -> np.ndarray:
    """Panel (d) on 80 pixels; the centres of the squares are at 10 and 70."""
    return probability_of(Row(one, "relu5", (), 80, 0.0))


def test_the_scale_of_the_probability_goes_from_its_smallest_value_to_its_largest() -> None:
    panel = drawn_d(handmade(((0.92, 0.93), (0.95, 0.96)), clean_probability=0.94))
    corners = panel[[10, 10, 69, 69], [10, 69, 10, 69]]
    assert corners.tolist() == heat.shaded(np.array([0, 0.25, 0.75, 1])).tolist()
    low = drawn_d(handmade(((0.002, 0.003), (0.005, 0.012)), clean_probability=0.004))
    assert len(np.unique(low[[10, 10, 69, 69], [10, 69, 10, 69]], axis=0)) == 4


def test_what_the_model_makes_of_the_image_without_a_square_is_on_the_scale_too() -> None:
    scale = probability_scale(handmade(((0.3, 0.4), (0.4, 0.4)), clean_probability=0.9))
    assert (scale.low, scale.high) == pytest.approx((0.3, 0.9))
    assert [scale.number(value) for value in (scale.low, scale.clean)] == ["0.300", "0.900"]


FLAT: dict[str, tuple[Any, float, str]] = {
    "nearly sure": (((0.971, 0.978), (0.975, 0.975)), 0.977, "0.971 to 0.978 everywhere"),
    "one number": (((0.5, 0.5), (0.5, 0.50002)), 0.5, "0.500 everywhere"),
    "hardly thought of": (((0.0002, 0.004), (0.001, 0.001)), 0.002, "0.000 to 0.004 everywhere"),
    "never more": (((0.9984, 0.9999), (0.999, 0.999)), 0.9998, "0.998 to 1.000 everywhere"),
    "not at all": (((0, 0), (0, 0)), 0.0, "0.000 everywhere"),
    "worth showing": (((0.97, 0.981), (0.975, 0.975)), 0.977, ""),
}


@pytest.mark.parametrize("what", FLAT)
def test_a_probability_that_does_not_move_is_told_in_words_instead_of_colours(what: str) -> None:
    shares, clean, words = FLAT[what]
    one = handmade(shares, clean_probability=clean)
    assert flat_words(one) == words
    coloured = {tuple(colour) for colour in heat.shaded(np.linspace(0, 1, 2)).tolist()}
    found = {tuple(colour) for colour in np.unique(drawn_d(one).reshape(-1, 3), axis=0).tolist()}
    assert bool(coloured & found) == (not words)


def test_both_ends_of_a_scale_can_be_read_beside_a_mark_next_to_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[tuple[str, float]] = []
    before = ImageDraw.ImageDraw.text

    def told(self: Any, place: Any, text: str, *rest: Any, **more: Any) -> None:
        written.append((text, place[1]))
        before(self, place, text, *rest, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", told)
    figure7.figure7(handmade(((0.8771, 0.9994), (0.99, 0.99)), clean_probability=0.996), side=160)
    heights = {text: y for text, y in written if text in ("0.999", "0.996", "0.877")}
    assert heights["0.999"] + 13 <= heights["0.996"] < heights["0.877"] - 13


def test_unless_told_the_last_layer_of_feature_maps_is_shown() -> None:
    assert handmade().default_layer() == "relu5"
    assert handmade(maps=()).default_layer() == "relu1", "one that is projected, not the output"
    assert handmade(maps=(), projection={}).default_layer() == "logits"
    one = handmade()
    assert figure7.figure7(one).tobytes() == figure7.figure7(one, "relu5").tobytes()
    assert figure7.figure7(one).tobytes() != figure7.figure7(one, "relu1").tobytes()


def test_the_weakest_place_is_the_first_among_equals() -> None:
    assert handmade(((0.9, 0.2), (0.2, 0.9))).weakest == (5.0, 35.0)


def test_the_heading_tells_a_prediction_from_a_label() -> None:
    assert figure7.title_of(handmade()) == ("cat", "p = 0.850, lowest 0.200")
    wrong = handmade(clean_label=0)
    assert figure7.title_of(wrong) == ("cat", "p = 0.850, lowest 0.200   predicted: dog")
    unlabelled = handmade(predicted=True)
    assert figure7.title_of(unlabelled) == ("predicted: cat", "p = 0.850, lowest 0.200")
    assert figure7.figure7(unlabelled).tobytes() != figure7.figure7(handmade()).tobytes()


def test_images_stack_as_rows_and_other_projections_stand_beside() -> None:
    one, tile = handmade(), np.ones((9, 9, 3), np.float32)
    alone, page = figure7.figure7(one), figure7.figure7_page([one, one, one])
    assert page.width == alone.width
    assert page.height - alone.height == 2 * (alone.height - figure7.figure7_page([one]).height) + (
        2 * (page.height - figure7.figure7_page([one, one]).height)
    )
    wide = figure7.figure7(one, others=[tile] * 9)
    assert wide.width > alone.width and wide.height == alone.height


def test_an_oblong_input_keeps_its_shape() -> None:
    one = handmade(np.full((2, 4), 0.9), size=(40, 80), x=np.array([0, 25, 50, 70], np.int32),
                   activity={"relu5": np.ones((2, 4), np.float32)},
                   picture=np.full((40, 80, 3), 61, np.uint8), projection={})  # fmt: skip
    found = pixels_of(figure7.figure7(one, "relu5", side=160), (61, 61, 61))
    assert tuple(np.ptp(found, axis=0) + 1) == (80, 160)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"layer": "relu6"}, "has no layer 'relu6'; nearest: relu1, relu5"),
        ({"side": 20}, "side is 20; a panel's side must be 64 to 1024"),
        ({"sigma": -1.0}, "sigma is -1.0"),
    ],
)
def test_what_cannot_be_drawn_is_told(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        figure7.figure7(handmade(), **asked)
    with pytest.raises(RequestError, match="No images to draw"):
        figure7.figure7_page([])


def test_a_figure_loads_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, deconvoy.figure7; sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
