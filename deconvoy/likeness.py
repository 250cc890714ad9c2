"""Which known names are most like one that is not: for the end of a sentence."""

from collections.abc import Sequence

SHOWN = 3
FEW = 8
ALIKE = 0.5
"""Of a text's characters that a name shares at least; below, ``relu`` would be like ``square``."""


def nearest(name: str, known: Sequence[str]) -> str:
    """As in ``nearest: relu5, relu7``; where none is like it, some that there are."""
    near = alike(name, known)[:SHOWN]
    if near:
        return f"nearest: {', '.join(near)}"
    shown = ", ".join(known[:FEW])
    return f"there are: {shown}{', …' if len(known) > FEW else ''}" if known else "there is none"


def alike(name: str, known: Sequence[str]) -> list[str]:
    """The likest first; of equals in the order in which they are known."""
    from difflib import SequenceMatcher, get_close_matches

    # Of equals difflib prefers the last by name, and would leave out the first ones.
    close = set(get_close_matches(name, known, n=max(1, len(known)), cutoff=ALIKE))
    matcher = SequenceMatcher()
    matcher.set_seq2(name)

    def unlike(one: str) -> float:
        matcher.set_seq1(one)
        return -matcher.ratio()

    return sorted((one for one in known if one in close), key=unlike)
