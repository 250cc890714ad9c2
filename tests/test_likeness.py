"""Names that are like one that is not."""

import pytest

from deconvoy.likeness import alike, nearest


@pytest.mark.parametrize(
    ("name", "known", "told"),
    [
        ("relu", ["relu2", "square", "relu5", "relu7", "relu9"], "nearest: relu2, relu5, relu7"),
        ("relu55", ["relu2", "relu5", "relu7"], "nearest: relu5, relu2, relu7"),
        ("boot", ["face", "boat"], "nearest: boat"),
        ("zzz", ["a", "b"], "there are: a, b"),
        ("zzz", list("abcdefghij"), "there are: a, b, c, d, e, f, g, h, …"),
        ("zzz", [], "there is none"),
        ("", ["a"], "there are: a"),
    ],
)
def test_the_likest_come_first(name: str, known: list[str], told: str) -> None:
    assert nearest(name, known) == told


def test_names_that_are_not_alike_are_not_called_so() -> None:
    assert alike("stat", ["state", "limit", "before"]) == ["state"]
