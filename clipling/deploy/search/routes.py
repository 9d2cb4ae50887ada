"""The routes under /api."""

# No `from __future__ import annotations`: FastAPI reads the routes' annotations, which depend on the limits.

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from fastapi import FastAPI, File, Query, UploadFile
from fastapi import Path as InPath
from fastapi.responses import Response, StreamingResponse

from clipling import __version__
from clipling.deploy.search.answers import Health, Hit, Labelled, Results, Uploaded
from clipling.deploy.search.asking import Answers
from clipling.deploy.search.limits import Limits
from clipling.errors import UserError

_TYPES = {
    "JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp",
    "TIFF": "image/tiff", "AVIF": "image/avif",
}  # fmt: skip
_KEPT = {"cache-control": "private, max-age=86400, immutable"}
_CHUNK = 2**16
Number = Annotated[int, InPath(ge=1, lt=2**62)]
T = TypeVar("T")


class Workers:
    """Threads beside the event loop: work that was not begun is dropped when its request ends."""

    def __init__(self, limits: Limits, threads: int) -> None:
        self.model = ThreadPoolExecutor(threads, "model")
        self.decoding = ThreadPoolExecutor(min(threads, limits.decoding_at_once), "decoding")
        self.files = ThreadPoolExecutor(4, "files")

    async def run(self, pool: ThreadPoolExecutor, work: Callable[..., T], *given: Any) -> T:
        return await asyncio.wrap_future(pool.submit(work, *given))

    def close(self) -> None:
        for pool in (self.model, self.decoding, self.files):
            pool.shutdown(wait=False, cancel_futures=True)


def add_routes(app: FastAPI, answers: Answers, workers: Workers, limits: Limits) -> None:
    search = answers.search
    text = Annotated[str, Query(max_length=limits.text, description="what the picture shows")]
    upload = Annotated[str, Query(max_length=64, description="the name of an upload, to search by its picture")]
    similar = Annotated[int | None, Query(ge=1, lt=2**62, description="the number of a picture, to find similar ones")]
    rated = Annotated[list[Annotated[int, Query(ge=1, lt=2**62)]], Query(max_length=limits.rated)]
    label = Annotated[list[str], Query(max_length=limits.labels, description="zero-shot labels, at least two")]
    count = Annotated[int, Query(ge=1, le=limits.results)]

    @app.get("/api/health")
    async def health() -> Health:
        indexed = await workers.run(workers.files, lambda: search.finished)
        ranking = "exact" if search.ranking.exact else "hnsw"
        return Health(status="ok", pictures=len(search), model=search.model_name, ranking=ranking, indexed=indexed, version=__version__)

    @app.get("/api/search")
    async def find(
        text: text = "",
        upload: upload = "",
        similar: similar = None,
        like: rated = [],  # noqa: B006
        unlike: rated = [],  # noqa: B006
        label: label = [],  # noqa: B006
        k: count = 40,
    ) -> Results:
        """The nearest pictures to the mean of what is given (a text, an upload, a picture), refined by what is liked and unlike
        (Rocchio: 1.0 mean of asked + 0.75 mean of liked - 0.15 mean of unlike). `similar` and `unlike` are left out of the results."""
        return await workers.run(workers.model, answers.find, text, upload, similar, like, unlike, _labels(label, limits), k)

    @app.get("/api/sample")
    async def sample(label: label = [], k: count = 40) -> Results:  # noqa: B006
        """Pictures spread evenly over the index."""
        return await workers.run(workers.model, answers.sample, k, _labels(label, limits))

    @app.get("/api/labels")
    async def labels(label: label, picture: similar = None, upload: upload = "") -> Labelled:
        """Zero-shot probabilities of one picture or upload."""
        return await workers.run(workers.model, answers.labels, _labels(label, limits), picture, upload)

    @app.post("/api/uploads", status_code=201)
    async def add_upload(file: Annotated[UploadFile, File(description="a picture")]) -> Uploaded:
        """A picture to search by. Kept are its embedding and a thumbnail, in memory, until newer ones take their place."""
        return await workers.run(workers.decoding, answers.upload, await file.read())

    @app.get("/api/uploads/{name}/thumbnail", response_class=Response)
    async def upload_thumbnail(name: Annotated[str, InPath(max_length=64)]) -> Response:
        return Response(answers.uploads.get(name).webp, media_type="image/webp")

    @app.get("/api/pictures/{number}")
    async def picture(number: Number) -> Hit:
        return await workers.run(workers.files, answers.picture, number)

    @app.get("/api/pictures/{number}/thumbnail", response_class=Response)
    async def picture_thumbnail(number: Number) -> Response:
        return Response(await workers.run(workers.files, search.thumbnail, number), media_type="image/webp", headers=_KEPT)

    @app.get("/api/pictures/{number}/original", response_class=Response)
    async def original(number: Number) -> Response:
        """The file itself, as it was indexed."""
        data, shown = await workers.run(workers.files, answers.original, number)
        name = quote(shown.files[0].key.rpartition("/")[2], safe="")
        headers = {
            **_KEPT,
            "content-disposition": f"inline; filename*=UTF-8''{name}",
            "content-security-policy": "default-src 'none'; sandbox",
            "content-length": str(len(data)),
        }
        return StreamingResponse(_parts(data), media_type=_TYPES.get(shown.format, "application/octet-stream"), headers=headers)


async def _parts(data: bytes) -> AsyncIterator[bytes]:
    """In parts, so that a slow client fills no buffer."""
    for start in range(0, len(data), _CHUNK):
        yield data[start : start + _CHUNK]


def _labels(given: list[str], limits: Limits) -> list[str]:
    """Without blanks and repeats. Raises UserError for one label, from which nothing can be told apart, and for long ones."""
    labels = list(dict.fromkeys(label.strip() for label in given if label.strip()))
    if given and len(labels) < 2:
        raise UserError("give at least two different labels")
    if any(len(label) > limits.label for label in labels):
        raise UserError(f"a label has at most {limits.label} characters")
    return labels
