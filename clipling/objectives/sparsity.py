"""Learned masks that thin both towers to a target sparsity: TinyCLIP's automatic inheritance (Wu et al., ICCV 2023, arXiv 2309.12314).

Every hidden unit, head and MLP unit of a tower has a hard-concrete gate. The sparsity that the gates' probabilities lead one to expect
is held to a target, which rises over the first steps, by a Lagrangian whose multipliers are learned by ascent. Of L layers, width
C, H heads of h units, F MLP units, the parameters counted are those of attention and MLP maps (TinyCLIP's own count):

    P = L (H p + 2 C F + C + F),  p = 4 h (C + 1)
    sparsity = 1 - [ (sum q_hidden) (sum q_heads) p / C + 2 (sum q_hidden) (sum q_mlp) ] / P

with q the probabilities (expected), or 1 for every mask of evaluation that is not 0 (realised).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipling.errors import UserError, near
from clipling.objectives.hard_concrete import MAX_LOG_ALPHA, draw_gates, open_probability, settled_gates
from clipling.objectives.options import some_of
from clipling.objectives.term import Batch, Term

TOWERS = ("image", "text")
GROUPS = ("hidden", "heads", "intermediate")
START_LOG_ALPHA = 10.0
START_LAMBDA = 10.0
WIDEST_SHIFT = 16.0  # of gates that lie within +- ln 100
SHIFT_STEPS = 18
ALL = "all"  # both towers together


class Sparsity(Term):
    """Value `sparsity`: the Lagrangian l1 max(t - e, 0) + l2 max(t - e, 0)^2 of expected sparsity e and target t(step).

    target: the sparsity to reach. start: where t begins; it reaches `target` after `warmup` steps, in a straight line.
    lr: learning rate of gates and (ascending) multipliers; it follows no schedule, and both have Adam's default betas as in the reference.
    groups: the kinds of units that can go: some of "hidden", "heads", "intermediate". towers: the towers that are thinned.
    shared: one Lagrangian over the towers together, which then share the work as they find best; False: one for each tower.

    `masks` gives the masks that the student is to be run with. Units that died in an earlier stage (`set_alive`) have mask 0 and count
    as removed, of a total that is the tower's full size as `setup` is told.
    """

    needs = frozenset({"student.masks"})

    def __init__(
        self,
        target: float,
        warmup: int,
        *,
        start: float = 0.0,
        lr: float = 0.02,
        groups: Sequence[str] = GROUPS,
        shared: bool = True,
        towers: Sequence[str] = TOWERS,
    ):
        super().__init__()
        if not 0 <= start <= target < 1:
            raise UserError(f"start={start!r}, target={target!r}: expected 0 <= start <= target < 1, shares of parameters to remove")
        if warmup < 0:
            raise UserError(f"warmup={warmup!r}: expected a number of steps, 0 or more")
        if not lr > 0:
            raise UserError(f"lr={lr!r}: expected a positive learning rate (0.02)")
        self.target, self.start, self.warmup, self.lr, self.shared = target, start, warmup, lr, shared
        self.groups, self.towers = some_of("groups", groups, GROUPS), some_of("towers", towers, TOWERS)
        self.shapes: dict[str, TowerSize] = {}
        self.log_alpha = nn.ParameterDict()
        self.multipliers = nn.ModuleDict()
        self.step = 0

    def setup(self, dims: Mapping[str, int]) -> None:
        """Builds gates and multipliers: `dims` holds `image.layers`, `image.width`, `image.heads`, `image.mlp`, the units of a head as
        `image.head_width` (else width / heads), and the same for `text`. UserError where they are missing or the target is out of reach."""
        self.shapes = {tower: TowerSize.of(tower, dims) for tower in self.towers}
        for tower, group in self._places(GROUPS):
            shape = self.shapes[tower].units(group)
            self.register_buffer(f"alive_{tower}_{group}", torch.ones(shape))
            if group in self.groups:
                self.log_alpha[f"{tower}_{group}"] = torch.full(shape, START_LOG_ALPHA)
        for name in (ALL,) if self.shared else self.towers:
            self.multipliers[name] = _Multipliers()
        self._reachable()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.step = batch.step
        target, expected = self.target_at(batch.step), self.expected_sparsity()
        return {"sparsity": sum(of(torch.relu(target - expected[name])) for name, of in self.multipliers.items())}

    def target_at(self, step: int) -> float:
        """The sparsity that is asked for at a step."""
        done = 1.0 if step >= self.warmup else step / self.warmup
        return self.start + (self.target - self.start) * done

    def masks(self, draw: torch.Generator | None) -> dict[str, Tensor]:
        """Masks fp32 by name: `image.hidden` [C], `image.heads` [L, H], `image.intermediate` [L, F], the same for `text`.

        Drawn with gradient from `draw`, or without it the fixed ones of evaluation, which have no gradient.
        """
        made = {}
        for tower, group in self._places(GROUPS):
            alive, name = self._alive(tower, group), f"{tower}.{group}"
            if group in self.groups:
                gate = self.log_alpha[f"{tower}_{group}"]
                made[name] = settled_gates(gate.detach(), alive) if draw is None else draw_gates(gate, draw) * alive
            elif not bool(alive.all()):
                made[name] = alive.clone()
        return made

    @torch.no_grad()
    def set_alive(self, masks: Mapping[str, Tensor]) -> None:
        """Units that are 0 in `masks` (named and shaped as those of `masks()`) stay 0 for good; the others live. Groups that are not
        named are left as they are; a tower that is not thinned is ignored."""
        for name, mask in masks.items():
            tower, _, group = name.partition(".")
            if tower not in TOWERS or group not in GROUPS:
                raise UserError(f"there is no mask {name!r}. {near(name, [f'{t}.{g}' for t in TOWERS for g in GROUPS])}")
            if tower not in self.towers:
                continue
            alive = self._alive(tower, group)
            if mask.shape != alive.shape:
                raise UserError(f"the mask {name!r} is {list(mask.shape)}, but this student needs {list(alive.shape)}")
            alive.copy_(mask != 0)

    def prunable(self) -> dict[str, int]:
        """P: the parameters that sparsity is a share of, by tower, and of `all` of them."""
        made = {tower: shape.prunable for tower, shape in self.shapes.items()}
        return {**made, ALL: sum(made.values())}

    def expected_sparsity(self) -> dict[str, Tensor]:
        """By tower, and of `all` together: scalars with gradient to the gates."""
        return self._sparsity({f"{t}.{g}": open_probability(self.log_alpha[f"{t}_{g}"]) for t, g in self._places(self.groups)})

    def realised_sparsity(self) -> dict[str, float]:
        """What pruning by the masks of evaluation would remove, by tower, and of `all` together."""
        found = self._sparsity({name: (mask != 0).float() for name, mask in self.masks(None).items()})
        return {name: float(value) for name, value in found.items()}

    @torch.no_grad()
    def settle(self, removed: Callable[[], float] | None = None, target: float | None = None) -> float:
        """Moves all gates by one number, so that the masks of evaluation remove `target`, and returns that number.

        removed: what is to meet it, a measure of the masks of now; by default the realised sparsity. target: by default the term's.
        The Lagrangian is one-sided and stops near its target; the size that was asked for is met by this last shift, which keeps
        the order of the gates. 0 where nothing has to be moved. Ours; the reference takes what it finds.
        """
        name = ALL if len(self.towers) > 1 else self.towers[0]
        learned = {key: gate.clone() for key, gate in self.log_alpha.items()}
        measure, wish = removed or (lambda: self.realised_sparsity()[name]), self.target if target is None else target

        def moved(shift: float) -> float:
            for key, gate in self.log_alpha.items():
                gate.copy_(learned[key] + shift)
            return measure()

        low, high = -WIDEST_SHIFT, WIDEST_SHIFT
        for _ in range(SHIFT_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if moved(middle) > wish else (low, middle)
        shift = min((0.0, low, high), key=lambda s: (round(abs(moved(s) - wish), 4), abs(s)))
        moved(shift)
        return shift

    def parameter_groups(self) -> Iterable[dict]:
        own = {"fixed_lr": self.lr, "weight_decay": 0.0, "betas": (0.9, 0.999), "eps": 1e-8}
        return [
            {"params": list(self.log_alpha.values()), **own},
            {"params": list(self.multipliers.parameters()), "maximize": True, **own},
        ]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        for gate in self.log_alpha.values():
            gate.clamp_(-MAX_LOG_ALPHA, MAX_LOG_ALPHA)

    @torch.no_grad()
    def report(self) -> dict[str, float]:
        """Target at the last step, expected and realised sparsity, and the multipliers; of each tower as `expected.image` and so on."""
        expected, realised = ({n: float(v) for n, v in found.items()} for found in (self.expected_sparsity(), self.realised_sparsity()))
        made = {"target": self.target_at(self.step), "expected": expected.pop(ALL), "realised": realised.pop(ALL)}
        made |= {f"expected.{tower}": value for tower, value in expected.items()}
        made |= {f"realised.{tower}": value for tower, value in realised.items()}
        for name, of in self.multipliers.items():
            suffix = "" if name == ALL else f".{name}"
            made |= {f"lambda1{suffix}": float(of.first), f"lambda2{suffix}": float(of.second)}
        return made

    def _places(self, groups: Sequence[str]) -> Iterable[tuple[str, str]]:
        return [(tower, group) for tower in self.towers for group in groups]

    def _alive(self, tower: str, group: str) -> Tensor:
        return self.get_buffer(f"alive_{tower}_{group}")

    def _sparsity(self, shares: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """shares: how much of each unit is kept, by mask name; of a group that is not named, all that is alive."""
        left: dict[str, Tensor] = {}
        for tower, shape in self.shapes.items():
            counts = {}
            for group in GROUPS:
                alive = self._alive(tower, group)
                counts[group] = (shares[f"{tower}.{group}"] * alive).sum() if f"{tower}.{group}" in shares else alive.sum()
            left[tower] = counts["hidden"] * (counts["heads"] * (shape.head / shape.width) + 2 * counts["intermediate"])
        total = self.prunable()
        return {name: 1 - kept / total[name] for name, kept in (left | {ALL: sum(left.values())}).items()}

    @torch.no_grad()
    def _reachable(self) -> None:
        """The gates can be closed with a probability of at most 0.95, so not every target can be expected of them."""
        closed = torch.tensor(-MAX_LOG_ALPHA)
        most = self._sparsity({f"{t}.{g}": open_probability(closed.expand(self.shapes[t].units(g))) for t, g in self._places(self.groups)})
        limit = min(float(most[name]) for name in self.multipliers)
        if self.target > limit:
            raise UserError(
                f"target={self.target} is out of reach with groups={list(self.groups)}: at most {math.floor(100 * limit) / 100}"
            )


class _Multipliers(nn.Module):
    """l1 and l2, which only grow: their gradient is never negative, and they are learned by ascent."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.tensor(START_LAMBDA)) for _ in range(2))

    def forward(self, missing: Tensor) -> Tensor:
        return self.first * missing + self.second * missing.square()


