"""Which steps each stage of a run covers."""

from __future__ import annotations

from dataclasses import dataclass

from clipling.recipe import Stage


@dataclass(frozen=True)
class Span:
    """A stage and its global steps `begin ... end - 1`."""

    stage: Stage
    begin: int
    end: int
    number: int = 0


def spans(stages: list[Stage], steps_per_epoch: int, most: int | None) -> list[Span]:
    """The stages one after the other; `most` ends the run early (later stages are then left out)."""
    made: list[Span] = []
    begin = 0
    for number, stage in enumerate(stages):
        end = begin + max(1, round(stage.epochs * steps_per_epoch))
        made.append(Span(stage, begin, end if most is None else min(end, most), number))
        begin = end
        if most is not None and end >= most:
            break
    return made
