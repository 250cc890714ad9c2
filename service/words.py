"""Words that people give to jobs, runs and tokens: what every database takes, and no more of it."""

import unicodedata
from collections.abc import Sequence

from deconvoy.errors import FieldInvalid

LINE_LENGTH = 200
TAG_LENGTH = 64
MOST_TAGS = 32


def storable(text: str) -> bool:
    """No control characters (PostgreSQL refuses NUL), no ends of lines, no half of a surrogate
    pair, not too long."""
    return len(text) <= 4 * LINE_LENGTH and all(map(_legible, text))


def legible(text: str) -> str:
    """A message of whatever origin, so that it can be stored; lines and tabs stay."""
    return "".join(c if c in "\n\t" or _legible(c) else "\N{REPLACEMENT CHARACTER}" for c in text)


def checked_line(field: str, text: str, most: int = LINE_LENGTH) -> str:
    """What a person typed, without space around it."""
    text = text.strip()
    if len(text) > most or not storable(text):
        shown = text if len(text) <= 80 else f"{text[:79]}…"
        raise FieldInvalid(
            f"The field {field!r} is {shown!r}, but it takes at most {most} characters and "
            f"none that control a terminal: write it shorter, on one line.",
            field,
        )
    return text


def checked_tags(tags: Sequence[str]) -> list[str]:
    """In their order, each once."""
    checked = list(dict.fromkeys(checked_line("tags", tag, TAG_LENGTH) for tag in tags))
    if len(checked) > MOST_TAGS or "" in checked:
        raise FieldInvalid(
            f"The field 'tags' has {len(checked)} tags, but it takes at most {MOST_TAGS}, none "
            f"of them empty: leave some out.",
            "tags",
        )
    return checked


def _legible(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
