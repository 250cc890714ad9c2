"""What was read or made is kept, within a limit: that asked for last."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import numpy as np

KEPT_BYTES = 64 * 2**20
"""Of one run's small arrays.  The tables of a ResNet-50 take 14 MB."""

T = TypeVar("T")


class Kept(Generic[T]):
    """Values by key, for any number of threads.

    Args:
        most_bytes: what lies longest unasked for goes first.
        size: of a value, in bytes.
    """

    def __init__(self, most_bytes: int, size: Callable[[T], int]) -> None:
        self._most, self._size, self.bytes = most_bytes, size, 0
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._moving = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value kept, else the one made now.  Two threads may both make it."""
        with self._moving:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        size = self._size(value)
        with self._moving:
            if key not in self._values and size <= self._most:
                self._values[key] = value
                self.bytes += size
                while self.bytes > self._most:
                    _, oldest = self._values.popitem(last=False)
                    self.bytes -= self._size(oldest)
        return value


class KeptArrays(Kept[np.ndarray]):
    """Arrays, read only."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(most_bytes, lambda array: array.nbytes)

    def get(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        def own() -> np.ndarray:
            array = np.array(make())  # of its own bytes: a view would keep what it looks at
            array.flags.writeable = False
            return array

        return super().get(key, own)
