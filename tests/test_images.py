"""Pixels equal torchvision's classic transforms on every kind of file; a broken one is refused."""

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deconvoy.errors import ImageUnreadable
from deconvoy.spec import Transform
from tests import reference
from workers import images
from workers.images import Picture, PictureCache, chunks, decode, from_pixels, read_ahead

TRANSFORM = Transform(resize=40, crop=32)
TRANSFORMS = {
    "shrink": TRANSFORM,
    "enlarge": Transform(resize=300, crop=224),
    "pad": Transform(resize=24, crop=31),
    "no_margin": Transform(resize=32, crop=32),
    "bicubic": Transform(resize=45, crop=32, interpolation="bicubic"),
}


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Coloured noise with some structure, so that a shift or a wrong filter shows."""
    rng = np.random.default_rng(width * 1000 + height)
    rows, cols = np.mgrid[0:height, 0:width]
    waves = 90 * np.sin(rows / 5)[..., None] + 90 * np.cos(cols / 7)[..., None]
    pixels = 128 + waves * [1, -1, 0.5] + rng.integers(-30, 30, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def with_alpha(width: int, height: int) -> Image.Image:
    picture = noise(width, height, "RGBA")
    picture.putalpha(noise(width, height, "L"))
    return picture


def turned(orientation: int) -> Image.Image:
    picture = noise(60, 45)
    picture.getexif()[0x0112] = orientation
    return picture


def sixteen_bit() -> Image.Image:
    return Image.fromarray((np.arange(50 * 60, dtype=np.uint16) * 17).reshape(50, 60))


FILES: dict[str, tuple[str, Callable[[], Image.Image]]] = {
    "landscape": ("jpg", lambda: noise(90, 60)),
    "portrait": ("jpg", lambda: noise(61, 97)),
    "square": ("png", lambda: noise(64, 64)),
    "shorter_side_fits": ("png", lambda: noise(40, 77)),
    "odd": ("png", lambda: noise(53, 41)),
    "smaller_than_the_crop": ("png", lambda: noise(11, 17)),
    "one_pixel": ("png", lambda: noise(1, 1)),
    "one_row": ("png", lambda: noise(30, 1)),
    "very_wide": ("png", lambda: noise(400, 9)),
    "very_tall": ("jpg", lambda: noise(7, 300)),
    "grey": ("jpg", lambda: noise(60, 50, "L")),
    "bilevel": ("png", lambda: noise(60, 50, "1")),
    "sixteen_bit": ("png", sixteen_bit),
    "palette": ("png", lambda: noise(60, 50).quantize(16)),
    "palette_gif": ("gif", lambda: noise(60, 50).quantize(200)),
    "alpha": ("png", lambda: with_alpha(60, 50)),
    "grey_alpha": ("png", lambda: noise(60, 50, "LA")),
    "cmyk": ("jpg", lambda: noise(60, 50, "CMYK")),
    "webp": ("webp", lambda: noise(60, 50)),
    "bmp": ("bmp", lambda: noise(60, 50)),
    "tiff": ("tiff", lambda: noise(60, 50)),
    **{f"turned_{i}": ("jpg", partial(turned, i)) for i in range(1, 9)},
}


def saved(name: str, folder: Path) -> Path:
    suffix, draw = FILES[name]
    picture = draw()
    path = folder / f"{name}.{suffix}"
    picture.save(path, exif=picture.getexif())
    return path


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", FILES)
def test_pixels_equal_the_classic_transforms(name: str, transform: str, tmp_path: Path) -> None:
    path, chosen = saved(name, tmp_path), TRANSFORMS[transform]
    picture = decode(path.read_bytes(), chosen)
    expected = reference.preprocess(path, chosen.resize, chosen.crop, chosen.interpolation)
    assert picture.pixels.dtype == torch.uint8
    assert torch.equal(picture.pixels, expected)


def test_a_turned_file_is_upright_and_so_is_its_size(tmp_path: Path) -> None:
    files = [saved(f"turned_{i}", tmp_path) for i in (1, 6)]
    upright, lying = (decode(file.read_bytes(), TRANSFORM) for file in files)
    assert not torch.equal(upright.pixels, lying.pixels)
    assert (lying.width, lying.height) == (45, 60)


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (9, 8), (shade, 0, 0)) for shade in (200, 100, 0)]
    exact = {"lossless": True} if kind == "webp" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **exact)
    with Image.open(io.BytesIO(content)) as image:
        assert getattr(image, "n_frames", 1) == 3
    pixels = decode(content, Transform(resize=8, crop=8)).pixels
    assert pixels[0].unique().tolist() == [200] and not pixels[1:].any()


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_are_scaled_to_eight(kind: str) -> None:
    deep = Image.fromarray(np.full((8, 9), 0x40FF, np.uint16))
    pixels = decode(encoded(deep, kind), Transform(resize=8, crop=8)).pixels
    assert pixels.unique().tolist() == [0x40]


@pytest.mark.parametrize(
    ("dtype", "told"), [(np.float32, "floating-point numbers"), (np.int32, "32-bit numbers")]
)
def test_numbers_of_no_known_range_are_refused_with_what_to_do(dtype: Any, told: str) -> None:
    content = encoded(Image.fromarray(np.ones((8, 9), dtype)), "tiff")
    with pytest.raises(ImageUnreadable, match=f"{told} of no known range: save it with 8 or 16"):
        decode(content, Transform(resize=8, crop=8))


def test_pixels_that_need_no_decoding_are_treated_alike() -> None:
    picture = noise(70, 50)
    given = from_pixels(np.asarray(picture), TRANSFORM)
    assert torch.equal(given.pixels, decode(encoded(picture, "png"), TRANSFORM).pixels)
    assert (given.width, given.height) == (70, 50)


def test_a_crop_larger_than_the_image_is_padded_with_black_around_the_centre() -> None:
    white = np.full((2, 4, 3), 255, np.uint8)
    pixels = from_pixels(white, Transform(resize=2, crop=5)).pixels
    # 5 - 2 rows: 1 before, 2 after; 5 - 4 columns: 0 before, 1 after
    expected = [[0] * 5, [255] * 4 + [0], [255] * 4 + [0], [0] * 5, [0] * 5]
    assert pixels[0].tolist() == expected


# --- model input ---


def test_model_input_is_the_normalised_pixels() -> None:
    pixels = torch.from_numpy(np.asarray(noise(32, 32)).copy()).permute(2, 0, 1)
    ours = images.normalise(torch.stack([pixels, 255 - pixels]), TRANSFORM)
    assert ours.dtype == torch.float32
    for given, normalised in zip([pixels, 255 - pixels], ours, strict=True):
        theirs = reference.normalise(given, TRANSFORM.mean, TRANSFORM.std)
        assert (normalised - theirs).abs().max() < 1e-6


def test_normalising_leaves_the_pixels_alone() -> None:
    pixels = torch.full((1, 3, 2, 2), 200, dtype=torch.uint8)
    images.normalise(pixels, TRANSFORM)
    assert (pixels == 200).all()


# --- what is refused ---

JPEG, PNG = encoded(noise(60, 50), "jpeg"), encoded(noise(60, 50), "png")
BROKEN = {
    "empty": b"",
    "text": b"<html>404</html>",
    "one_byte": b"\xff",
    "jpeg_cut_in_its_header": JPEG[:40],
    "jpeg_cut_in_its_pixels": JPEG[: len(JPEG) // 2],
    "png_cut_in_its_header": PNG[:20],
    "png_cut_in_its_pixels": PNG[: len(PNG) // 2],
    "png_with_a_flipped_byte": PNG[:200] + bytes([PNG[200] ^ 255]) + PNG[201:],
    "gif_without_pixels": b"GIF89a\x01\x00\x01\x00\x00\x00\x00",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(ImageUnreadable, match="not readable as an image: ."):
        decode(BROKEN[name], TRANSFORM)


def test_too_many_pixels_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 2999)
    cut = BROKEN["png_cut_in_its_pixels"]  # decoding it would be another complaint
    with pytest.raises(ImageUnreadable, match="60×50 pixels are more than 2,999"):
        decode(cut, TRANSFORM)
    monkeypatch.setattr(images, "MAX_PIXELS", 3000)
    with pytest.raises(ImageUnreadable, match="not readable"):
        decode(cut, TRANSFORM)


def test_a_strip_that_resizing_would_blow_up_is_refused() -> None:
    strip = encoded(Image.new("RGB", (4000, 1)), "png")
    with pytest.raises(ImageUnreadable, match="4000×1 pixels would be 1024000×256 after resizing"):
        decode(strip, Transform(resize=256, crop=224))


# --- reading ahead ---


def test_reading_ahead_keeps_the_order_whatever_finishes_first() -> None:
    first_may_end = threading.Event()

    def read(number: int) -> int:
        if number == 0:
            assert first_may_end.wait(10)
        elif number == 3:
            first_may_end.set()
        return number * 10

    with ThreadPoolExecutor(4) as pool:
        futures = read_ahead(pool, read, range(8), ahead=4)
        assert [future.result() for future in futures] == [n * 10 for n in range(8)]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_no_more_is_taken_from_the_sources_than_allowed_ahead(ahead: int) -> None:
    taken: list[int] = []

    def sources() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(2) as pool:
        for given, future in enumerate(read_ahead(pool, lambda n: n, sources(), ahead), start=1):
            assert future.result() == given - 1
            assert len(taken) <= given + ahead
    assert len(taken) == 10


def test_an_image_that_fails_fails_at_its_place_only() -> None:
    def read(number: int) -> int:
        if number == 1:
            raise ImageUnreadable("broken")
        return number

    with ThreadPoolExecutor(2) as pool:
        futures = list(read_ahead(pool, read, range(3), ahead=2))
    assert [futures[0].result(), futures[2].result()] == [0, 2]
    with pytest.raises(ImageUnreadable, match="broken"):
        futures[1].result()


# --- the cache ---


class Reader:
    """Makes pictures of 3·4·4 = 48 bytes and notes which were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, image_id: int) -> Picture:
        self.asked.append(image_id)
        return Picture(torch.full((3, 4, 4), image_id, dtype=torch.uint8), 4, 4)


