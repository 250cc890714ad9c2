"""Pictures: hand-worked colours, boxes and layouts, and files that are whole or not there."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deconvoy import figures
from deconvoy.errors import RequestError
from deconvoy.figures import (
    BACKGROUND,
    EMPTY,
    Look,
    UnitPictures,
    figure2,
    hit_tile,
    save,
    signed_colours,
    signed_grey,
    smoothed,
    support_box,
    unit_picture,
)
from deconvoy.lettering import text_width

MISSING = float("-inf")


def projection_of(*values: float) -> np.ndarray:
    """A row of grey pixels."""
    return np.repeat(np.array(values, np.float32)[None, :, None], 3, axis=2)


def unit_with(
    hits: int = 9,
    ranks: int = 9,
    side: int = 8,
    unit: int = 0,
    layer: str = "features.1",
    labels: tuple[str, ...] = (),
) -> UnitPictures:
    """Each rank's patch is one colour, (20 rank, 100, 200); its projections ramp over the rows."""
    scores = np.array([10.0 - rank if rank < hits else MISSING for rank in range(ranks)])
    patches = np.full((ranks, side, side, 3), (0, 100, 200), np.uint8)
    patches[..., 0] = 20 * np.arange(ranks)[:, None, None]
    ramp = np.linspace(-1, 1, side, dtype=np.float32)[None, :, None, None]
    projections = np.broadcast_to(ramp, patches.shape).copy()
    return UnitPictures(layer, unit, scores.astype(np.float32), labels, patches, projections)


def count_of(image: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(image) == colour).all(axis=2).sum())


# -- colours -----------------------------------------------------------------------------------


def test_colours_are_signed_about_mid_grey() -> None:
    coloured = signed_colours(projection_of(-2.0, -1.0, 0.0, 1.0, 2.0), quantile=1.0)
    assert coloured[0, :, 0].tolist() == [0, 64, 128, 191, 255]


def test_channels_keep_their_own_signs() -> None:
    projection = np.array([[[1.0, 0.0, -1.0]]], np.float32)
    assert signed_colours(projection).tolist() == [[[255, 128, 0]]]


def test_values_beyond_the_quantile_are_clipped() -> None:
    # |p| sorted: 1, 1, 3, 8, each thrice: the median is 2.
    coloured = signed_colours(projection_of(1.0, -1.0, 3.0, -8.0), quantile=0.5)
    assert coloured[0, :, 1].tolist() == [191, 64, 255, 0]


def test_the_scale_of_a_projection_does_not_change_its_colours() -> None:
    projection = np.random.default_rng(1).normal(size=(9, 9, 3))
    assert np.array_equal(signed_colours(projection), signed_colours(2.0**40 * projection))


def test_an_all_zero_projection_is_flat_grey() -> None:
    zero = np.zeros((4, 5, 3), np.float32)
    assert (signed_colours(zero) == 128).all()
    assert (signed_grey(zero) == 128).all()


def test_a_lone_pixel_is_scaled_by_itself_when_the_quantile_is_zero() -> None:
    projection = np.zeros((30, 30, 3), np.float32)
    projection[3, 4] = -5.0
    projection[3, 5] = 2.5
    coloured = signed_colours(projection)
    assert coloured[3, 4].tolist() == [0, 0, 0]
    assert coloured[3, 5].tolist() == [191, 191, 191]
    assert coloured[0, 0].tolist() == [128, 128, 128]


def test_grey_is_the_mean_of_the_channels() -> None:
    # Means 1, -1 and 0: the last cancels though none of its channels is zero.
    projection = np.array([[[3, 0, 0], [0, -3, 0], [2, -1, -1]]], np.float32)
    assert signed_grey(projection, quantile=1.0).tolist() == [[[255] * 3, [0] * 3, [128] * 3]]


# -- smoothing ---------------------------------------------------------------------------------


def test_sigma_zero_changes_nothing() -> None:
    projection = np.random.default_rng(2).normal(size=(6, 7, 3)).astype(np.float32)
    for sigma in (0.0, 1e-300, 0.09):
        assert np.array_equal(smoothed(projection, sigma), projection)
    np.testing.assert_allclose(smoothed(projection, 0.1), projection, rtol=1e-6)


def test_smoothing_keeps_the_sum_of_an_interior_impulse() -> None:
    impulse = np.zeros((21, 25, 3), np.float32)
    impulse[10, 12] = (1.0, -2.0, 0.0)
    spread = smoothed(impulse, 1.0)
    assert spread.dtype == np.float32
    np.testing.assert_allclose(spread.sum(axis=(0, 1)), [1.0, -2.0, 0.0], atol=1e-6)


