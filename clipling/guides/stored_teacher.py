"""A teacher that was asked before: its part of the stored embeddings of a batch, in the place of a live one."""

from __future__ import annotations

import torch
from torch import Tensor

from clipling.data.knowledge import Knowledge
from clipling.data.loader import HostBatch
from clipling.errors import UserError


class StoredTeacher:
    """The columns of one teacher in `HostBatch.stored`. Nothing is computed, so training pays no teacher."""

    sees = None  # it has seen its crops

    def __init__(self, name: str, first: int, dim: int, scale: float) -> None:
        self.name, self.scale = name, scale
        self.columns = slice(first, first + dim)
        self.dims = {f"teacher.{name}": dim}

    def image(self, host: HostBatch, device: torch.device) -> Tensor | None:
        return self._part(host, "image", device)

    def text(self, host: HostBatch, device: torch.device) -> Tensor | None:
        return self._part(host, "text", device)

    def more_texts(self, host: HostBatch, device: torch.device) -> dict[str, Tensor]:
        views = [name.removeprefix("text:") for name in host.stored if name.startswith("text:")]
        return {view: self._part(host, f"text:{view}", device) for view in views}  # type: ignore[misc]

    def _part(self, host: HostBatch, name: str, device: torch.device) -> Tensor | None:
        return host.stored[name][:, self.columns].to(device, non_blocking=True) if name in host.stored else None


def stored_teachers(knowledge: Knowledge) -> list[StoredTeacher]:
    """Every teacher of the knowledge, at the scale that it had learned (100 where that is not said, as MobileCLIP's).

    Raises UserError for names that cannot be a recipe's.
    """
    made, first = [], 0
    for teacher in knowledge.teachers:
        if not teacher.name.isidentifier():
            raise UserError(f"a stored teacher is called {teacher.name!r}: expected a name made of letters, digits and _")
        made.append(StoredTeacher(teacher.name, first, teacher.dim, 100.0 if teacher.scale is None else teacher.scale))
        first += teacher.dim
    return made
