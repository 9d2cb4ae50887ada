"""A made-up batch with everything a term may ask for, whole or split over processes, to try a term on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from clipling.objectives.term import Batch, Neighbours, TeacherView, View

NEIGHBOURS_EACH = 3
SPACES = ("image", "text", "self")
SIDES = ("image", "text")
TEACHER_SCALE = 20.0
KNOWN = f"student.image, student.text, student.masks, neighbours.{'|'.join(SPACES)}, teacher.image, teacher.text"


def sample(needs: Iterable[str], dims: Mapping[str, int], rows: int, seed: int) -> dict[str, Tensor]:
    """Named tensors of one global batch, of what `needs` names and no more.

    It holds what real batches hold: two pairs that are not negatives of each other, pairs with the same neighbour,
    neighbours that are in the batch themselves, (unevenly spread) rows without any, and features of every teacher that `dims`
    names (`teacher.<name>`). Raises ValueError for a need that cannot be made up.
    """
    rng = torch.Generator().manual_seed(seed)

    def unit(size: int) -> Tensor:
        return F.normalize(torch.randn(rows, size, generator=rng), dim=1)

    pair = torch.randperm(4 * rows, generator=rng)[:rows]
    same = torch.zeros(rows, rows, dtype=torch.bool)
    same[0, rows // 2] = same[rows // 2, 0] = True
    tensors = {"pair": pair, "same": same, "scale": torch.tensor(10.0), "bias": torch.tensor(-5.0)}
    for need in sorted(needs):
        kind, _, rest = need.partition(".")
        side, _, view = rest.partition(":")
        if kind == "student" and side in SIDES:
            tensors[f"view.{view or 'main'}.{side}"] = unit(dims["student"])
        elif kind == "neighbours" and rest in SPACES:
            ids, others = _neighbours(pair, rest, rng)
            tensors |= {f"neighbours.{rest}.ids": ids, f"neighbours.{rest}.others": others}
            tensors |= {f"neighbours.{rest}.{bank}": unit(dims[bank]) for bank in SIDES}
        elif kind == "teacher" and (rest in SIDES or side == "text"):
            for name in _teachers(dims):
                tensors |= {f"{name}.scale": torch.tensor(TEACHER_SCALE), f"{name}.{rest}": unit(dims[name])}
        elif need != "student.masks":  # masks are asked of the term; a batch holds nothing for them
            raise ValueError(f"needs {need!r}: known are {KNOWN}")
    return tensors


def _teachers(names: Iterable[str]) -> list[str]:
    """`teacher.<name>` for every teacher, of the names of sizes or of tensors."""
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names if name.startswith("teacher.")))


def _neighbours(pair: Tensor, space: str, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    if space == "self":
        return pair.clone(), torch.full((len(pair), 0), -1)
    others = torch.randint(4 * len(pair), (len(pair), NEIGHBOURS_EACH), generator=rng)
    others[1, 0] = pair[-1]  # a neighbour that is in the batch
    others[-2, 0] = others[0, 0]  # one shared by two rows
    others[2] = -1  # a row without any, in the first half only
    return others[:, 0].clone(), others


def leaves(tensors: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    """The features of the local rows, and scale and bias, each wanting a gradient."""
    found = {name: tensors[name][rows] for name in tensors if name.startswith("view.")}
    found |= {name: tensors[name] for name in ("scale", "bias")}
    return {name: value.detach().clone().requires_grad_() for name, value in found.items()}


def batch_of(tensors: Mapping[str, Tensor], local: Mapping[str, Tensor], whole: Mapping[str, Tensor], rows: slice) -> Batch:
    """The batch as the process sees it that holds `rows`: `local` from `leaves`, `whole` its features of all processes."""
    views: dict[str, View] = {}
    for name in sorted(local):
        if name.startswith("view."):
            _, view, side = name.split(".")
            one = views.setdefault(view, View(None, None, None, None))  # a side that is not in `needs` stays None
            setattr(one, side, local[name])
            setattr(one, f"{side}_all", whole[name])
    views.setdefault("main", View(None, None, None, None))
    spaces = sorted({name.split(".")[1] for name in tensors if name.startswith("neighbours.")})
    return Batch(
        views=views,
        scale=local["scale"],
        bias=local["bias"],
        pair=tensors["pair"][rows],
        pair_all=tensors["pair"],
        first=rows.start,
        same=tensors["same"][rows] if tensors["same"].any() else None,
        neighbours={
            space: Neighbours(**{field: tensors[f"neighbours.{space}.{field}"] for field in ("ids", "others", "image", "text")})
            for space in spaces
        },
        teachers={name.removeprefix("teacher."): _taught(tensors, name, rows) for name in _teachers(tensors)},
    )


def _taught(tensors: Mapping[str, Tensor], name: str, rows: slice) -> TeacherView:
    sides = {side: tensors[f"{name}.{side}"] for side in SIDES if f"{name}.{side}" in tensors}
    local = {side: found[rows] for side, found in sides.items()}
    views = {key.partition(":")[2]: value for key, value in tensors.items() if key.startswith(f"{name}.text:")}
    texts = {view: (found[rows], found) for view, found in views.items()}
    return TeacherView(float(tensors[f"{name}.scale"]), **local, **{f"{side}_all": found for side, found in sides.items()}, texts=texts)


def permuted(tensors: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    """The same pairs in another order."""
    whole = {name: value[order] if value.ndim else value for name, value in tensors.items()}
    whole["same"] = tensors["same"][order][:, order]
    return whole
