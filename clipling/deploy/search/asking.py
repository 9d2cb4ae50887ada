"""What the routes of the service do, in threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b

import numpy as np

from clipling.deploy.search import sources
from clipling.deploy.search.answers import Hit, Label, Labelled, Results, Uploaded
from clipling.deploy.search.catalogue import Shown
from clipling.deploy.search.limits import Limits
from clipling.deploy.search.search import NotThere, Search
from clipling.deploy.search.uploads import Uploads
from clipling.errors import UserError


class Answers:
    """What the routes do, in threads: one method each."""

    def __init__(self, search: Search, limits: Limits) -> None:
        self.search, self.limits = search, limits
        self.uploads = Uploads(search, limits.uploads_kept, limits.pixels)

    def find(self, text: str, upload: str, similar: int | None, like: list[int], unlike: list[int], labels: list[str], k: int) -> Results:
        begun = time.perf_counter()
        search, asked = self.search, []
        if text.strip():
            asked.append(search.text(text.strip()))
        if upload:
            asked.append(self.uploads.get(upload).embedding)
        if similar is not None:
            asked.append(search.embedding(similar))
        without = [*unlike, *([similar] if similar is not None else [])]
        numbers, scores = search.nearest(search.vector(asked, like, unlike), k, without)
        return self._results(numbers, scores.tolist(), labels, begun)

    def sample(self, k: int, labels: list[str]) -> Results:
        """Pictures spread evenly over the index: something to begin with."""
        begun = time.perf_counter()
        ids = self.search.ranking.ids
        places = np.unique(np.linspace(0, len(ids) - 1, min(k, len(ids))).round().astype(int))
        return self._results(ids[places], [None] * len(places), labels, begun)

    def _results(self, numbers: np.ndarray, scores: Sequence[float | None], labels: list[str], begun: float) -> Results:
        score = dict(zip(numbers.tolist(), scores, strict=True))
        shown = self.search.shown(numbers)
        hits = [self._hit(picture, score[picture.id]) for picture in shown]
        rows = [self.search.ranking.embedding(hit.id) for hit in hits] if labels else []
        if rows and all(row is not None for row in rows):  # one may have gone from the index this instant
            for hit, row in zip(hits, self.search.probabilities(np.stack(rows), labels), strict=True):
                hit.labels = [Label(label=label, probability=round(float(p), 6)) for label, p in zip(labels, row, strict=True)]
        took = round(1000 * (time.perf_counter() - begun), 2)
        return Results(results=hits, pictures=len(self.search), took_ms=took)

    def _hit(self, picture: Shown, score: float | None) -> Hit:
        first, *copies = picture.files
        place, tag = f"/api/pictures/{picture.id}", picture.hash[:8]
        return Hit(
            id=picture.id, key=first.key, score=score, width=picture.width, height=picture.height, format=picture.format,
            copies=[file.key for file in copies[:20]], thumbnail=f"{place}/thumbnail?v={tag}", original=f"{place}/original?v={tag}",
        )  # fmt: skip

    def picture(self, number: int) -> Hit:
        return self._hit(self._shown(number), None)

    def _shown(self, number: int) -> Shown:
        found = self.search.shown([number])
        if not found:
            raise NotThere(f"the index has no picture {number}")
        return found[0]

    def original(self, number: int) -> tuple[bytes, Shown]:
        """The bytes, as they were indexed: anything else that lies there by now is not given out."""
        picture = self._shown(number)
        for file in picture.files:
            with suppress(OSError):
                data = sources.read(self.search.root, file)
                if blake2b(data, digest_size=16).hexdigest() == picture.hash:
                    return data, picture
        raise NotThere(f"{picture.files[0].key} has changed, or gone, since it was indexed")

    def labels(self, labels: list[str], picture: int | None, upload: str) -> Labelled:
        if (picture is None) == (not upload):
            raise UserError("give a picture or an upload")
        row = self.search.embedding(picture) if picture is not None else self.uploads.get(upload).embedding
        shares = self.search.probabilities(row[None], labels)[0]
        ordered = np.argsort(-shares, kind="stable")
        return Labelled(labels=[Label(label=labels[i], probability=round(float(shares[i]), 6)) for i in ordered])

    def upload(self, data: bytes) -> Uploaded:
        made = self.uploads.add(data)
        return Uploaded(upload=made.name, width=made.width, height=made.height, thumbnail=f"/api/uploads/{made.name}/thumbnail")
