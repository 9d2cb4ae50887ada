"""A file of own queries: what users type, and which pictures are right for it, by grade."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipling.data.csvlines import SEPARATORS, header_of, not_text, read_lines, records
from clipling.data.pairs import clean_caption
from clipling.data.problems import Problems
from clipling.errors import UserError

MAX_BAD = 0.1
MAX_GRADE = 1000
_GRADE = re.compile(r"[0-9]+(\.0*)?")
_WANTED = "the columns query, key (of a picture) and, if you like, grade (a whole number from 0; 1 without it)"


@dataclass(frozen=True)
class Queries:
    """Queries and their judgements.

    texts: [Q], each once, in the order of the file.
    grades: [Q] the grade of every judged picture by its key; 0 is judged and wrong, as is what is not named.
    rows: how many the file holds, the unusable `problems` included.
    unread: names of further columns.
    """

    texts: list[str]
    grades: list[dict[str, int]]
    rows: int
    problems: Problems = field(default_factory=Problems)
    unread: tuple[str, ...] = ()

    def keys(self) -> list[str]:
        """Every key that is named, once."""
        return list(dict.fromkeys(key for grades in self.grades for key in grades))


@dataclass(frozen=True)
class _Row:
    """One row as it stands; `wrong` says why it cannot be read."""

    where: str
    values: Mapping[str, Any]
    wrong: str = ""


def read_queries(path: Path | str) -> Queries:
    """Queries of a .csv, .tsv or .jsonl file with `query`, `key` and perhaps `grade`; a row each for a query and a picture.

    Rows that cannot be used (blank query or key, a grade that is no whole number from 0 to 1000, damaged lines) are left out and
    listed in `problems`. A row that says again what was said is passed over.

    Raises:
        UserError: no such file, another format, missing columns, more than 10 % unusable rows, a picture with two grades for one
            query, nothing left.
    """
    path = Path(path)
    readers = {".csv": _table, ".tsv": _table, ".jsonl": _jsonl}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: queries are read from .csv, .tsv or .jsonl, with {_WANTED}")
    try:
        names, rows = readers[path.suffix.lower()](path)
    except OSError as error:
        raise UserError(f"the queries in {path} cannot be read: {error.strerror or error}") from error
    problems, found, count = Problems(str(path)), {}, 0
    for count, row in enumerate(rows, start=1):  # noqa: B007
        wrong = row.wrong or _judgement(row, path, found)
        if wrong:
            problems.add("unusable row", row.where, wrong)
    if len(problems) > MAX_BAD * count:
        raise UserError(
            f"{path}: {len(problems)} of {count} rows cannot be used (at most {MAX_BAD:.0%} may be bad). Mend them first:\n"
            f"{problems.first()}"
        )
    if not found:
        raise UserError(f"{path} holds no queries. It needs {_WANTED}, a row for each query and picture.")
    unread = tuple(name for name in names if name.lower() not in ("query", "key", "grade"))
    return Queries(list(found), list(found.values()), count, problems, unread)


def _judgement(row: _Row, path: Path, found: dict[str, dict[str, int]]) -> str:
    """Adds a row to `found`; or says why it cannot be used."""
    query, key = (_text(row.values.get(name)) for name in ("query", "key"))
    grade = _grade(row.values.get("grade"))
    if query is None or not (query := clean_caption(query)):
        return "the query is blank, or not text"
    if key is None or not (key := key.strip()):
        return "the key is blank, or not text"
    if grade is None:
        return f"the grade is {row.values['grade']!r}; expected a whole number from 0 to {MAX_GRADE}"
    known = found.setdefault(query, {})
    if known.setdefault(key, grade) != grade:
        raise UserError(f"{path}: {key!r} has the grades {known[key]} and {grade} for {query!r} ({row.where}). Keep one of these rows.")
    return ""


def _text(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else None


def _grade(value: Any) -> int | None:
    """The grade, 1 when it was left out, None when it is none. Spreadsheets and tables of numbers write 2 as 2.0."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return 1
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    text = str(value).strip()
    if not _GRADE.fullmatch(text) or len(text.partition(".")[0].lstrip("0")) > len(str(MAX_GRADE)):
        return None
    grade = int(text.partition(".")[0])
    return grade if grade <= MAX_GRADE else None


def _table(path: Path) -> tuple[list[str], Iterator[_Row]]:
    """(column names, rows) of a CSV or TSV file; other separators than a comma are found out."""
    lines = read_lines(path)
    candidates = sorted(SEPARATORS.values(), key=lambda character: (character == "\t") != (path.suffix.lower() == ".tsv"))
    fitting = [character for character in candidates if {"query", "key"} <= set(_lower(header_of(lines, character)[0]))]
    if not fitting:
        first = max((header_of(lines, character)[0] for character in candidates), key=len)
        shown = ", ".join(repr(name[:60]) for name in first[:20]) or "nothing"
        raise UserError(f"{path}: the first line must name {_WANTED}; it has {shown}")
    header, start = header_of(lines, fitting[0])
    names = _lower(header)

    def rows() -> Iterator[_Row]:
        for record in records(lines, start, fitting[0], len(header), names.index("key")):
            where = f"line {record.line}"
            if record.error or any(map(not_text, record.fields)):
                yield _Row(where, {}, record.error or "the line has bytes that are not UTF-8 text")
            else:
                yield _Row(where, dict(zip(names, record.fields)))

    return header, rows()


def _lower(header: list[str]) -> list[str]:
    return [name.lower() for name in header]


def _jsonl(path: Path) -> tuple[list[str], Iterator[_Row]]:
    """(field names, rows) of a file with an object a line."""
    rows, names = [], {}
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            values = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            rows.append(_Row(where, {}, f"not JSON: {error}"[:300]))
            continue
        if not isinstance(values, dict):
            rows.append(_Row(where, {}, "not a JSON object"))
            continue
        names.update(dict.fromkeys(values))
        rows.append(_Row(where, {name.lower(): value for name, value in values.items()}))
    return list(names), iter(rows)
