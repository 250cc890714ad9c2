"""Receptive fields: hand-worked numbers, and every box against a NaN probe of the plain module."""

import numpy as np
import pytest
from torch import nn

from tests import networks, reference
from tests.networks import Case
from workers.fields import (
    AxisField,
    Nominal,
    Window,
    through_cells,
    through_everything,
    through_selection,
    through_window,
    union,
)
from workers.graph import Layer, Network

WITHOUT_RULE = {name: case for name, (case, _) in networks.WITHOUT_RULE.items()}
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
TINY = {**networks.TINY, **WITHOUT_RULE}

# Boxes are exact but for these, where an operation is not known to be local: a hull of all.
LARGER_THAN_NEEDED = {
    "layer_norm", "instance_norm", "transposed_conv", "padding_mode", "chunk", "pool_with_places",
    "same_padding_of_an_even_kernel", "crop_to_a_computed_size", "concat_of_rows", "transpose",
    "reshape_across_images", "norm_without_statistics", "clamp_elsewhere",
    "weighted_sum",
}  # fmt: skip


def everywhere(layer: Layer) -> np.ndarray:
    """All positions of a layer, "position yx"."""
    return np.argwhere(np.ones((layer.height, layer.width)))


def spans(field: AxisField) -> list[tuple[int, int]]:
    return list(zip(field.low.tolist(), field.high.tolist(), strict=True))


# --- against the probe ---


@pytest.mark.parametrize("name", TINY)
def test_every_box_is_what_a_nan_probe_finds(name: str) -> None:
    case = TINY[name]
    model = case.model()
    layers = Network(model, case.shape).layers
    places = [
        (number, int(y), int(x))
        for number, layer in enumerate(layers)
        for y, x in everywhere(layer)
    ]
    probed = reference.receptive_boxes(model, case.shape, places, case.unrectified)
    for (number, y, x), seen in zip(places, probed, strict=True):
        box = layers[number].field.boxes(np.array([[y, x]]))[0].tolist()
        if name in LARGER_THAN_NEEDED:
            assert contains(box, seen), (layers[number].name, y, x)
        else:
            assert box == list(seen), (layers[number].name, y, x)


def contains(outer: list[int], inner: tuple[int, ...]) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and (
        outer[2] >= inner[2] and outer[3] >= inner[3]
    )  # fmt: skip


@pytest.mark.parametrize("name", [*TINY, *networks.REAL])
def test_windows_have_one_size_and_contain_the_box_unless_they_are_the_image(name: str) -> None:
    case: Case = {**TINY, **networks.REAL}[name]
    for layer in Network(case.model(), case.shape).layers:
        positions = everywhere(layer)
        windows, boxes = layer.field.windows(positions), layer.field.boxes(positions)
        sizes = windows[:, 2:] - windows[:, :2]
        assert (sizes == layer.field.window_size).all(), layer.name
        seeing = boxes.any(axis=1)
        assert (windows[seeing, :2] <= boxes[seeing, :2]).all(), layer.name
        assert (windows[seeing, 2:] >= boxes[seeing, 2:]).all(), layer.name
        if layer.field.window_size == case.shape[1:]:
            assert (windows == [0, 0, *case.shape[1:]]).all(), layer.name
        else:  # unclipped: they move with the position, one stride a step
            assert (sizes < case.shape[1:]).all(), layer.name
            assert len(np.unique(windows, axis=0)) == len(positions), layer.name


def test_the_fields_of_alexnet_are_the_known_ones() -> None:
    # size' = size + (kernel - 1)·stride, stride' = stride·s, offset' = offset - padding·stride:
    # conv1 11/4 p2: 11, 4, -2.   pool 3/2: 19, 8.   conv2 5 p2: 51, 8, -18.   pool: 67, 16.
    # conv3, conv4, conv5 3 p1: 99, -34;  131, -50;  163, -66; all with stride 16.
    case = networks.REAL["alexnet"]
    layers = Network(case.model(), (3, 224, 224)).layers
    nominal = [layer.field.rows.nominal for layer in layers[:5]]
    assert nominal == [
        Nominal(11, 4, -2), Nominal(51, 8, -18), Nominal(99, 16, -34),
        Nominal(131, 16, -50), Nominal(163, 16, -66),
    ]  # fmt: skip
    assert layers[4].field.window_size == (163, 163)
    assert layers[4].field.windows(np.array([[0, 12]])).tolist() == [[-66, 126, 97, 289]]
    assert layers[4].field.boxes(np.array([[0, 12]])).tolist() == [[0, 126, 97, 224]]
    assert layers[-1].field.window_size == (224, 224)


