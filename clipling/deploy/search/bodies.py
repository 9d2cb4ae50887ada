"""Bodies of requests, bounded, before anything looks at them."""

from __future__ import annotations

import asyncio
from typing import Any

from clipling.deploy.search.limits import App, Layer, Limits, Receive, Scope, Send, answer, busy

UPLOADS = "/api/uploads"


class Bodies(Layer):
    """Receives a body before anything looks at it: bounded in bytes, also without a length, in time, and in number."""

    def __init__(self, app: App, limits: Limits) -> None:
        super().__init__(app)
        self.limits, self.places = limits, asyncio.Semaphore(limits.bodies_at_once)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        upload = scope["path"] == UPLOADS and scope["method"] == "POST"
        if not upload:
            await self._pass_on(scope, receive, send, self.limits.body)
            return
        try:
            await asyncio.wait_for(self.places.acquire(), self.limits.wait)
        except TimeoutError:
            await busy(send)
            return
        try:
            await self._pass_on(scope, receive, send, self.limits.upload)
        finally:
            self.places.release()

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, most: int) -> None:
        closing = [(b"connection", b"close")]
        try:
            body = await asyncio.wait_for(_received(scope, receive, most), self.limits.body_time)
        except TimeoutError:
            await answer(send, 408, f"the body took more than {self.limits.body_time:g} s", closing)
            return
        except TooLong:
            await answer(send, 413, f"the body is longer than {most:,} bytes", closing)
            return
        if body is None:
            return  # the client has gone
        given = False

        async def replay() -> dict[str, Any]:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)


class TooLong(Exception):
    """A body of more bytes than allowed."""


async def _received(scope: Scope, receive: Receive, most: int) -> bytes | None:
    stated = dict(scope["headers"]).get(b"content-length", b"0")
    if stated.isdigit() and int(stated[:20]) > most:
        raise TooLong
    parts, length = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        length += len(part)
        if length > most:
            raise TooLong
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)
