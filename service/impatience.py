"""How the service listens: a connection must say what it asks for in time, and in few words.

uvicorn has a limit for how long a connection may be silent between two requests, and none before
the first or within one; so strangers could hold as many as there are file descriptors.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0
"""From the first byte of a request, or the connection, to the end of its headers."""


class Impatient(H11Protocol):
    """Ends connections that are slow to ask.

    Always with h11, whatever else is installed: it bounds what comes before a body (64 KiB), which
    httptools does not.
    """

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        asking = self.conn.their_state is h11.IDLE
        if asking and self._patience is None:
            self._wait()
        elif not asking:
            self._settle()

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._patience = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _settle(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
