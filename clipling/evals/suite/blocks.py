"""What a section of the page is made of. Each kind of block has a macro of its name in templates/suite_blocks.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from markupsafe import Markup

from clipling.evals.suite.compared import ModelResults

Tile = dict[str, Any]  # thumbnail, caption, right


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it says, what stands small below it, and its look."""

    text: str
    small: str = ""
    look: str = ""  # CSS classes
    heat: float | None = None  # 0 to 1: how strongly it is coloured
    colour: int | None = None  # of the dot before the text, or of the heat
    link: str = ""  # the id of a section that `small` leads to


@dataclass(frozen=True)
class Table:
    kind: ClassVar[str] = "table"
    head: Sequence[Cell | str]
    rows: Sequence[Sequence[Cell | str]]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """`svg` is trusted: it comes from clipling.evals.plots, which escapes. legend: (label, colour number or -1 for ink, look)."""

    kind: ClassVar[str] = "figure"
    title: str
    note: str
    svg: str
    legend: Sequence[tuple[str, int, str]] = ()

    @property
    def markup(self) -> Markup:
        return Markup(self.svg)


@dataclass(frozen=True)
class Grid:
    """Figures and small tables side by side where there is room."""

    kind: ClassVar[str] = "grid"
    blocks: Sequence[Any]


@dataclass(frozen=True)
class Answer:
    """What one model answers: tiles in order, or lines of text as (text, right)."""

    label: str
    colour: int
    note: str
    tiles: Sequence[Tile] = ()
    lines: Sequence[tuple[str, bool]] = ()


@dataclass(frozen=True)
class Asked:
    """A question, with its own picture where there is one, and the answers. A picture as the question has no `text`."""

    text: str
    tile: Tile | None
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Gallery:
    kind: ClassVar[str] = "gallery"
    title: str
    note: str
    asked: Sequence[Asked]


@dataclass(frozen=True)
class Guess:
    """One line below a picture, with a bar of `share` (0 to 1)."""

    text: str
    said: str
    share: float
    right: bool = False


@dataclass(frozen=True)
class Mistake:
    """A picture that was put in a wrong class: its true class, and the guesses with their confidence."""

    tile: Tile | None
    title: str
    guesses: Sequence[Guess]


@dataclass(frozen=True)
class Mistakes:
    kind: ClassVar[str] = "mistakes"
    title: str
    note: str
    items: Sequence[Mistake]
    colour: int


@dataclass(frozen=True)
class Checks:
    """Sanity checks: (name, passed, what was found)."""

    kind: ClassVar[str] = "checks"
    title: str
    colour: int
    items: Sequence[tuple[str, bool, str]]


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown when asked for."""

    kind: ClassVar[str] = "folded"
    title: str
    blocks: Sequence[Any]


@dataclass(frozen=True)
class Remark:
    """A note or a warning with the models that it concerns; none named when it concerns all of a section."""

    text: str
    models: Sequence[ModelResults] = ()
    warning: bool = False


@dataclass
class Section:
    id: str
    title: str
    how: str  # one or two sentences on how to read it
    blocks: list[Any] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    legend: Sequence[ModelResults] = ()
