"""From the host's batch to the `Batch` that terms read: features, the false-negative mask, guides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from clipling.data.loader import HostBatch
from clipling.engine.runtime import Runtime
from clipling.objectives.infonce import MOST_LOGITS
from clipling.objectives.term import Batch, Neighbours, TeacherView, View


class Guide(Protocol):
    """What teaches beyond the pairs. Every process looks up the rows of the whole batch: a look-up is a pure function of (seed, epoch,
    pair), so nothing has to be gathered."""

    provides: frozenset[str]
    dims: Mapping[str, int]

    def lookup(self, pair_all: np.ndarray, epoch: int, caption_all: np.ndarray) -> dict[str, Neighbours]: ...


class LiveTeacher(Protocol):
    """A frozen model that sees the same crops and captions: unit features of the local rows, None for sides nobody needs."""

    name: str
    scale: float
    dims: Mapping[str, int]
    sees: int | None

    def image(self, host: HostBatch, device: torch.device) -> Tensor | None: ...

    def text(self, host: HostBatch, device: torch.device) -> Tensor | None: ...

    def more_texts(self, host: HostBatch, device: torch.device) -> dict[str, Tensor]:
        """Unit features of other captions of the same pictures, by view."""
        ...


def same_mask(links: Sequence[Sequence[int]], pair: np.ndarray, pair_all: np.ndarray, first: int) -> Tensor | None:
    """[n, N] bool: rows that share a caption, a picture or a group with another row of the batch; None when there are none.

    `links[p]` are the classes of pair p that hold more than one pair. A row is never "same" as itself. Above `MOST_LOGITS` cells the
    mask is a sparse tensor (COO): no N x N matrix is made.
    """
    classes: dict[int, list[int]] = {}
    for column, p in enumerate(pair_all.tolist()):
        for link in links[p]:
            classes.setdefault(link, []).append(column)
    shared = [columns for columns in classes.values() if len(columns) > 1]
    if not shared:
        return None
    n, total = len(pair), len(pair_all)
    found = np.unique(np.concatenate([_cells_of(np.array(columns), first, n, total) for columns in shared]))
    if n * total <= MOST_LOGITS:
        mask = torch.zeros(n * total, dtype=torch.bool)
        mask[torch.from_numpy(found)] = True
        return mask.view(n, total)
    places = torch.from_numpy(np.stack(np.divmod(found, total)))
    return torch.sparse_coo_tensor(places, torch.ones(len(found), dtype=torch.bool), (n, total), is_coalesced=True, check_invariants=True)


def _cells_of(columns: np.ndarray, first: int, n: int, total: int) -> np.ndarray:
    """The cells of rows first ... first + n - 1 where both row and column are among `columns`, less the diagonal: row * N + column."""
    rows = columns[(columns >= first) & (columns < first + n)]
    row, column = (side.reshape(-1) for side in np.meshgrid(rows, columns, indexing="ij"))
    keep = row != column
    return (row[keep] - first) * total + column[keep]


@dataclass
class BatchMaker:
    """Makes the `Batch` of a step from the local unit features."""

    links: Sequence[Sequence[int]] | None
    guides: Sequence[Guide]
    runtime: Runtime
    teachers: Sequence[LiveTeacher] = ()

    def __call__(self, host: HostBatch, features: Mapping[str, Tensor], scale: Tensor, bias: Tensor | None) -> Batch:
        """features: unit rows [n, d] by side, and by `side:view` for views other than "main"."""
        device, first = scale.device, self.runtime.rank * len(host.pair)
        mask = None if self.links is None else same_mask(self.links, host.pair, host.pair_all, first)
        neighbours: dict[str, Neighbours] = {}
        for guide in self.guides:
            neighbours |= {
                name: to_device(rows, device) for name, rows in guide.lookup(host.pair_all, host.epoch, host.caption_all).items()
            }
        return Batch(
            views=self._views(features),
            scale=scale,
            bias=bias,
            pair=torch.from_numpy(host.pair).to(device),
            pair_all=torch.from_numpy(host.pair_all).to(device),
            step=host.step,
            first=first,
            same=None if mask is None else mask.to(device),
            neighbours=neighbours,
            teachers={teacher.name: self._taught(teacher, host, device) for teacher in self.teachers},
        )

    def _views(self, features: Mapping[str, Tensor]) -> dict[str, View]:
        gathered = {name: self.runtime.gather(rows) for name, rows in features.items()}
        names = {"main": None} | {name.partition(":")[2]: None for name in features if ":" in name}
        views = {}
        for view in names:
            sides = {side: side if view == "main" or f"{side}:{view}" not in features else f"{side}:{view}" for side in ("image", "text")}
            local, all_rows = ({side: rows.get(name) for side, name in sides.items()} for rows in (features, gathered))
            views[view] = View(local["image"], local["text"], all_rows["image"], all_rows["text"])
        return views

    def _taught(self, teacher: LiveTeacher, host: HostBatch, device: torch.device) -> TeacherView:
        image, text = teacher.image(host, device), teacher.text(host, device)
        gathered = [None if rows is None else self.runtime.gather(rows) for rows in (image, text)]
        texts = {view: (rows, self.runtime.gather(rows)) for view, rows in teacher.more_texts(host, device).items()}
        return TeacherView(teacher.scale, image, text, *gathered, texts)


def to_device(rows: Neighbours, device: torch.device) -> Neighbours:
    return Neighbours(*(t.to(device, non_blocking=True) for t in (rows.ids, rows.others, rows.image, rows.text)))
