"""What keeps a service standing: limits, as ASGI layers around the application. Numbers in one place.

Each layer does one thing and answers in the service's own form, {"detail": "..."}.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

log = logging.getLogger("clipling.search")
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
HEALTH = "/api/health"


@dataclass(frozen=True)
class Limits:
    """Bytes, seconds, counts."""

    upload: int = 25 * 2**20  # bytes of a picture and the form around it
    body: int = 2**14  # bytes of any other body
    pixels: int = 50_000_000  # of an uploaded picture; decoding takes up to 12 bytes a pixel
    url: int = 16_384  # bytes of the query string
    text: int = 1_000  # characters
    labels: int = 50
    label: int = 200  # characters
    rated: int = 100  # results liked, or disliked
    results: int = 200
    at_once: int = 96  # requests
    bodies_at_once: int = 8  # uploads that are being received or decoded
    decoding_at_once: int = 2
    wait: float = 10.0  # s, for a free place among the uploads
    head: float = 10.0  # s, from the connection, or the answer before, to the end of a request's head
    body_time: float = 30.0  # s, to receive a body
    request: float = 60.0  # s, a request in all, with what is sent back
    uploads_kept: int = 256  # embeddings and thumbnails of uploaded pictures
    connections: int = 512


async def answer(send: Send, status: int, detail: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    body = json.dumps({"detail": detail}).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


class Layer:
    """Passes on what is not an HTTP request (the server's start and end)."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.handle(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, send)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class Headers(Layer):
    """Headers of every answer: nothing from elsewhere is loaded, nobody frames, embeds or guesses."""

    ADDED = (
        (
            b"content-security-policy",
            b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
            b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-opener-policy", b"same-origin"),
        (b"cross-origin-resource-policy", b"same-origin"),
        (b"x-frame-options", b"DENY"),
    )

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                added = [(name, value) for name, value in self.ADDED if name not in given]
                if b"cache-control" not in given:
                    added.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self.app(scope, receive, with_headers)


class LastResort(Layer):
    """The unexpected is logged here and answered without a word about it. Nothing that a client sends may get this far."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: dict[str, Any]) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            log.exception("unexpected, at %s %r", scope["method"], scope["path"][:200])
            if not begun:
                await answer(watched, 500, "something went wrong; it is in the log of the service")


class Admission(Layer):
    """So many requests at a time; the next are sent away, to come again."""

    def __init__(self, app: App, at_once: int) -> None:
        super().__init__(app)
        self.at_once, self.now = at_once, 0

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == HEALTH:
            await self.app(scope, receive, send)
            return
        if self.now >= self.at_once:
            await busy(send)
            return
        self.now += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.now -= 1


async def busy(send: Send) -> None:
    await answer(send, 503, "busy: come again in a second", [(b"retry-after", b"1"), (b"connection", b"close")])


class Deadline(Layer):
    """Ends a request after so many seconds, whoever is slow."""

    def __init__(self, app: App, seconds: float) -> None:
        super().__init__(app)
        self.seconds = seconds

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: dict[str, Any]) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            async with asyncio.timeout(self.seconds):
                await self.app(scope, receive, watched)
        except TimeoutError:
            if not begun:
                await answer(send, 503, f"not done in {self.seconds:g} s", [(b"retry-after", b"5"), (b"connection", b"close")])
            else:
                # The server closes the connection of an answer that is not whole.
                log.warning("an answer was not taken within %g s: dropped", self.seconds)
