"""What a caller may do: read, submit jobs, or everything."""

import enum


class Scope(enum.StrEnum):
    """Ordered: each may do what those before it may."""

    read = "read"
    submit = "submit"
    admin = "admin"

    # All four, because those of `str` would go by the alphabet, where `admin` comes first.
    def __lt__(self, other: str) -> bool:
        return self._rank < Scope(other)._rank

    def __le__(self, other: str) -> bool:
        return self._rank <= Scope(other)._rank

    def __gt__(self, other: str) -> bool:
        return self._rank > Scope(other)._rank

    def __ge__(self, other: str) -> bool:
        return self._rank >= Scope(other)._rank

    @property
    def _rank(self) -> int:
        return list(Scope).index(self)
