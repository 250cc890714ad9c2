"""What pages of the dashboard are made of, without a browser or a service."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard import addresses, overlay, pieces
from dashboard.views import VIEWS, search
from deconvoy import figures, heat

STATE = st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text(max_size=20))


@given(st.sampled_from(sorted(VIEWS)), STATE)
def test_an_address_says_all_that_it_was_made_of(name: str, state: dict[str, str]) -> None:
    assert addresses.taken_apart(addresses.view(name, **state)) == (name, state)


def test_an_address_changes_in_what_is_changed() -> None:
    state = {"run": "a b", "layer": "x/y", "offset": "48"}
    address = addresses.changed("layer", state, offset=None, order="score", dead=True)
    assert address == "/layer?run=a+b&layer=x%2Fy&order=score&dead=true"


def test_no_name_leads_out_of_an_address_of_the_api() -> None:
    address = addresses.unit_picture("..", "0", "../..", 3, "png", zoom=None)
    assert address == "/v1/runs/%2E%2E/layers/..%2F../units/3.png?v=0"


def test_texts_of_data_are_escaped() -> None:
    wrong = '<script>"x"</script>'
    shown = (
        pieces.heading(wrong, "", pieces.way((wrong, wrong)))
        + pieces.pills(wrong, [(wrong, wrong, True)])
        + pieces.card(wrong, pieces.facts([("name", wrong)]))
        + pieces.picture(wrong, wrong)
    )
    assert "<script" not in shown and '="x"' not in shown


def test_one_hit_is_cut_out_of_a_sheet() -> None:
    """The enlarged and moved sheet shows exactly the tile, whatever the box's size."""
    rng = np.random.default_rng(0)
    for ranks, tile in ((9, 44), (4, 160), (5, 64), (1, 44)):
        scores = np.arange(ranks, 0, -1, dtype=np.float32)
        patches = rng.integers(0, 256, (ranks, 20, 20, 3), dtype=np.uint8)
        projections = np.zeros((ranks, 20, 20, 3), np.float32)
        units = figures.UnitPictures("relu", 0, scores, (), patches, projections)
        sheet = figures.unit_picture(units, show="patch", tile=tile)
        for rank in range(ranks):
            style = re.search(r'style="([^"]*)"', pieces.cut("x", tile, rank, ranks, ""))
            assert style is not None
            width, left, top = (float(n) for n in re.findall(r"(-?[\d.]+)%", style[1]))
            # A box of `tile` pixels: the sheet is drawn `width` % as wide as it, and its height
            # follows.
            assert width == pytest.approx(100 * sheet.width / tile, abs=0.01)
            x, y = -left * sheet.width / 100, -top * sheet.height / 100
            box = (round(x), round(y), round(x) + tile, round(y) + tile)
            expected = figures.hit_tile(units, rank, "patch", figures.Look(tile))
            assert np.array_equal(np.asarray(sheet.crop(box)), expected)


def test_layers_lose_the_end_that_most_have() -> None:
    names = ["features.1", "features.3.squeeze_activation", "features.3.expand1x1_activation"]
    assert list(pieces.short_names(names).values()) == [
        "features.1", "features.3.squeeze", "features.3.expand1x1",
    ]  # fmt: skip
    for kept in (["a", "b"], ["a_x", "b_y", "c"], ["a", "a_x", "b_x"], []):
        assert list(pieces.short_names(kept).values()) == kept


@pytest.mark.parametrize(
    ("value", "told"),
    [(None, ""), (3, "3"), (1234567, "1,234,567"), (0.12345, "0.1235"), (1234.5, "1,234"),
     (2.0, "2"), (-0.5, "-0.5")],
)  # fmt: skip
def test_numbers_are_for_people(value: float | None, told: str) -> None:
    assert pieces.number(value) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "0 s"), (59, "59 s"), (59.9, "60 s"), (61, "1 min 1 s"), (3599.9, "1 h 0 min"),
     (7300, "2 h 1 min")],
)  # fmt: skip
def test_times_are_for_people(seconds: float, told: str) -> None:
    assert pieces.duration(seconds) == told


LAYERS = [
    {"layer": "features.1", "units": 64},
    {"layer": "features.12.squeeze", "units": 16},
    {"layer": "features.12.expand", "units": 256},
]


@pytest.mark.parametrize(
    ("words", "unit"),
    [
        ("features.1:7", ("features.1", 7)),
        ("Features.1 : 7", ("features.1", 7)),
        ("squeeze:15", ("features.12.squeeze", 15)),
        ("squeeze 15", ("features.12.squeeze", 15)),
        ("squeeze:16", None),
        ("features.12:3", None),
        ("tench", None),
        (":3", None),
        ("features.1:-1", None),
    ],
)
def test_a_unit_is_known_by_its_layer_and_number(words: str, unit: tuple[str, int] | None) -> None:
    found = search._unit(LAYERS, words)
    assert (None if found is None else (found[0]["layer"], found[1])) == unit


@pytest.mark.parametrize("starts", [[0, 16, 32, 48], [0], [0, 10, 25]])
def test_an_overlay_has_the_cells_of_the_figure(starts: list[int]) -> None:
    patch, length = 16, 80
    edges = overlay._edges(starts, patch)
    places = np.arange(length) + 0.5
    found = np.searchsorted(edges, places, side="right") - 1
    found[(places < edges[0]) | (places >= edges[-1])] = -1
    assert found.tolist() == heat.cells(np.array(starts), patch, length, length).tolist()


def test_a_map_tells_the_value_of_every_place() -> None:
    occlusion = {
        "class": "tench",
        "clean_probability": 0.9,
        "probability": [[0.9, 0.1], [0.5, 0.3]],
        "label": [[3, 3], [1, 3]],
        "target": 3,
        "clean_label": 3,
    }
    map_ = overlay._probability(occlusion)
    assert map_["told"][0][1].startswith("10.0%") and map_["told"][1][0].startswith("50.0%")
    dark, light = heat.shaded(np.array([0.0, 1.0])).tolist()
    assert map_["colours"][0] == [light, dark]
    classes = overlay._label(occlusion, ["a", "b", "c", "tench"])
    assert classes["told"][1][0].startswith("b with the square here; tench without")
    assert [text for _, text in classes["key"]] == ["tench 75%", "b 25%"]


def test_bars_are_as_high_as_their_counts() -> None:
    heights = re.findall(r"height:([\d.]+)%", pieces.bars([0, 1, 500, 1000], "x"))
    assert [float(height) for height in heights] == [0.0, 1.5, 50.0, 100.0]


def test_a_picture_has_its_class_and_a_text_in_its_place() -> None:
    shown = pieces.picture("/a.jpg?b=1&c=2", "what it shows", class_="whole")
    assert 'src="/a.jpg?b=1&amp;c=2"' in shown and 'loading="lazy"' in shown
    assert 'alt="what it shows"' in shown and ' class="whole"' in shown