def test_smoothing_is_a_gaussian_of_that_width() -> None:
    impulse = np.zeros((21, 25, 3))
    impulse[10, 12] = 1.0
    spread = smoothed(impulse, 1.5)
    assert spread[10, 14, 0] / spread[10, 12, 0] == pytest.approx(math.exp(-0.5 * (2 / 1.5) ** 2))
    assert spread[11, 13, 0] / spread[10, 12, 0] == pytest.approx(math.exp(-1 / 1.5**2))


def test_smoothing_does_not_darken_the_borders() -> None:
    flat = np.full((5, 9, 3), -4.0)
    np.testing.assert_allclose(smoothed(flat, 3.0), flat, rtol=1e-12)


# -- support -----------------------------------------------------------------------------------


def test_support_is_a_square_with_a_margin_about_what_stands_out() -> None:
    projection = np.zeros((100, 100, 3), np.float32)
    projection[30, 40, 0] = -100.0
    projection[69, 59, 2] = 3.0
    projection[5, 5, 1] = 1.9  # below 2 % of the largest
    # Rows 30 to 70, columns 40 to 60: 40 px, a margin of 2, centred on (50, 50).
    assert support_box(projection) == (28, 28, 72, 72)


def test_a_lower_threshold_takes_in_fainter_pixels() -> None:
    projection = np.zeros((100, 100, 3), np.float32)
    projection[30, 40] = 100.0
    projection[69, 59] = 1.9
    assert support_box(projection, threshold=0.01) == (28, 28, 72, 72)
    assert support_box(projection)[2:] != (72, 72)


def test_support_is_never_smaller_than_a_quarter_and_stays_inside() -> None:
    projection = np.zeros((100, 100, 3), np.float32)
    projection[2, 97] = 1.0
    assert support_box(projection) == (0, 75, 25, 100)


def test_support_of_a_small_picture_is_the_picture() -> None:
    projection = np.zeros((5, 5, 3), np.float32)
    projection[4, 0] = 1.0
    assert support_box(projection) == (0, 0, 5, 5)


def test_support_of_nothing_is_the_whole_picture() -> None:
    assert support_box(np.zeros((40, 60, 3), np.float32)) == (0, 0, 40, 60)


# -- tiles -------------------------------------------------------------------------------------


def test_tiny_pictures_are_enlarged_into_crisp_pixels() -> None:
    pictures = unit_with(side=2)
    tile = hit_tile(pictures, 0, "projection", Look(tile=8))
    assert tile.shape == (8, 8, 3)
    assert tile[:, 0, 0].tolist() == [0] * 4 + [255] * 4


def test_zoom_shows_the_same_part_of_projection_and_patch() -> None:
    pictures = unit_with(side=64)
    pictures.projections[0] = 0.0
    pictures.projections[0, 40:56, 8:24] = 1.0  # 16 px and a margin of one: box 39:57, 7:25
    pictures.patches[0] = 0
    pictures.patches[0, 39:57, 7:25] = 250
    patch = hit_tile(pictures, 0, "patch", Look(tile=18, zoom=True))
    projection = hit_tile(pictures, 0, "projection", Look(tile=18, zoom=True))
    assert (patch == 250).all()
    assert (projection[1:17, 1:17] == 255).all()
    assert (projection[0] == 128).all() and (projection[:, 17] == 128).all()


def test_smoothing_happens_before_the_crop() -> None:
    pictures = unit_with(side=64)
    pictures.projections[0] = 0.0
    pictures.projections[0, 40:56, 8:24] = 1.0
    look = Look(tile=18, zoom=True, sigma=1.0)
    expected = signed_colours(smoothed(pictures.projections[0], 1.0)[39:57, 7:25])
    assert np.array_equal(hit_tile(pictures, 0, "projection", look), expected)


def test_an_oblong_picture_keeps_its_shape() -> None:
    pictures = dataclasses.replace(
        unit_with(side=8),
        patches=np.zeros((9, 8, 16, 3), np.uint8),
        projections=np.ones((9, 8, 16, 3), np.float32),
    )
    assert hit_tile(pictures, 0, "patch", Look(tile=16)).shape == (8, 16, 3)
    first = np.asarray(unit_picture(pictures, show="projection", tile=16))[:16, 8]
    assert (first[4:12] == 255).all() and (first[:4] == BACKGROUND).all()


def test_unit_picture_places_ranks_row_by_row() -> None:
    image = unit_picture(unit_with(), show="patch", tile=8)
    assert image.size == (3 * 8 + 2, 3 * 8 + 2)
    for rank in range(9):
        row, column = divmod(rank, 3)
        middle = (column * 9 + 4, row * 9 + 4)
        assert image.getpixel(middle) == (20 * rank, 100, 200)