def test_the_cache_reads_a_picture_once() -> None:
    reader = Reader()
    cache = PictureCache(reader, max_bytes=1000)
    assert [int(cache(i).pixels[0, 0, 0]) for i in (5, 7, 5, 5, 7)] == [5, 7, 5, 5, 7]
    assert reader.asked == [5, 7]


def test_the_cache_forgets_what_was_used_longest_ago_to_stay_within_its_bytes() -> None:
    reader = Reader()
    cache = PictureCache(reader, max_bytes=2 * 48)
    for image in (1, 2, 1, 3):  # 2 is the one unused for longest when 3 needs room
        cache(image)
    reader.asked.clear()
    for image in (1, 3, 2):
        cache(image)
    assert reader.asked == [2]


def test_the_cache_hands_out_a_picture_larger_than_itself() -> None:
    reader = Reader()
    cache = PictureCache(reader, max_bytes=10)
    assert cache(1).pixels.shape == (3, 4, 4)
    cache(2)
    cache(1)
    assert reader.asked == [1, 2, 1]


def test_the_cache_never_holds_more_than_its_bytes_with_several_threads() -> None:
    reader = Reader()
    cache = PictureCache(reader, max_bytes=3 * 48)
    with ThreadPoolExecutor(8) as pool:
        shown = list(pool.map(lambda i: int(cache(i % 7).pixels[0, 0, 0]), range(200)))
    assert shown == [i % 7 for i in range(200)]
    assert len(cache._pictures) == 3
    assert cache._bytes == 3 * 48


def test_chunks_are_consecutive_and_the_last_is_what_is_left() -> None:
    assert [list(piece) for piece in chunks(range(7), 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(chunks([], 3)) == []