@dataclass(frozen=True)
class TowerSize:
    """Numbers of layers, hidden units, heads, units of a head and MLP units of a tower."""

    layers: int
    width: int
    heads: int
    head_width: int
    mlp: int

    @classmethod
    def of(cls, tower: str, dims: Mapping[str, int]) -> TowerSize:
        missing = [key for key in ("layers", "width", "heads", "mlp") if f"{tower}.{key}" not in dims]
        if missing:
            raise UserError(f"masks need a ViT image tower and a transformer text tower; of this student {tower}.{missing[0]} is not known")
        layers, width, heads, mlp = (dims[f"{tower}.{key}"] for key in ("layers", "width", "heads", "mlp"))
        return cls(layers, width, heads, dims.get(f"{tower}.head_width", width // heads), mlp)

    def units(self, group: str) -> tuple[int, ...]:
        """The shape of the masks of a group."""
        return {"hidden": (self.width,), "heads": (self.layers, self.heads), "intermediate": (self.layers, self.mlp)}[group]

    @property
    def head(self) -> int:
        """Parameters of one head: its rows of the query, key and value maps and columns of the output map, with a share of its bias."""
        return 4 * self.head_width * (self.width + 1)

    @property
    def prunable(self) -> int:
        return self.layers * (self.heads * self.head + 2 * self.width * self.mlp + self.width + self.mlp)
