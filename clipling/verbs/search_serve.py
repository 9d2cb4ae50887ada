"""`clipling search serve IDX`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tyro.conf import Positional


def search_serve(
    index: Positional[Path],
    /,
    host: str = "127.0.0.1",
    port: int = 8000,
    threads: int | None = None,
    name: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Serves an index: a page to search by text and by picture, and its API. Stops with Ctrl-C. Without torch.

    Args:
        index: A folder that `clipling search index` made.
        host: The address to listen at. Any but the machine's own loopback shows the pictures to others: there are no users.
        port: 0 takes any that is free.
        threads: Searches at a time (default: all cores).
        name: Host names by which it may be called too, such as that of a proxy in front of it.
    """
    from clipling.deploy.search.search import Search
    from clipling.deploy.search.serving import serve

    # Many searches at a time, each on one thread, do more than one on all of them.
    return serve(Search(index, threads=1), host, port, threads, name)
