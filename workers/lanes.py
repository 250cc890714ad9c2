"""What a worker's lanes do for an engine: some work on several things at once."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

Lanes = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""Does work on each of some things, several at a time; results come in their order."""
