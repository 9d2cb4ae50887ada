"""What the service answers: the shapes in its OpenAPI description."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field


class Label(BaseModel):
    """A zero-shot label; the probabilities of one picture sum to 1."""

    label: str
    probability: float


class Hit(BaseModel):
    """A picture of the index."""

    id: Annotated[int, Field(description="its number, never given to another picture")]
    key: Annotated[str, Field(description="its place below the indexed folder")]
    score: Annotated[float | None, Field(description="cosine to the query; null where nothing was asked")]
    width: int
    height: int
    format: str
    copies: Annotated[list[str], Field(description="further files of the same bytes")]
    thumbnail: str
    original: str
    labels: Annotated[list[Label] | None, Field(description="in the order in which the labels were given")] = None


class Results(BaseModel):
    """Best first."""

    results: list[Hit]
    pictures: Annotated[int, Field(description="in the whole index")]
    took_ms: Annotated[float, Field(description="milliseconds of model and ranking")]


class Labelled(BaseModel):
    """Most probable first."""

    labels: list[Label]


class Uploaded(BaseModel):
    """Give `upload` to a search. Only its embedding and a thumbnail are kept, for a while, in memory."""

    upload: str
    width: int
    height: int
    thumbnail: str


class Health(BaseModel):
    """`status` is ok as long as this is answered."""

    status: str
    pictures: int
    model: str
    ranking: Annotated[str, Field(description="exact (every picture is compared) or hnsw")]
    indexed: Annotated[str | None, Field(description="when indexing ended, UTC; null while it has not")]
    version: str


class Refused(BaseModel):
    """Every error."""

    detail: str
