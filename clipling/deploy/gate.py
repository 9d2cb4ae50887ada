"""The gate: no graph goes into an exported folder before it was compared with the fp32 one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from clipling.deploy.quality import Cosine, Drop
from clipling.errors import UserError


@dataclass(frozen=True)
class Thresholds:
    """What an artefact may lose, against the fp32 graph.

    mean_cosine, least_cosine: over all samples, and of the worst of them. Where recall is measured it is what counts; a mean of 0.98
        is about where a point is lost (docs/export.md). The least is there for rows that are broken: single odd pictures reach 0.85
        in graphs that lose nothing.
    centred_cosine: decides where recall cannot: no data was given, or the fp32 graphs themselves are at chance on it, so that nothing is
        there to be lost. The plain cosine of towers whose embeddings lie in a narrow cone is high whatever a graph does to them.
    drop: of recall@k either way and of zero-shot accuracy, as a fraction. With fewer than 1 / drop queries one of them may be lost.
    """

    mean_cosine: float = 0.98
    least_cosine: float = 0.8
    centred_cosine: float = 0.9
    drop: float = 0.01
    k: int = 10

    def __post_init__(self) -> None:
        for name in ("mean_cosine", "least_cosine", "centred_cosine"):
            if not -1 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected a cosine, at most 1")
        if not 0 <= self.drop <= 1 or self.k < 1:
            raise UserError(f"drop is {self.drop} and k is {self.k}; expected a fraction, such as 0.01, and a number from 1 on")

    def blind(self, drops: Mapping[str, Drop]) -> bool:
        """Whether none of the drops can tell a good graph from a bad one."""
        return not any(value.tells(self.allowed(value.queries)) for value in drops.values())

    def allowed(self, queries: int) -> float:
        """The drop that is allowed over so many queries."""
        return max(self.drop, 1 / queries) if queries else self.drop


@dataclass(frozen=True)
class Finding:
    """What was measured of one artefact. failed: what did not hold, in words; empty when it passed.

    beside: the other tower's file that recall was measured with. settings: how it was made.
    """

    file: str
    reference: str
    beside: str
    origin: str
    cosine: Cosine
    drops: Mapping[str, Drop]
    thresholds: Thresholds
    failed: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.failed

    def content(self) -> dict[str, Any]:
        """For gate.json."""
        made = asdict(self) | {"passed": self.passed, "drops": {name: asdict(value) for name, value in self.drops.items()}}
        made["quality_measured"] = bool(self.drops)
        made["note"] = note(self)
        return made


def judge(found: Cosine, drops: Mapping[str, Drop], thresholds: Thresholds, blind: bool) -> tuple[str, ...]:
    """What does not hold, in words. Written so that a number which is not finite fails.

    blind: no drop that was, or will be, measured can tell a good graph from a bad one.
    """
    wrong = []
    if not found.mean >= thresholds.mean_cosine:
        wrong.append(f"mean cosine {found.mean:.4f} (at least {thresholds.mean_cosine})")
    if not found.least >= thresholds.least_cosine:
        wrong.append(f"least cosine {found.least:.4f} (at least {thresholds.least_cosine})")
    if blind and not found.centred >= thresholds.centred_cosine:
        wrong.append(f"centred cosine {found.centred:.4f} (at least {thresholds.centred_cosine})")
    for name, value in drops.items():
        most = thresholds.allowed(value.queries)
        if not value.drop <= most + 1e-12:
            wrong.append(
                f"{name} {100 * value.reference:.1f} % to {100 * value.here:.1f} %: a drop of {100 * value.drop:.2f} points "
                f"(95 % interval {100 * value.low:.1f} to {100 * value.high:.1f}, {value.queries} queries; at most {100 * most:.2f})"
            )
    return tuple(wrong)


def refusal(finding: Finding, tried: int) -> UserError:
    """The error of an artefact that did not pass."""
    kept = finding.settings.get("kept_share_of_macs")
    how = f" after {tried} attempts, the last with {100 * kept:.0f} % of the arithmetic in fp32" if kept is not None else ""
    return UserError(
        f"{finding.file} did not pass its gate{how}: {'; '.join(finding.failed)}. Measured on {finding.origin}. "
        "It was not written; export without this precision, or loosen the gate with --max-drop or --min-cosine"
    )


def note(finding: Finding) -> str:
    """One sentence on how much the numbers say."""
    if not finding.drops:
        return f"Quality on your data was not measured: cosine on {finding.origin} alone. Add --data SRC for recall or accuracy."
    if finding.thresholds.blind(finding.drops):
        reached = ", ".join(f"{name} {100 * v.reference:.1f} % (chance {100 * v.chance:.1f} %)" for name, v in finding.drops.items())
        return (
            f"The gate cannot judge quality here: the fp32 model itself is hardly above chance on {finding.origin}: {reached}. "
            "It was let through by its cosines alone. Measure on data that the model can do something with."
        )
    widest = max(finding.drops.values(), key=lambda value: value.high)
    most = finding.thresholds.allowed(widest.queries)
    if widest.high > most:
        return (
            f"The drop may be as large as {100 * widest.high:.1f} points (95 % interval): {widest.queries} queries do not show "
            f"that it is within {100 * most:.1f}."
        )
    fewest = min(value.queries for value in finding.drops.values())
    return f"The whole 95 % interval of every drop is within what is allowed ({fewest} queries or more)."
