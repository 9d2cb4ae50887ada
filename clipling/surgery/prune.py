"""Removing hidden units, heads and MLP units from a student (TinyCLIP's automatic inheritance, arXiv 2309.12314).

`prune` makes the masked forward of models/masked.py a model of its own, exactly: what has mask 0 goes, and the factors of what
stays are folded into weights. The reference also scales the rows of the last projection, which its masked forward does not;
here that projection is only indexed, so the function stays the same for soft masks too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from clipling.errors import UserError
from clipling.models.dual import Student
from clipling.models.irregular import block_heads, block_units, tower_shape
from clipling.models.irregular_config import TowerShape, with_shape
from clipling.models.masked import TowerMasks, tower_masks, tower_shapes
from clipling.models.vocabulary import RestrictedEmbedding

State = dict[str, Tensor]
TOLERANCE = 0.05  # of the size that was asked for
# What outside the blocks has the hidden units on one of its axes: which axis, and whether the mask is folded into it.
OUTSIDE = {
    "conv1.weight": (0, True),
    "class_embedding": (0, True),
    "positional_embedding": (1, True),
    "token_embedding.weight": (1, True),
    "token_embedding.rest": (1, True),
    "ln_pre.weight": (0, False),
    "ln_pre.bias": (0, False),
    "ln_post.weight": (0, False),
    "ln_post.bias": (0, False),
    "ln_final.weight": (0, False),
    "ln_final.bias": (0, False),
    "proj": (0, False),
    "text_projection": (0, False),
    "text_projection.weight": (1, False),
}


@dataclass(frozen=True)
class Kept:
    """The units with a mask above 0 of one axis: their places int64 [k] and their masks [k]."""

    index: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def of(self, tensor: Tensor, axis: int, fold: bool) -> Tensor:
        """The kept part of `tensor` along `axis`, times the masks with `fold`."""
        part = tensor.index_select(axis, self.index)
        return part * self.scale.view([-1 if a == axis else 1 for a in range(part.ndim)]) if fold else part


def _kept(mask: Tensor | None, size: int, like: Tensor) -> Kept:
    mask = like.new_ones(size) if mask is None else mask.detach()[:size]
    index = mask.nonzero()[:, 0]
    return Kept(index, mask[index])


@dataclass(frozen=True)
class KeptTower:
    hidden: Kept
    heads: list[Kept]
    units: list[Kept]
    head_width: int

    @property
    def shape(self) -> TowerShape:
        return TowerShape(len(self.hidden), self.head_width, tuple(map(len, self.heads)), tuple(map(len, self.units)))


def _kept_tower(name: str, tower: nn.Module, masks: TowerMasks) -> KeptTower:
    shape, like = tower_shape(tower), tower.positional_embedding
    hidden = _kept(masks.hidden, shape.width, like)
    if not len(hidden):
        raise UserError(f"the masks remove every hidden unit of the {name} tower: aim at a lower sparsity")
    heads, units = (
        [_kept(None if mask is None else mask[layer], count, like) for layer, count in enumerate(counts)]
        for mask, counts in ((masks.heads, shape.heads), (masks.intermediate, shape.mlp))
    )
    return KeptTower(hidden, heads, units, shape.head_width)


def prune(student: Student, masks: Mapping[str, Tensor]) -> Student:
    """A new student without the units whose mask is 0, which is the same function as `student` under `student.masked(masks)`.

    masks: `image.hidden` [C], `image.heads` [L, H], `image.intermediate` [L, F] and the same with `text.`, any of them, in
    [0, 1]. The width of a head stays. Layers may end up irregular (see models/irregular.py), also without heads or MLP units.
    Mode, device, dtype, vocabulary, norm and frozen towers are those of `student`. UserError for towers that are not plain
    transformers of open_clip's, for masks that do not fit, and where a tower keeps no hidden unit.
    """
    config, state = copy.deepcopy(student.config), dict(student.model.state_dict())
    for name, masked in tower_masks(student, masks).items():
        part = "visual" if name == "image" else "text"
        tower = getattr(student.model, part)
        kept = _kept_tower(name, tower, masked)
        config = with_shape(config, name, kept.shape)
        state = {key: value for key, value in state.items() if not key.startswith(f"{part}.")}
        state |= {f"{part}.{key}": value for key, value in _tower_state(tower, kept).items()}
    with torch.random.fork_rng(devices=[]):  # start values are drawn, and all of them replaced
        pruned = Student(config, student.text_folder)
    _same_vocabulary(pruned, student)
    pruned.to(device=student.device, dtype=student.logit_scale.dtype)
    pruned.model.load_state_dict(state)
    pruned.set_norm(student.norm)
    pruned.freeze(student._frozen["visual"], student._frozen["text"], student._projections_frozen)
    return pruned.train(student.training)


def _same_vocabulary(pruned: Student, student: Student) -> None:
    """Gives `pruned` a restricted token table of its own width where `student` has one; its rows are loaded afterwards."""
    old = getattr(student.model.text, "token_embedding", None)
    if isinstance(old, RestrictedEmbedding):
        new, width = copy.deepcopy(old), pruned.model.text.token_embedding.weight.shape[1]
        new.weight = nn.Parameter(old.weight.detach().new_empty(len(old.weight), width))
        if old.rest is not None:
            new.rest = old.rest.new_empty(len(old.rest), width)
        pruned.model.text.token_embedding = new


def _tower_state(tower: nn.Module, kept: KeptTower) -> State:
    blocks = "transformer.resblocks."
    state = {key: value for key, value in tower.state_dict().items() if not key.startswith(blocks)}
    for key, (axis, fold) in OUTSIDE.items():
        if key in state:
            state[key] = kept.hidden.of(state[key], axis, fold)
    for layer, block in enumerate(tower.transformer.resblocks):
        state |= {f"{blocks}{layer}.{key}": value for key, value in _block_state(block, kept, layer).items()}
    return state


def _block_state(block: nn.Module, kept: KeptTower, layer: int) -> State:
    old, new, hidden = block.state_dict(), {}, kept.hidden
    for key in ("ls_1.gamma", "ls_2.gamma"):
        if key in old:
            new[key] = hidden.of(old[key], 0, False)
    new["attn.out_proj.bias"] = hidden.of(old["attn.out_proj.bias"], 0, True)
    new["mlp.c_proj.bias"] = hidden.of(old["mlp.c_proj.bias"], 0, True)
    if heads := kept.heads[layer]:
        new |= {f"ln_1.{key}": hidden.of(old[f"ln_1.{key}"], 0, False) for key in ("weight", "bias")}
        parts = (3, block_heads(block), kept.head_width)  # head-major, with queries, keys and values one after the other
        rows = hidden.of(old["attn.in_proj_weight"], 1, False).unflatten(0, parts)
        new["attn.in_proj_weight"] = heads.of(rows, 1, False).flatten(0, 2)
        new["attn.in_proj_bias"] = heads.of(old["attn.in_proj_bias"].unflatten(0, parts), 1, False).flatten()
        columns = hidden.of(old["attn.out_proj.weight"], 0, True).unflatten(1, parts[1:])
        new["attn.out_proj.weight"] = heads.of(columns, 1, True).flatten(1)
    if units := kept.units[layer]:
        new |= {f"ln_2.{key}": hidden.of(old[f"ln_2.{key}"], 0, False) for key in ("weight", "bias")}
        new["mlp.c_fc.weight"] = units.of(hidden.of(old["mlp.c_fc.weight"], 1, False), 0, False)
        new["mlp.c_fc.bias"] = units.of(old["mlp.c_fc.bias"], 0, False)
        new["mlp.c_proj.weight"] = units.of(hidden.of(old["mlp.c_proj.weight"], 0, True), 1, True)
    return new


# Masks without learning them


def by_masks(student: Student, objective: _HasMasks, parameters: int | None = None) -> Student:
    """Surgery between two stages: removes what the learned masks of evaluation have closed.

    The gates are moved together first (`Sparsity.settle`), so that the size that was asked for is met: `parameters` without token
    rows, or the term's own target. UserError when no masks can meet it.
    """
    terms = [term for term in objective.terms.values() if "student.masks" in term.needs]
    if not terms:
        raise UserError("clipling.surgery.prune:by_masks needs a term that learns masks (clipling.objectives.sparsity:Sparsity)")
    if parameters is None:
        for term in terms:
            term.settle()
        return prune(student, objective.masks(None))
    whole = student.sizes()["total_without_token_rows"]
    terms[0].settle(lambda: 1 - size_after(student, objective.masks(None)) / whole, 1 - parameters / whole)
    pruned = prune(student, objective.masks(None))
    reached = pruned.sizes()["total_without_token_rows"]
    if abs(reached - parameters) > TOLERANCE * parameters:
        raise UserError(
            f"{parameters:,} parameters cannot be met by masks: the nearest is {reached:,}, of {whole:,}. What is outside of the layers "
            "stays. Ask for a size nearer to that, or use --method manual."
        )
    return pruned


def what_was_cut(before: Student, after: Student) -> list[str]:
    """For people: what a surgery left of each tower's hidden channels, attention heads and MLP units. Only of plain transformers."""
    try:
        old, new = tower_shapes(before), tower_shapes(after)
    except UserError:
        return []
    lines = []
    for name in (n for n in old if n in new and old[n] != new[n]):
        was, now = old[name], new[name]
        counts = [(now.width, was.width, "hidden channels"), (sum(now.heads), sum(was.heads), "attention heads")]
        counts.append((sum(now.mlp), sum(was.mlp), "MLP units"))
        lines.append(f"{name} tower keeps " + ", ".join(f"{kept:,} of {among:,} {what}" for kept, among, what in counts))
        empty = [str(i) for i, (heads, units) in enumerate(zip(now.heads, now.mlp)) if not heads and not units]
        lines += [f"  nothing is left in layer{'s' * (len(empty) > 1)} {' '.join(empty)} (counted from 0)"] if empty else []
    return lines


