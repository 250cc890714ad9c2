"""Refuse images that would take far more memory or time to decode than their pixels tell."""

import re

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from deconvoy.errors import ImageUnreadable

TILE_PIXELS = 16_000_000
"""Of a tile, however little of it is in the image."""

MAX_SCANS = 100
"""Passes over a JPEG: a progressive one has ten or so, and one crafted to have a million, each of
a few bytes, would be decoded for days."""

TILEWIDTH, TILELENGTH = 322, 323

START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9

_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""Of a segment; within the pixels FF is followed by 00 or the number of a restart."""


def refuse_bombs(image: Image.Image, content: bytes, max_pixels: int) -> None:
    """
    Args:
        image: just opened, of which nothing is decoded.
        content: its file.

    Raises:
        ImageUnreadable: says why.
    """
    width, height = image.size
    if width * height > max_pixels:
        raise ImageUnreadable(f"{width}×{height} pixels are more than {max_pixels:,}")
    if isinstance(image, TiffImageFile):
        wide, tall = (int(image.tag_v2.get(tag, 1)) for tag in (TILEWIDTH, TILELENGTH))
        if wide * tall > max(TILE_PIXELS, width * height):
            raise ImageUnreadable(
                f"its tiles of {wide}×{tall} pixels are more than {TILE_PIXELS:,} and than the "
                f"image's own {width}×{height}"
            )
    if image.format in ("JPEG", "MPO") and _scans(content) > MAX_SCANS:
        raise ImageUnreadable(f"its JPEG has more than {MAX_SCANS} scans")


def _scans(jpeg: bytes) -> int:
    """Passes over its first image; whatever follows that, such as a film, is not looked at."""
    found = jpeg.count(bytes((0xFF, START_OF_SCAN)))
    if found <= MAX_SCANS:  # at most: a walk would take as long as a small image
        return found
    scans, place = 0, 2
    while marker := _MARKER.search(jpeg, place):
        kind, place = marker[0][1], marker.end()
        if kind == END_OF_IMAGE:
            break
        scans += kind == START_OF_SCAN
        place += int.from_bytes(jpeg[place : place + 2], "big")
    return scans
