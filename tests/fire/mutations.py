"""Break bytes on purpose, the same way for the same seed; and files that are built to do harm.

A mutation is told by its number alone: which file it began from, what was done to it and where all
follow from it, so that one that breaks something can be made again.
"""

import io
import json
import random
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from PIL import Image

ENDINGS = {"jpeg": "jpg", "png": "png", "webp": "webp", "tiff": "tif", "gif": "gif", "bmp": "bmp"}


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(seed: int, width: int = 72, height: int = 64) -> Image.Image:
    """Noise over a slope, which every format has something to do with."""
    generator = np.random.default_rng(seed)
    rows, cols = np.mgrid[0:height, 0:width]
    pixels = (rows * 2 + cols)[..., None] + generator.integers(0, 60, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def originals() -> list[tuple[str, bytes]]:
    """Whole files of every kind a data set is made of: its ending, and its bytes."""
    plain, turned = photograph(1), Image.Exif()
    turned[0x0112] = 6
    made = [
        ("jpg", encoded(plain, "jpeg", exif=turned)),
        ("jpg", encoded(plain, "jpeg", progressive=True)),
        ("jpg", encoded(plain.convert("CMYK"), "jpeg")),
        ("png", encoded(plain, "png")),
        ("png", encoded(plain.quantize(16), "png", transparency=3)),
        ("webp", encoded(plain, "webp", quality=80)),
        ("webp", encoded(plain, "webp", lossless=True)),
        ("tif", encoded(plain, "tiff")),
        ("tif", encoded(plain, "tiff", compression="tiff_lzw")),
        ("tif", encoded(plain, "tiff", compression="jpeg")),
        ("tif", encoded(plain, "tiff", compression="tiff_deflate")),
        ("gif", encoded(plain.quantize(32), "gif")),
        ("bmp", encoded(plain, "bmp")),
    ]
    return made


def _flipped(content: bytes, dice: random.Random, _: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 8, 64))):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _in_header(content: bytes, dice: random.Random, _: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(dice.choice((1, 2, 4))):
        changed[dice.randrange(min(64, len(changed)))] = dice.choice((0, 1, 127, 128, 254, 255))
    return bytes(changed)


def _truncated(content: bytes, dice: random.Random, _: bytes) -> bytes:
    return content[: dice.randrange(len(content))]


def _spliced(content: bytes, dice: random.Random, other: bytes) -> bytes:
    return content[: dice.randrange(len(content))] + other[dice.randrange(len(other)) :]


def _of_another_kind(content: bytes, dice: random.Random, other: bytes) -> bytes:
    length = dice.choice((2, 8, 16, 32))
    return other[:length] + content[length:]


def _huge_numbers(content: bytes, dice: random.Random, _: bytes) -> bytes:
    """Four bytes that may be a size, a place or a count, as the largest there are."""
    place = dice.randrange(max(1, len(content) - 4))
    number = dice.choice((0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x00010000, 0))
    packed = struct.pack(dice.choice(("<I", ">I")), number)
    return content[:place] + packed + content[place + 4 :]


def _repeated(content: bytes, dice: random.Random, _: bytes) -> bytes:
    start = dice.randrange(len(content))
    piece = content[start : start + dice.choice((1, 16, 256))]
    return content[:start] + piece * dice.choice((2, 16, 64)) + content[start:]


def _lost(content: bytes, dice: random.Random, _: bytes) -> bytes:
    start = dice.randrange(len(content))
    return content[:start] + content[start + dice.choice((1, 16, 256)) :]


WAYS: tuple[Callable[[bytes, random.Random, bytes], bytes], ...] = (
    _flipped, _in_header, _truncated, _spliced, _of_another_kind, _huge_numbers, _repeated, _lost,
)  # fmt: skip


def mutated(content: bytes, number: int, other: bytes = b"\0" * 64) -> bytes:
    """Broken in the way, at the place, that a number stands for."""
    dice = random.Random(number)
    return WAYS[number % len(WAYS)](content, dice, other)


def mutated_images(count: int) -> Iterator[tuple[str, bytes]]:
    """A name, and bytes that may or may not be an image still; every seventh has another ending."""
    whole = originals()
    for number in range(count):
        ending, content = whole[number // len(WAYS) % len(whole)]
        _, other = whole[number * 5 % len(whole)]
        if number % 7 == 0:
            ending = whole[number % len(whole)][0]
        yield f"m{number:06d}.{ending}", mutated(content, number, other)


# Built to do harm ---------------------------------------------------------------------------


def png_of(width: int, height: int, pixels: bytes = b"", more: bytes = b"") -> bytes:
    """A PNG that says it has so many pixels, whatever it has."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (_chunk(b"IHDR", header), more, _chunk(b"IDAT", zlib.compress(pixels)), _chunk(b"IEND"))
    )


def _chunk(kind: bytes, content: bytes = b"") -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def tiff_of_one_tile(side: int) -> bytes:
    """10×10 pixels in the corner of a tile of any size, all of it black and packed."""
    packed = zlib.compress(bytes(side * side), 9)
    tags = {256: 10, 257: 10, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side}
    tags |= {324: 8 + 2 + 12 * 10 + 4, 325: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + packed


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG one pass of which is there again and again."""
    content = encoded(photograph(2), "jpeg", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n%%EOF\n"
"""Pillow hands it to Ghostscript, a program, where that is installed."""


def bombs() -> dict[str, tuple[bytes, str]]:
    """File name → its bytes, and what its reason is to say."""
    black = bytes(50 * (1 + 3 * 60))
    unpacked = zlib.compress(bytes(100 * 2**20), 9)
    return {
        "pixels_900M.png": (png_of(30_000, 30_000), "pixel"),
        "pixels_2e62.png": (png_of(2**31 - 1, 2**31 - 1), "pixel"),
        "pixels_144M.png": (png_of(12_000, 12_000), "pixel"),
        "no_pixels.png": (png_of(0, 0), "none of JPEG"),
        "text.png": (png_of(60, 50, black, _chunk(b"zTXt", b"x\0\0" + unpacked)), "too large"),
        "texts.png": (
            png_of(60, 50, black, _chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(10**6))) * 100),
            "memory",
        ),
        "tile.tif": (tiff_of_one_tile(20_000), "tiles of 20000×20000"),
        "scans.jpg": (jpeg_of_scans(2000), "more than 100 scans"),
        "program.png": (POSTSCRIPT, "none of JPEG"),
        "strip.png": (encoded(Image.new("RGB", (300_000, 1)), "png"), "after resizing"),
        "empty.jpg": (b"", "it is empty"),
    }


def large_images() -> dict[str, bytes]:
    """Within the bounds, and as large as they allow."""
    wide = Image.new("RGB", (30_000, 2_600), (9, 90, 200))
    return {
        "wide.png": encoded(wide, "png", compress_level=1),
        "wide.jpg": encoded(wide, "jpeg"),
        "wide.tif": encoded(wide, "tiff", compression="tiff_deflate"),
        "wide.bmp": encoded(wide, "bmp"),
        "square.webp": encoded(wide.resize((8_900, 8_900)), "webp", lossless=True, method=0),
        "flat.png": encoded(Image.new("RGB", (30_000, 1)), "png"),
        "pixel.png": encoded(Image.new("RGB", (1, 1)), "png"),
    }


# Containers ---------------------------------------------------------------------------------


def tar_of(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def tar_header(name: str, size_field: bytes, kind: bytes = b"0", link: str = "") -> bytes:
    """One header with any twelve bytes as its size, and the right checksum."""
    block = bytearray(tarfile.BLOCKSIZE)
    block[0 : len(name)] = name.encode()
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136], block[136:148] = size_field, b"00000000000\0"
    block[148:156], block[156:157] = b" " * 8, kind
    block[157 : 157 + len(link)] = link.encode()
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def laughs(levels: int, width: int = 10) -> str:
    """YAML that stands for ``width ** levels`` values, in as many lines as there are levels."""
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return "\n".join(lines) + f"\nlayers: *a{levels - 1}\n"


def safetensors_of(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    """A file of safetensors with any header, which says it is of any length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body
