"""Set text into pictures: measured, wrapped, shortened, and spelled in what the font can draw.

The font is the one inside Pillow, so a picture is the same on every machine.  It has no Greek,
no accents and few signs: `printable` spells those out.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from PIL import ImageDraw, ImageFont

# What the text of our pictures may contain and Pillow's own font may lack.
ASCII = {"σ": "sigma", "≤": "<=", "≥": ">=", "×": "x", "–": "-", "—": "-", "…": "...", "·": "|"}


@dataclass(frozen=True)
class Line:
    """One line of text at a size in pixels."""

    text: str
    size: int
    colour: tuple[int, int, int]

    @property
    def width(self) -> int:
        return text_width(self.text, self.size)

    @property
    def height(self) -> int:
        return round(1.45 * self.size)


def text_height(lines: Sequence[Line]) -> int:
    return sum(line.height for line in lines)


def draw_lines(draw: ImageDraw.ImageDraw, lines: Sequence[Line], x: int, y: int) -> None:
    for line in lines:
        middle = y + line.height / 2
        draw.text((x, middle), line.text, line.colour, font(line.size), anchor="lm")
        y += line.height


def clipped(text: str, size: int, width: int, keep_end: bool = False) -> str:
    """The text, shortened with dots until it is no wider; "" where not even two letters fit."""
    if text_width(text, size) <= width:
        return text
    for length in range(len(text) - 1, 1, -1):
        short = "..." + text[-length:] if keep_end else text[:length].rstrip() + "..."
        if text_width(short, size) <= width:
            return short
    return ""


def wrapped(text: str, size: int, colour: tuple[int, int, int], width: int) -> tuple[Line, ...]:
    """As many lines as the width in pixels asks for, broken between words."""
    lines: list[str] = []
    for word in printable(text).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return tuple(Line(line, size, colour) for line in lines)


def text_width(text: str, size: int) -> int:
    """In pixels, rounded up."""
    return math.ceil(font(size).getlength(text))


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    return bytes(font(16).getmask(character)) != bytes(font(16).getmask("\uffff"))


def printable(text: str) -> str:
    """The text in the font's own characters, so that nobody reads a row of empty boxes."""

    def spelled(character: str) -> str:
        if character.isspace() or _has_glyph(character):
            return character
        plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
        return ASCII.get(character) or plain or "?"

    return "".join(spelled(character) for character in unicodedata.normalize("NFC", text))
