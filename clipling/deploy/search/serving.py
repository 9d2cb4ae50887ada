"""Runs the service with uvicorn, until it is stopped."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Sequence
from typing import Any

from clipling.deploy.search.hosts import Hosts, is_loopback
from clipling.deploy.search.limits import Limits
from clipling.errors import UserError


def serve(search: Any, host: str = "127.0.0.1", port: int = 8000, threads: int | None = None, names: Sequence[str] = ()) -> None:
    """Serves an open `Search` at host and port until Ctrl-C. port: 0 for any free one, which is printed.

    Raises UserError when the address cannot be listened on.
    """
    import uvicorn

    from clipling.deploy.search.connections import patient_for
    from clipling.deploy.search.service import make_app

    limits = Limits()
    app = make_app(search, limits, threads, Hosts(host, names))
    listening = listen(host, port)
    announce(search, host, listening.getsockname()[1])
    config = uvicorn.Config(
        app, http=patient_for(limits.head), ws="none", lifespan="on", log_level="warning", access_log=False, server_header=False,
        proxy_headers=False, limit_concurrency=limits.connections, timeout_keep_alive=5, timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=2**15,
    )  # fmt: skip
    with contextlib.closing(listening):
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise UserError(f"--port {port} is not between 0 and 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        advice = "Choose another with --port (0: any that is free)." if error.errno else "Give an address of this machine with --host."
        raise UserError(f"cannot listen at {host}, port {port}: {error.strerror or error}. {advice}") from error


def announce(search: Any, host: str, port: int) -> None:
    shown = f"[{host}]" if ":" in host else host
    print(f"{len(search):,} pictures at http://{shown}:{port} (Ctrl-C stops)", file=sys.stderr, flush=True)
    if search.finished is None:
        print("indexing is not finished: run clipling search index again to go on", file=sys.stderr, flush=True)
    if not is_loopback(host):
        print(
            f"warning: everybody who reaches {host} can see these pictures: there are no users and no encryption. "
            "Put a proxy with both in front of it.",
            file=sys.stderr,
            flush=True,
        )
