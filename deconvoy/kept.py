"""Small arrays that were read are kept, within a limit: those asked for last."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

KEPT_BYTES = 64 * 2**20
"""Of one run.  The tables of a ResNet-50 take 14 MB."""


class KeptArrays:
    """Arrays by key, read only, for any number of threads.

    Args:
        most_bytes: what lies longest unasked for goes first.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self.bytes = most_bytes, 0
        self._arrays: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._moving = threading.Lock()

    def get(self, key: Hashable, read: Callable[[], np.ndarray]) -> np.ndarray:
        """The array kept, else the one read now.  Two threads may both read it."""
        with self._moving:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        array = np.array(read())  # of its own bytes: a view would keep what it looks at
        array.flags.writeable = False
        with self._moving:
            if key not in self._arrays and array.nbytes <= self._most:
                self._arrays[key] = array
                self.bytes += array.nbytes
                while self.bytes > self._most:
                    _, oldest = self._arrays.popitem(last=False)
                    self.bytes -= oldest.nbytes
        return array
