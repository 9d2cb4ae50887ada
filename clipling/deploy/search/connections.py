"""Connections of slow clients: closed when the head of a request, or the end of an answer, takes too long.

uvicorn counts the seconds between requests only: a client that sends a head byte by byte would be waited for without end.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def patient_for(seconds: float) -> type[H11Protocol]:
    """The protocol of uvicorn that waits so long for a client that owes something while no request is worked on."""

    class Patient(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._idle_since = self.loop.time()
            self._watch: asyncio.TimerHandle | None = self.loop.call_later(1.0, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None
            super().connection_lost(exc)

        def _look(self) -> None:
            # Also where a closing connection is not read to its end: its buffer would stay.
            at_work = self.cycle is not None and not self.cycle.response_complete and not self.transport.is_closing()
            if at_work:
                self._idle_since = self.loop.time()
            elif self.loop.time() - self._idle_since > seconds:
                self.transport.abort()
                return
            self._watch = self.loop.call_later(1.0, self._look)

    return Patient
