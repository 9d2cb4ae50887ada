"""The web service of an index: an API under /api, and one page that uses it. See docs/search.md."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as AnyHTTPException

from clipling import __version__
from clipling.data.images import ImageError
from clipling.deploy.search.answers import Refused
from clipling.deploy.search.asking import Answers
from clipling.deploy.search.bodies import Bodies
from clipling.deploy.search.hosts import Form, Hosts
from clipling.deploy.search.limits import Admission, App, Deadline, Headers, LastResort, Limits
from clipling.deploy.search.routes import Workers, add_routes
from clipling.deploy.search.search import NotThere, Search
from clipling.errors import UserError

log = logging.getLogger("clipling.search")
PAGE = Path(__file__).parent / "page"
_PAGE_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_LOOK_AGAIN = 5.0  # s, for what was indexed since


def make_app(search: Search, limits: Limits | None = None, threads: int | None = None, hosts: Hosts | None = None) -> App:
    """The ASGI application of an index in all its layers, for any ASGI server.

    threads: searches at a time (default: the machine's cores). hosts: names by which it may be called (default: this machine's loopback).
    """
    limits = limits or Limits()
    workers = Workers(limits, threads or os.cpu_count() or 1)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        looking = asyncio.create_task(_keep_fresh(search, workers))
        yield
        looking.cancel()
        workers.close()

    app = FastAPI(
        title="clipling search",
        version=__version__,
        description="Search of pictures by text, by picture and by what was liked.",
        openapi_url="/api/openapi.json",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=life,
        responses={status: {"model": Refused} for status in (400, 404, 413, 422, 503)},
    )
    _add_errors(app)
    _add_pages(app)
    add_routes(app, Answers(search, limits), workers, limits)
    return _guarded(app, limits, hosts or Hosts("127.0.0.1"))


async def _keep_fresh(search: Search, workers: Workers) -> None:
    while True:
        await asyncio.sleep(_LOOK_AGAIN)
        try:
            if await workers.run(workers.files, search.refresh):
                log.info("the index has changed: %d pictures", len(search))
        except Exception:
            log.exception("what was indexed since could not be read; the service goes on with what it has")


def _guarded(app: App, limits: Limits, hosts: Hosts) -> App:
    """The application in all of its layers."""
    app = Bodies(app, limits)
    app = Deadline(app, limits.request)
    app = Admission(app, limits.at_once)
    app = Form(app, limits.url, hosts)
    return Headers(LastResort(app))


def _add_pages(app: FastAPI) -> None:
    for file in sorted(PAGE.iterdir()):
        if file.suffix not in _PAGE_TYPES:
            continue
        address = "/" if file.name == "index.html" else f"/page/{file.name}"
        content, kind = file.read_bytes(), _PAGE_TYPES[file.suffix]
        tag = f'"{blake2b(content, digest_size=8).hexdigest()}"'

        async def page(request: Request, content: bytes = content, kind: str = kind, tag: str = tag) -> Response:
            headers = {"cache-control": "no-cache", "etag": tag}
            if tag in request.headers.get("if-none-match", ""):
                return Response(status_code=304, headers=headers)
            return Response(content, media_type=kind, headers=headers)

        app.add_route(address, page, methods=["GET", "HEAD"], include_in_schema=False)


def _add_errors(app: FastAPI) -> None:
    """Every error is {"detail": one sentence}."""

    def said(status: int, detail: str) -> JSONResponse:
        # What was sent may hold parts of characters, which no answer can carry.
        return JSONResponse({"detail": detail.encode("utf-8", "replace").decode()}, status)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        found = [(".".join(str(part) for part in e["loc"][1:])[:100], str(e["msg"])[:300]) for e in error.errors()[:5]]
        return said(422, "; ".join(f"{where}: {what}" if where else what for where, what in found))

    @app.exception_handler(AnyHTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return said(error.status_code, re.sub(r"\s+", " ", str(error.detail))[:300])

    @app.exception_handler(NotThere)
    async def not_there(request: Request, error: NotThere) -> JSONResponse:
        return said(404, str(error))

    @app.exception_handler(UserError)
    async def mistaken(request: Request, error: UserError) -> JSONResponse:
        return said(422, str(error))

    @app.exception_handler(ImageError)
    async def no_picture(request: Request, error: ImageError) -> JSONResponse:
        return said(422, f"this cannot be searched by: {error}"[:300])
