"""Rows that could not be used: counted, listed in a file, and past a stated share a reason to stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from clipling.errors import UserError
from clipling.store import atomic_write, cache_dir

OPEN_END = "tar without its end mark"  # a kind that is no row: all that there is of the tar was read


class Problem(NamedTuple):
    """One bad row: `kind` groups it with others, `where` finds it again, `detail` says what is wrong."""

    kind: str
    where: str
    detail: str


class Problems:
    """The bad rows of one source, in the order in which they were met."""

    def __init__(self, name: str = "", rows: Iterable[Iterable[str]] = ()) -> None:
        self.name = name
        self.rows: list[Problem] = [Problem(*row) for row in rows]
        self.path: Path | None = None  # the list file, once written

    def add(self, kind: str, where: str, detail: str) -> None:
        self.rows.append(Problem(kind, where, detail))
        self.path = None  # a list that was written lacks this one

    def extend(self, others: Iterable[Problem]) -> None:
        self.rows.extend(others)
        self.path = None

    def counts(self) -> dict[str, int]:
        """Number of problems by kind, the most frequent first."""
        return dict(Counter(row.kind for row in self.rows).most_common())

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.rows)

    def write(self, path: Path | str) -> None:
        """Writes all problems as tab-separated text with a header (tabs and line breaks escaped), atomically."""
        lines = ["kind\twhere\tdetail", *("\t".join(map(_one_line, row)) for row in self.rows)]
        atomic_write(path, ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))
        self.path = Path(path)

    def left_out(self) -> int:
        """Rows that could not be used: tars that only lack their end mark are none."""
        return sum(row.kind != OPEN_END for row in self.rows)

    def summary(self) -> str:
        """One phrase: `3 missing image, 1 empty caption`."""
        return ", ".join(f"{count} {kind}" for kind, count in self.counts().items())

    def first(self, count: int = 5) -> str:
        """The first few problems, one indented line each."""
        return "\n".join(f"  {_one_line(row.where)}: {_one_line(row.detail)[:300]}" for row in self.rows[:count])

    def check(self, total: int, most: float) -> None:
        """Raises UserError when more than the share `most` of `total` rows (the bad ones included) is bad."""
        if not 0 <= most <= 1:
            raise UserError(f"the allowed share of bad rows must be between 0 and 1, not {most}")
        if not self.rows or len(self) <= most * total:
            return
        share = len(self) / max(total, 1)
        raise UserError(
            f"{self.name or 'the source'}: {len(self)} of {total} rows cannot be used ({share:.0%}; allowed are {most:.0%}): "
            f"{self.summary()}.\nThe first of them:\n{self.first()}\n"
            f"All are listed in {self.list_file()}.\n"
            "Mend these rows first. A training goes on without them where a larger share is allowed: --set data.max_bad=0.5"
        )

    def list_file(self) -> Path:
        """The file that lists the problems; written into the cache when it was not written elsewhere before."""
        if self.path is None:
            content = "\n".join("\t".join(row) for row in self.rows).encode("utf-8", "backslashreplace")
            self.write(cache_dir() / "problems" / f"{blake2b(content, digest_size=8).hexdigest()}.tsv")
        return self.path


def heading(counts: Mapping[str, int]) -> str:
    """`left out: 3 missing image, 1 empty caption; 1 tar without its end mark` of numbers by kind."""
    rows = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if kind != OPEN_END)
    return "; ".join([*([f"left out: {rows}"] if rows else []), *([f"{counts[OPEN_END]:,} {OPEN_END}"] if OPEN_END in counts else [])])


def _one_line(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