def size_after(student: Student, masks: Mapping[str, Tensor]) -> int:
    """Parameters without token rows that `prune` leaves; 0 where it would leave nothing that is a model."""
    try:
        return prune(student, masks).sizes()["total_without_token_rows"]
    except UserError:
        return 0


class _HasMasks(Protocol):
    terms: nn.ModuleDict

    def masks(self, draw: torch.Generator | None) -> dict[str, Tensor]: ...


def magnitude_masks(student: Student, share: float) -> dict[str, Tensor]:
    """Binary masks that keep about `share` (in (0, 1]) of the prunable parameters of each tower (`TowerShape.prunable`).

    Kept are the units of largest weights: the same part, about sqrt(share), of hidden units, heads and MLP units. Magnitude is
    the norm of all weights that read or write a unit, with the norms' gains in them; heads and MLP units of different layers
    are compared after division by their layer's mean.
    """
    if not 0 < share <= 1:
        raise UserError(f"the share of parameters to keep is {share}, but it must be above 0 and at most 1")
    masks = {}
    for name, shape in tower_shapes(student).items():
        tower = student.model.visual if name == "image" else student.model.text
        ranks = _ranks(tower, shape)
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if _counted(shape, _chosen(ranks, middle)) <= share * shape.prunable else (low, middle)
        chosen = [_chosen(ranks, part) for part in ((1.0,) if share == 1 else (low, high))]
        best = min(chosen, key=lambda c: abs(_counted(shape, c) - share * shape.prunable))
        masks |= {f"{name}.{group}": mask.float() for group, mask in best.items()}
    return masks