def test_both_halves_have_the_same_size() -> None:
    pictures = unit_with()
    one = unit_picture(pictures, show="projection", tile=8)
    both = unit_picture(pictures, tile=8)
    assert both.size == (2 * one.width + 4, one.height)
    assert both.crop((0, 0, *one.size)).tobytes() == one.tobytes()
    right = both.crop((one.width + 4, 0, both.width, both.height))
    assert right.tobytes() == unit_picture(pictures, show="patch", tile=8).tobytes()


@pytest.mark.parametrize(
    ("ranks", "columns", "rows"),
    [(1, 1, 1), (2, 2, 1), (4, 2, 2), (5, 3, 2), (9, 3, 3), (16, 4, 4)],
)
def test_ranks_fill_the_squarest_grid(ranks: int, columns: int, rows: int) -> None:
    image = unit_picture(unit_with(hits=ranks, ranks=ranks), show="patch", tile=8)
    assert image.size == (columns * 9 - 1, rows * 9 - 1)


def test_missing_hits_are_quiet_tiles() -> None:
    image = unit_picture(unit_with(hits=7), tile=8)
    assert count_of(image, EMPTY) == 2 * 2 * 8 * 8
    assert image.getpixel((9 + 4, 18 + 4)) == EMPTY
    assert image.getpixel((4, 18 + 4)) != EMPTY


def test_a_dead_unit_is_all_quiet_tiles() -> None:
    assert count_of(unit_picture(unit_with(hits=0), tile=8), EMPTY) == 18 * 8 * 8


def test_grey_leaves_no_colour_in_projections_and_all_in_patches() -> None:
    pictures = unit_with()
    pictures.projections[..., 0] = 0.0
    projections = np.asarray(unit_picture(pictures, show="projection", grey=True, tile=8))[:8, :8]
    assert (projections == projections[..., :1]).all()
    assert not (projections == 128).all()
    assert unit_picture(pictures, show="patch", grey=True, tile=8).getpixel((4, 4)) == (0, 100, 200)


# -- pages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "columns"),
    [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (6, 3), (7, 4), (8, 4), (9, 3), (16, 4), (33, 4)],
)
def test_pages_are_wide_with_few_empty_cells(count: int, columns: int) -> None:
    # A page of n columns of 400 px (two halves of 196, 8 between) with 28 between and 24 about.
    image = figure2([unit_with(unit=unit) for unit in range(count)])
    assert image.width == 24 + columns * 428 - 28 + 24


def test_more_units_make_the_page_longer_by_their_row() -> None:
    units = [unit_with(unit=unit) for unit in range(3)]
    two, three = figure2(units[:2], columns=2), figure2(units, columns=2)
    assert three.width == two.width
    assert three.height - two.height == 22 + 196 + 28  # caption, tiles, gutter


def test_a_cell_holds_the_pictures_of_its_unit() -> None:
    units = [unit_with(unit=unit, hits=9 - unit) for unit in range(4)]
    page = figure2(units, columns=2)
    pixels = np.asarray(page)
    block = np.asarray(unit_picture(units[3]))
    left = 24 + 428
    tops = [
        top
        for top in range(page.height - 196)
        if np.array_equal(pixels[top : top + 196, left : left + 400], block)
    ]
    assert len(tops) == 1
    caption = pixels[tops[0] - 22 : tops[0], left : left + 400]
    assert caption.max() > 200  # and nothing is drawn over it
    above = tops[0] - (22 + 196 + 28)
    assert np.array_equal(pixels[above : above + 196, left : left + 400], unit_picture(units[1]))


def test_a_page_fits_its_largest_unit() -> None:
    page = figure2([unit_with(ranks=4, hits=4), unit_with(ranks=9)], columns=1)
    assert page.width == 24 + 400 + 24


def test_larger_tiles_have_larger_text() -> None:
    small, large = figure2([unit_with()]), figure2([unit_with()], tile=128)
    assert large.width == 2 * small.width


def test_no_text_is_cut_off_at_the_page_border() -> None:
    units = [
        unit_with(unit=1023, ranks=1, hits=1, layer="features.12.expand3x3_activation", side=5)
    ]
    page = np.asarray(
        figure2(units, title="a title " * 40, subtitle="x" * 30, zoom=True, sigma=1.0)
    )
    border = np.concatenate([page[:, :20].reshape(-1, 3), page[:, -20:].reshape(-1, 3)])
    assert (border == BACKGROUND).all()
    assert (page[:12] == BACKGROUND).all() and (page[-12:] == BACKGROUND).all()


