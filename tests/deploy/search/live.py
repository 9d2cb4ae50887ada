"""The service on a real socket of the loopback, in a thread of the test process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import uvicorn

from clipling.deploy.search.connections import patient_for
from clipling.deploy.search.limits import Limits
from clipling.deploy.search.search import Search
from clipling.deploy.search.service import make_app


@contextmanager
def served(search: Search, limits: Limits | None = None, threads: int = 2) -> Iterator[int]:
    """The port."""
    limits = limits or Limits()
    with closing(socket.create_server(("127.0.0.1", 0), backlog=256)) as listening:
        config = uvicorn.Config(
            make_app(search, limits, threads), http=patient_for(limits.head), ws="none", log_level="warning", access_log=False,
            timeout_keep_alive=5, limit_concurrency=limits.connections, timeout_graceful_shutdown=1, h11_max_incomplete_event_size=2**15,
        )  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(10)


def exchange(port: int, data: bytes, timeout: float = 60.0, patience: float | None = None) -> bytes:
    """Sends bytes and reads until the other side closes; b"" where it resets or says nothing in time.

    patience: seconds after which the sending side is closed, which a request that is not whole needs. Not at once: uvicorn takes
    a closed sending side for a client that has gone, and then no answer is seen.
    """
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        with suppress(OSError):  # refused before its end: there may be an answer
            connection.sendall(data)
        for wait, close in ((patience or timeout, patience is not None), (timeout, False)):
            connection.settimeout(wait)
            try:
                while part := connection.recv(65536):
                    received += part
                break
            except TimeoutError:
                if not close:
                    break
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
            except OSError:
                break
    return received


def status_of(answer: bytes) -> int | None:
    head = answer.split(b"\r\n", 1)[0].split(b" ")
    return int(head[1]) if len(head) > 1 and head[0].startswith(b"HTTP/") and head[1].isdigit() else None


def get(port: int, path: str, **headers: str) -> Any:
    """(status, headers, body) of a GET on a connection of its own."""
    import http.client

    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