@pytest.mark.parametrize(
    ("kernel", "box"), [((3, 11), [0, 0, 3, 11]), ((13, 3), [0, 0, 13, 3]), ((12, 10), None)]
)
def test_where_one_side_of_the_field_reaches_the_image_the_window_is_the_image(
    kernel: tuple[int, int], box: list[int] | None
) -> None:
    network = Network(nn.Sequential(nn.Conv2d(3, 4, kernel), nn.ReLU()), (3, 13, 11))
    field, first = network.layers[0].field, np.array([[0, 0]])
    if box is None:  # a pixel less both ways: the field itself
        assert field.window_size == kernel
    else:
        assert field.boxes(first).tolist() == [box]
        assert field.windows(first).tolist() == [[0, 0, 13, 11]]


# --- hand-worked axes ---


def test_a_window_hanging_over_both_borders_is_clipped() -> None:
    # taps -1..1, 1..3, 3..5 of 5 positions
    field = through_window(AxisField.of_input(5), Window(3, 2, 1), 3)
    assert spans(field) == [(0, 2), (1, 4), (3, 5)]
    assert field.nominal == Nominal(3, 2, -1)


def test_dilated_taps_outside_the_map_see_nothing() -> None:
    # taps (-2, 1, 4), (-1, 2, 5), (0, 3, 6), (1, 4, 7) of 5 positions
    field = through_window(AxisField.of_input(5), Window(3, 1, 2, dilation=3), 4)
    assert spans(field) == [(1, 5), (2, 3), (0, 4), (1, 5)]


def test_a_position_that_sees_padding_only_has_no_field_and_widens_no_other() -> None:
    # kernel 1, padding 2 on 3 positions: nothing, nothing, 0, 1, 2, nothing, nothing
    padded = through_window(AxisField.of_input(3), Window(1, 1, 2), 7)
    assert spans(padded) == [(0, 0), (0, 0), (0, 1), (1, 2), (2, 3), (0, 0), (0, 0)]
    after = through_window(padded, Window(3, 1, 0), 5)
    assert spans(after) == [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
    skipping = through_window(padded, Window(2, 4, 0), 2)  # positions (0, 1) and (4, 5)
    assert spans(skipping) == [(0, 0), (2, 3)]


def test_uneven_cells_overlap_by_torchs_formula_and_have_no_nominal_field() -> None:
    # 7 to 3: floor(7i/3) to ceil(7(i+1)/3) = 0..3, 2..5, 4..7
    field = through_cells(AxisField.of_input(7), 3)
    assert spans(field) == [(0, 3), (2, 5), (4, 7)]
    assert field.nominal is None


def test_even_cells_are_a_window() -> None:
    assert through_cells(AxisField.of_input(6), 3).nominal == Nominal(2, 2, 0)


def test_a_selection_follows_its_source() -> None:
    field = through_selection(AxisField.of_input(9), np.array([-1, 2, 5, 8, -1]))
    assert spans(field) == [(0, 0), (2, 3), (5, 6), (8, 9), (0, 0)]
    assert field.nominal == Nominal(1, 3, -1)
    assert through_selection(AxisField.of_input(9), np.array([1, 0, 1, 2])).nominal is None


def test_branches_unite_to_their_hull() -> None:
    narrow = AxisField.of_input(6)
    wide = through_window(narrow, Window(3, 1, 1), 6)
    field = union([narrow, wide])
    assert spans(field) == spans(wide)
    assert field.nominal == Nominal(3, 1, -1)


def test_branches_of_different_stride_have_no_common_window() -> None:
    fine = AxisField.of_input(3)
    coarse = through_window(AxisField.of_input(6), Window(1, 2, 0), 3)
    assert union([fine, coarse]).nominal is None


def test_a_branch_of_one_position_is_repeated() -> None:
    maps = AxisField.of_input(4)
    mean = through_everything(maps, 1)
    assert spans(mean) == [(0, 4)]
    assert spans(union([maps, mean])) == [(0, 4)] * 4


def test_all_of_a_map_sees_no_pixel_that_its_strides_skip() -> None:
    skipping = through_window(AxisField.of_input(6), Window(1, 2, 0), 3)  # rows 0, 2, 4
    assert spans(through_everything(skipping, 2)) == [(0, 5), (0, 5)]
