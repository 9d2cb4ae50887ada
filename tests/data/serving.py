"""A web server on the loopback whose answers tests decide: pictures, errors, delays, ranges."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = bytes | int | Callable[[BaseHTTPRequestHandler], None]


class Site:
    """`pages[path]` is the body, a status code, or a function that answers itself. `asked` lists (method, path, range)."""

    def __init__(self, ranges: bool = True) -> None:
        self.pages: dict[str, Answer] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.ranges = ranges
        self.address = ""

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, body: bool) -> None:
            asked = self.headers.get("Range")
            site.asked.append((self.command, self.path.lstrip("/"), asked))
            page = site.pages.get(self.path.lstrip("/"), 404)
            if callable(page):
                page(self)
                return
            if isinstance(page, int):
                self.send_response(page)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if asked and site.ranges:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                part = page[int(first) : int(last or len(page) - 1) + 1]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(page)}")
            else:
                part = page
                self.send_response(200)
            if site.ranges:
                self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if body:
                self.wfile.write(part)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()


def slow(seconds: float, data: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer that drips: a byte now and then."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        try:
            for place in range(len(data)):
                handler.wfile.write(data[place : place + 1])
                handler.wfile.flush()
                time.sleep(seconds)
        except OSError:
            handler.close_connection = True

    return answer


def flaky(failures: int, data: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer that fails a few times with 503, then works."""
    left = [failures]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        left[0] -= 1
        good = left[0] < 0
        handler.send_response(200 if good else 503)
        handler.send_header("Content-Length", str(len(data) if good else 0))
        handler.end_headers()
        if good:
            handler.wfile.write(data)

    return answer