def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything the figures write from now on."""
    texts: list[str] = []
    draw = figures.ImageDraw.ImageDraw.text

    def record(self: object, xy: object, text: str, *args: object, **options: object) -> None:
        texts.append(text)
        draw(self, xy, text, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(figures.ImageDraw.ImageDraw, "text", record)
    return texts


def test_head_and_captions_name_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = written(monkeypatch)
    labels = ("cat",) * 3 + ("dog",) * 5 + ("",)
    figure2([unit_with(unit=42, labels=labels)], title="a run", subtitle="14 px")
    assert texts[:3] == ["a run", "features.1", "14 px"]
    assert texts[3:6] == ["42", "max 10.00", "5/9 dog"]


def test_a_dead_unit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = written(monkeypatch)
    figure2([unit_with(hits=0, unit=3)])
    assert texts[1:3] == ["3", "dead"]
    assert "Dark tiles" in " ".join(texts)


def test_units_of_several_layers_carry_their_layers_name(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = written(monkeypatch)
    figure2([unit_with(layer="conv1", unit=1), unit_with(layer="conv2", unit=2)])
    assert texts[0] == "2 layers"
    assert "conv1 : 1" in texts and "conv2 : 2" in texts


def test_the_foot_says_how_colours_are_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = written(monkeypatch)
    figure2([unit_with()])
    plain = " ".join(texts)
    texts.clear()
    figure2([unit_with()], zoom=True, sigma=1.0, grey=True)
    worked = " ".join(texts)
    assert "Colours signed" in plain and "scaled by the 99 % quantile of |p|" in plain
    assert "Zoomed" not in plain and "Smoothed" not in plain and "Dark tiles" not in plain
    assert "Signed grey" in worked and "Zoomed to support, |p| > 2 %" in worked
    assert "Smoothed, sigma = 1 px." in worked  # Pillow's own font has no Greek


def test_characters_the_font_lacks_are_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = written(monkeypatch)
    figure2([unit_with()], title="Élan 3 × 3 ≤ 漢")
    assert texts[0] == "Elan 3 x 3 <= ?"


def test_a_label_too_long_for_its_place_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = written(monkeypatch)
    figure2([unit_with(labels=("a very long name of a class " * 4,) * 9)])
    (label,) = [text for text in texts if text.startswith("9/9")]
    assert label.endswith("...")
    assert 100 < text_width(label, 13) <= 196


def test_a_label_of_one_hit_is_no_majority() -> None:
    assert unit_with(ranks=2, hits=2, labels=("cat", "dog")).shared_label is None
    assert unit_with(ranks=4, hits=4, labels=("b", "a", "a", "b")).shared_label == ("b", 2)
    assert unit_with(ranks=3, hits=1, labels=("a", "b", "b")).shared_label is None
    assert unit_with().shared_label is None


@pytest.mark.parametrize(
    ("score", "text"),
    [(371.26, "371.3"), (362.0, "362.0"), (0.59, "0.5900"), (1234.5, "1234"), (-3.25, "-3.250")],
)
def test_scores_are_written_with_four_digits(score: float, text: str) -> None:
    assert figures._number(score) == text


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"tile": 4}, "tile is 4; .* 8 to 1024"),
        ({"sigma": -1.0}, "sigma is -1.0"),
        ({"sigma": float("nan")}, "sigma is nan"),
        ({"columns": 0}, "columns is 0"),
    ],
)
def test_a_wrong_request_is_named(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        figure2([unit_with()], **wrong)  # type: ignore[arg-type]


def test_a_figure_of_nothing_is_refused() -> None:
    with pytest.raises(RequestError, match="No units to draw"):
        figure2([])


def test_labels_that_do_not_match_the_hits_are_refused() -> None:
    with pytest.raises(RequestError, match=r"2 labels for 9 hits"):
        unit_with(labels=("a", "b"))


# -- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.jpeg", "JPEG")]
)
def test_save_writes_what_the_suffix_says(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "new" / name
    save(figure2([unit_with()]), path)
    with Image.open(path) as image:
        assert image.format == kind
    assert [entry.name for entry in path.parent.iterdir()] == [name]


def test_save_refuses_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"'\.gif'; use one of \.png, \.jpg, \.jpeg"):
        save(Image.new("RGB", (2, 2)), tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_a_jpeg_too_tall_for_its_format_is_refused(tmp_path: Path) -> None:
    tall = Image.new("RGB", (1, 65_501))
    with pytest.raises(RequestError, match=r"1 x 65501 pixels.*\.png"):
        save(tall, tmp_path / "a.jpg")
    save(tall, tmp_path / "a.png")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fill_the_disk(self: Image.Image, place: Path, *_: object, **__: object) -> None:
        Path(place).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        save(Image.new("RGB", (2, 2)), path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_a_figure_loads_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, deconvoy.figures; sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
