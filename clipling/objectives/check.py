"""`clipling check FILE:NAME`: does a user's own term keep the contract of `term.py`?"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipling.errors import UserError
from clipling.objectives.load import USER_MODULE, explain, load_object
from clipling.objectives.sample import batch_of, leaves, permuted, sample
from clipling.objectives.term import Term
from clipling.objectives.worker import measure, run

DIMS = {"student": 16, "image": 24, "text": 12, "teacher.teacher": 20}
DIMS |= {f"{tower}.{key}": size for tower in ("image", "text") for key, size in (("layers", 2), ("width", 16), ("heads", 4), ("mlp", 32))}
TOLERANCE = 1e-4  # relative; fp32 sums in another order differ by about 1e-6


@dataclass(frozen=True)
class Finding:
    """What one check found. `ok` is None when it could not be made, and `detail` says why."""

    name: str
    ok: bool | None
    detail: str

    def __str__(self) -> str:
        mark = {True: "ok", False: "FAIL", None: "skip"}[self.ok]
        return f"{mark:5} {self.name:13} {self.detail}"


class _Broken(Exception):
    """A check failed; the message says how."""


class _NotMade(Exception):
    """A check could not be made; the message says why."""


@dataclass
class _Case:
    """A term to try: how to make one, its trained state, and a batch."""

    make: Callable[[], Term]
    spec: str | None
    source: Path | None
    dims: Mapping[str, int]
    count: int
    seed: int
    timeout: float
    tensors: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> slice:
        return slice(0, self.count)

    def term(self, state: Mapping[str, Tensor] | None = None) -> Term:
        """A new term in the trained state, with the generator where every other one starts too."""
        term = self.make()
        term.load_state_dict(self.state if state is None else state)
        torch.manual_seed(self.seed)
        return term

    def values(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return measure(self.term(), tensors, self.rows)[0]


def check_term(
    term: str | Callable[[], Term],
    dims: Mapping[str, int] = DIMS,
    *,
    rows: int = 8,
    processes: bool = True,
    seed: int = 0,
    timeout: float = 120,
) -> list[Finding]:
    """Tries a term on made-up batches of `rows` pairs (even, at least 6): one finding a check, in order.

    `term` is "file.py:NAME" or "package.module:NAME" of a `Term` class or of a function that makes a term (neither takes
    arguments), or such a class or function itself. `dims`: the sizes of `student`, `image` and `text` features and of those of a
    teacher named "teacher" (`teacher.teacher`), and of the student's towers (`image.width`, ...). After a
    failure of the first two checks (`values`, `steps`) the others are not made. Raises UserError when there is no term to check.
    """
    if rows < 6 or rows % 2:
        raise ValueError(f"rows={rows}: expected an even number of at least 6")
    spec, source, make = _maker(term, dims)
    torch.manual_seed(seed)
    case = _Case(make, spec, source, dims, rows, seed, timeout)
    findings = [_try("values", _values, case)]
    if findings[0].ok:
        findings.append(_try("steps", _steps, case))
    if not findings[-1].ok:
        return findings
    checks = {"gradients": _gradients, "permutation": _permutation, "state": _state, "two processes": _processes}
    if not processes:
        del checks["two processes"]
    return findings + [_try(name, check, case) for name, check in checks.items()]


def check_file(file: str) -> dict[str, Any]:
    """`check_term` of "file.py:NAME" as a program reads it: {"file", "findings": [{"check", "ok", "message"}], "failed"}."""
    findings = [{"check": found.name, "ok": found.ok, "message": found.detail} for found in check_term(file)]
    return {"file": file, "findings": findings, "failed": sum(found["ok"] is False for found in findings)}


def _maker(term: str | Callable[[], Term], dims: Mapping[str, int]) -> tuple[str | None, Path | None, Callable[[], Term]]:
    """Its name for another process, its file, and what makes one."""
    found = load_object(term) if isinstance(term, str) else term
    said = term if isinstance(term, str) else getattr(term, "__qualname__", repr(term))
    if not callable(found) or isinstance(found, Term):
        raise UserError(f"{said} is a {type(found).__name__}: expected a Term class or a function that returns a term")

    def make() -> Term:
        made = found()
        made.setup(dims)
        return made

    try:
        made = found()
    except Exception as error:
        raise UserError(
            f"{said}() raised {explain(error)}. For a term that takes arguments, write a function without any that returns it"
        ) from error
    if not isinstance(made, Term):
        raise UserError(f"{said}() is a {type(made).__name__}: expected a clipling.objectives.term.Term")
    return (term if isinstance(term, str) else _spec_of(term)), _source(made), make


def _spec_of(term: Callable[[], Term]) -> str | None:
    """A name by which another process finds `term`; None for what has none (a lambda, a partial, something nested)."""
    name, module = getattr(term, "__qualname__", ""), sys.modules.get(getattr(term, "__module__", ""))
    if module is None or getattr(module, name, None) is not term:
        return None
    by_path = module.__name__ == "__main__" or module.__name__.startswith(USER_MODULE)
    return f"{module.__file__ if by_path else module.__name__}:{name}"


def _source(term: Term) -> Path | None:
    module = sys.modules.get(type(term).__module__)
    return Path(module.__file__) if getattr(module, "__file__", None) else None


def _try(name: str, check: Callable[[_Case], str], case: _Case) -> Finding:
    try:
        return Finding(name, True, check(case))
    except _Broken as broken:
        return Finding(name, False, str(broken))
    except _NotMade as not_made:
        return Finding(name, None, str(not_made))
    except Exception as error:
        return Finding(name, False, f"raised {explain(error, case.source)}")


def _values(case: _Case) -> str:
    """Scalars, finite, with and without pairs that are not negatives, on all rows and on half of them."""
    term = case.make()
    try:
        case.tensors = sample(term.needs, case.dims, case.count, case.seed)
    except ValueError as error:
        raise _Broken(str(error)) from error
    plain = case.tensors | {"same": torch.zeros_like(case.tensors["same"])}
    half = slice(case.count // 2, case.count)
    for tensors, rows in ((case.tensors, case.rows), (plain, case.rows), (case.tensors, half)):
        whole = leaves(tensors, case.rows)
        local = {name: value[rows] if name.startswith("view.") else value for name, value in whole.items()}
        said = _scalars(term(batch_of(tensors, local, whole, rows)))
    return ", ".join(f"{name} = {value:.4g}" for name, value in said.items())


def _scalars(values: object) -> dict[str, float]:
    if not isinstance(values, dict) or not values:
        raise _Broken(f"forward(batch) returned {type(values).__name__}: expected a dict of scalars by name")
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise _Broken(f"value {name!r} is a {type(value).__name__}: expected a tensor")
        if value.ndim:
            raise _Broken(f"value {name!r} has shape {tuple(value.shape)}: expected a scalar (take the mean over rows)")
        if not bool(torch.isfinite(value)):
            raise _Broken(f"value {name!r} is {value.item()} on ordinary unit features")
        if not value.requires_grad:
            raise _Broken(f"value {name!r} has no gradient: it was computed without the student's features")
    return {name: value.item() for name, value in values.items()}


def _steps(case: _Case) -> str:
    """A few steps of training go through; the other checks go on from there."""
    case.state = _trained(case).state_dict()
    size = sum(value.numel() for value in case.state.values())
    return f"two steps taken; {len(case.state)} tensors of state, {size} numbers"


def _gradients(case: _Case) -> str:
    """They reach every feature in `needs` and every parameter of the term."""
    _, grads = measure(case.term(), case.tensors, case.rows)
    wanted = [name for name in grads if name.startswith(("view.", "term."))]
    for name in wanted:
        own, what = name.startswith("term."), _said(name)
        if grads[name] is None:
            why = "DDP stops on a parameter that is never used" if own else "`needs` asks for them"
            raise _Broken(f"no gradient reaches {what}: {why}")
        if not bool(torch.isfinite(grads[name]).all()):
            raise _Broken(f"the gradient of {what} is not finite")
        if not own and not bool(grads[name].any()):
            raise _Broken(f"the gradient of {what} is zero everywhere")
    own = sum(name.startswith("term.") for name in wanted)
    return f"reach {len(wanted) - own} features and {own} parameters"


def _permutation(case: _Case) -> str:
    """The order of the pairs in the batch means nothing."""
    order = torch.randperm(case.rows.stop, generator=torch.Generator().manual_seed(case.seed))
    _compare(case.values(case.tensors), case.values(permuted(case.tensors, order)), "as given", "in another order")
    return "the order of the pairs does not matter"


def _state(case: _Case) -> str:
    """What `state_dict` holds is all there is: a resumed run goes on as the first would have."""
    trained, kept = _trained(case), io.BytesIO()
    torch.save(trained.state_dict(), kept)
    kept.seek(0)
    torch.manual_seed(case.seed + 1)  # so that what is not restored differs
    restored = case.term(torch.load(kept, weights_only=True))
    after = measure(restored, case.tensors, case.rows)[0]
    torch.manual_seed(case.seed)
    before = measure(trained, case.tensors, case.rows)[0]
    _compare(before, after, "before saving", "after loading", 0)
    return f"{len(case.state)} tensors saved and restored"


def _processes(case: _Case) -> str:
    """Two processes with half of the rows each: the mean of the losses, and every gradient, as in one process."""
    if case.spec is None:
        raise _NotMade("another process cannot find this term: give it as 'file.py:NAME'")
    values, grads = measure(case.term(), case.tensors, case.rows)
    job = {"spec": case.spec, "dims": dict(case.dims), "state": case.state, "tensors": case.tensors, "seed": case.seed}
    try:
        both = run(job, 2, case.timeout)
    except (RuntimeError, TimeoutError) as error:
        raise _Broken(str(error)) from error
    try:
        _compare(values, both["values"], "in one process", "as the mean of two")
        for name, grad in grads.items():
            _compare({name: grad}, both["grads"], "in one process", "over two", what=f"the gradient of {_said(name)}")
    except _Broken as broken:
        hint = "a term returns a mean over its local rows of something that sees all columns"
        raise _Broken(f"{broken} ({hint})") from None
    return "loss and gradient equal one process"


def _trained(case: _Case, steps: int = 2) -> Term:
    """A term after a few steps on other batches, so that its state is not the one it is made with."""
    torch.manual_seed(case.seed)
    term = case.make()
    for step in range(steps):
        tensors = sample(term.needs, case.dims, case.rows.stop, case.seed + 1 + step)
        measure(term, tensors, case.rows)
        with torch.no_grad():
            for parameter in _learning(term):
                parameter -= 0.1 * parameter.grad
        term.after_step(step)
    return term


def _learning(term: Term) -> Iterator[Tensor]:
    return (p for p in term.parameters() if p.requires_grad and p.grad is not None)


def _said(name: str) -> str:
    """The gradient's name from `measure` as a user knows it."""
    kind, _, rest = name.partition(".")
    if kind == "term":
        return f"parameter {rest!r}"
    return f"the student's {rest.split('.')[1]} features ({rest})" if kind == "view" else f"the student's {name}"


def _compare(
    one: Mapping[str, Tensor | None],
    other: Mapping[str, Tensor],
    said: str,
    said_other: str,
    tolerance: float = TOLERANCE,
    what: str = "",
) -> None:
    """Raises _Broken with the first of `one` that differs from its namesake in `other` by more than `tolerance` of its size."""
    for name, value in one.items():
        twin = other[name]
        value = torch.zeros_like(twin) if value is None else value
        size = max(value.abs().max().item(), twin.abs().max().item(), 1e-6)
        apart = (value - twin).abs().max().item()
        if not apart <= tolerance * size:
            of = what or f"value {name!r}"
            if value.ndim:
                raise _Broken(f"{of} differs by {apart:.3g} of {size:.3g} {said} and {said_other}")
            raise _Broken(f"{of} is {value.item():.6g} {said}, {twin.item():.6g} {said_other}")