def _chosen(ranks: dict[str, Tensor], part: float) -> dict[str, Tensor]:
    """The best `part` of every group, bool as the masks; at least one hidden unit. Units that do not exist have rank -1."""
    counts = {group: round(part * int((rank >= 0).sum())) for group, rank in ranks.items()}
    counts["hidden"] = max(1, counts["hidden"])
    return {group: (rank >= 0) & (rank < counts[group]) for group, rank in ranks.items()}


def _counted(shape: TowerShape, chosen: dict[str, Tensor]) -> int:
    heads, units = (tuple(chosen[group].sum(-1).tolist()) for group in ("heads", "intermediate"))
    return TowerShape(int(chosen["hidden"].sum()), shape.head_width, heads, units).prunable


def _ranks(tower: nn.Module, shape: TowerShape) -> dict[str, Tensor]:
    """Places in the order of magnitude, 0 the largest, int64 as the masks: hidden [C], heads [L, H], intermediate [L, F]."""
    like = tower.positional_embedding.detach()
    hidden = like.new_zeros(shape.width)
    heads, units = (like.new_full((len(counts), max(1, *counts)), -1.0) for counts in (shape.heads, shape.mlp))
    for layer, block in enumerate(tower.transformer.resblocks):
        state = block.state_dict()
        if count := block_heads(block):
            read, write = state["attn.in_proj_weight"] * state["ln_1.weight"], state["attn.out_proj.weight"]
            hidden += read.square().sum(0) + write.square().sum(1)
            rows = read.square().sum(1).view(3, count, -1).sum((0, 2)) + write.square().sum(0).view(count, -1).sum(1)
            heads[layer, :count] = rows.sqrt() / rows.sqrt().mean()
        if count := block_units(block):
            read, write = state["mlp.c_fc.weight"] * state["ln_2.weight"], state["mlp.c_proj.weight"]
            hidden += read.square().sum(0) + write.square().sum(1)
            rows = read.square().sum(1) + write.square().sum(0)
            units[layer, :count] = rows.sqrt() / rows.sqrt().mean()
    return {"hidden": _order(hidden), "heads": _order(heads), "intermediate": _order(units)}


def _order(scores: Tensor) -> Tensor:
    rank = torch.empty(scores.numel(), dtype=torch.int64, device=scores.device)
    rank[scores.flatten().argsort(descending=True, stable=True)] = torch.arange(scores.numel(), device=scores.device)
    return rank.view(scores.shape).masked_fill(scores < 0, -1)
