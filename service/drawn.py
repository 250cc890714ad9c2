"""Pictures that were drawn are kept, within a limit: drawing one takes ten times as long as sending
it, and people who look at a run look at the same units."""

import threading
from collections import OrderedDict

KEPT_BYTES = 32 * 2**20
"""Some 2,500 tiles."""


class DrawnPictures:
    """Files by their entity tag, which tells all that a picture follows from.

    Args:
        most_bytes: those asked for longest ago go first.
    """

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self._most, self.bytes = most_bytes, 0
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, tag: str) -> bytes | None:
        with self._lock:
            if tag in self._files:
                self._files.move_to_end(tag)
            return self._files.get(tag)

    def put(self, tag: str, content: bytes) -> None:
        with self._lock:
            if tag in self._files:
                return
            self._files[tag] = content
            self.bytes += len(content)
            while self.bytes > self._most:
                _, oldest = self._files.popitem(last=False)
                self.bytes -= len(oldest)
