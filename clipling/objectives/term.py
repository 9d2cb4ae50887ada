"""The contract between the engine and everything it can train with.

The engine makes one `Batch` a step: the student's unit features of the local rows and of all rows of the global batch
(gathered once, with gradient), the false-negative mask, and what guides provide. A `Term` reads the batch and returns
unweighted scalars. An `Objective` is the weighted sum. Nothing here gathers, reads a configuration or moves devices, so
a term runs just as well in somebody else's loop.

Letters: n local rows, N rows of the global batch, d student features, P pairs of the training split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class View:
    """One view of the pairs of a batch: unit features of the local rows and of all rows, with gradient."""

    image: Tensor  # [n, d]
    text: Tensor  # [n, d]
    image_all: Tensor  # [N, d]
    text_all: Tensor  # [N, d]


@dataclass
class TeacherView:
    """What one frozen teacher makes of the same crops and captions: unit features, never with gradient.

    A side that no term asked for (`teacher.image`, `teacher.text` in `needs`) is None. The size d_t is the teacher's own.
    """

    scale: float  # what its similarities are multiplied by
    image: Tensor | None = None  # [n, d_t]
    text: Tensor | None = None  # [n, d_t]
    image_all: Tensor | None = None  # [N, d_t]
    text_all: Tensor | None = None  # [N, d_t]
    texts: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # by view ("syn", "mix"): [n, d_t] and [N, d_t]

    def texts_of(self, view: str) -> tuple[Tensor, Tensor]:
        """Local and all rows of the captions of a view; those of "main" are `text` and `text_all`."""
        return (self.text, self.text_all) if view == "main" else self.texts[view]  # type: ignore[return-value]


@dataclass
class Neighbours:
    """The neighbours of every row of the global batch in one feature space, and the bank rows of those neighbours.

    `ids[j]` is the pair drawn as neighbour of row j, or -1 where row j has none (a failed bank row): such a row
    is neither a query nor a target. `image` and `text` are unit bank features of the pair `ids[j]`, never with gradient.
    """

    ids: Tensor  # [N] int64
    others: Tensor  # [N, k] int64: all k table neighbours of row j, -1 where there are fewer
    image: Tensor  # [N, d_I]
    text: Tensor  # [N, d_T]


@dataclass
class Batch:
    """What a term may read. Local row i is row `first + i` of the global batch."""

    views: dict[str, View]
    scale: Tensor  # scalar: exp of the student's logit_scale, with gradient
    pair: Tensor  # [n] int64
    pair_all: Tensor  # [N] int64
    step: int = 0
    first: int = 0
    bias: Tensor | None = None  # scalar: the student's logit_bias (SigLIP), with gradient
    # [n, N] bool: not negatives of each other (never the row itself); None when there are none. In very large batches a sparse tensor:
    # `infonce.cells` reads both.
    same: Tensor | None = None
    neighbours: dict[str, Neighbours] = field(default_factory=dict)  # spaces: "image", "text", "self"
    teachers: dict[str, TeacherView] = field(default_factory=dict)  # by the recipe's names, in its order

    @property
    def main(self) -> View:
        """The view of the pictures and captions as they were drawn."""
        return self.views["main"]

    @property
    def target(self) -> Tensor:
        """[n] column of each local row in the global batch."""
        return torch.arange(self.pair.shape[0], device=self.pair.device) + self.first


class Term(nn.Module):
    """One part of the training loss.

    `needs` names what the engine has to put in the batch: `student.image`, `student.text`, `student.image:masked` (the view
    "masked": pictures with most patches left out), `student.text:syn` and `student.text:mix` (synthetic captions; a real or a synthetic
    one, drawn at random), `student.masks`, `neighbours.<space>` for the spaces of a bank, `teacher.image`, `teacher.text` and
    `teacher.text:syn` (`:mix`) for the features of all teachers. What no term needs is not computed. Trainable modules
    and buffers of a term are trained, synchronised and saved with the student, and are not part of the exported model.
    """

    needs: frozenset[str] = frozenset({"student.image", "student.text"})

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Unweighted scalars by name. Cross-entropies are in nats."""
        raise TypeError(f"{type(self).__name__} has no forward(batch) -> dict[str, Tensor]")

    def setup(self, dims: Mapping[str, int]) -> None:
        """Builds modules once sizes are known: `student` (d), `image`, `text` (bank features) where a guide has them, and
        `teacher.<name>` (d_t) for every teacher."""

    def masks(self, draw: torch.Generator | None) -> dict[str, Tensor]:
        """Masks that multiply units of the student's towers (`image.hidden`, `text.heads`, ...), with gradient; usually none.

        `draw` is where randomness comes from, the same on all processes; None asks for the fixed masks of evaluation.
        """
        return {}

    def parameter_groups(self) -> Iterable[dict]:
        """Optimiser groups of parameters that need their own settings: `lr_scale`, `weight_decay`, `maximize` (ascent), and
        `fixed_lr` (a learning rate of its own that follows no schedule)."""
        return []

    def after_step(self, step: int) -> None:
        """Called after every optimiser step (to clamp a temperature, to push a queue)."""

    def report(self) -> dict[str, float]:
        """Numbers for the log beside the values (a sparsity reached, a temperature); usually none."""
        return {}


Weight = float | Callable[[int], float]


class Objective(nn.Module):
    """A weighted sum of terms.

    `weights[term]` is a number or a function of the step for all values of the term, or a mapping with one for each value. A term
    all of whose weights are the constant 0 must not be given at all, so that it costs nothing and changes nothing.
    """

    def __init__(self, terms: Mapping[str, Term], weights: Mapping[str, Weight | Mapping[str, Weight]]):
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        self.weights = {name: weights[name] for name in terms}

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(term.needs for term in self.terms.values()))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and every unweighted value as `term/value` (or `term` where both names agree).

        Raises ValueError when a term returns a value without a weight, or a weight is given for a value that is not returned.
        """
        total: Tensor | None = None
        values: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            made = term(batch)
            self._all_used(name, made)
            for value_name, value in made.items():
                values[name if value_name == name else f"{name}/{value_name}"] = value
                weight = self._weight(name, value_name, batch.step)
                if weight == 0:
                    continue
                part = value if weight == 1 else weight * value
                total = part if total is None else total + part
        if total is None:
            raise ValueError("the objective has no term with a weight other than 0")
        return total, values

    def _all_used(self, term: str, made: Mapping[str, Tensor]) -> None:
        weights = self.weights[term]
        given = {v for v, w in weights.items() if callable(w) or w != 0} if isinstance(weights, Mapping) else set()
        if given - made.keys():
            raise ValueError(f"objective.{term}.weight names {sorted(given - made.keys())}; the term returns {sorted(made)}")

    def _weight(self, term: str, value: str, step: int) -> float:
        weight = self.weights[term]
        if isinstance(weight, Mapping):
            if value not in weight:
                raise ValueError(f"objective.{term}.weight has no {value!r}, which the term returns; it has {sorted(weight)}")
            weight = weight[value]
        return weight(step) if callable(weight) else weight

    def without(self, names: Iterable[str]) -> Objective:
        """The same terms, less those named."""
        kept = {name: term for name, term in self.terms.items() if name not in set(names)}
        return Objective(kept, self.weights)

    def masks(self, draw: torch.Generator | None) -> dict[str, Tensor]:
        """The masks of all terms together."""
        made: dict[str, Tensor] = {}
        for term in self.terms.values():
            made |= term.masks(draw)
        return made

    def after_step(self, step: int) -> None:
        for term in self.terms.values():
            term.after_step(step)
