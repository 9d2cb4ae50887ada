"""CSV text into records: one damaged line costs one record, and a stray quote never swallows the lines after it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clipling.data.reading import IMAGE_SUFFIXES
from clipling.errors import UserError

SEPARATORS = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|"}


@dataclass(frozen=True)
class Record:
    """One record: the number of its first line (from 1), its fields, or what is wrong with it."""

    line: int
    fields: list[str]
    error: str = ""


def read_lines(path: Path) -> list[str]:
    """The lines of a text file with their ends: UTF-8 with or without mark, or UTF-16 with one.

    Bytes that are not UTF-8 come back as lone surrogates, see `not_text`.
    """
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = data.decode("utf-16", "replace")
    else:
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    # Not str.splitlines: a caption may hold U+2028 or a form feed. An empty `newline` keeps \r\n, \r and \n as they are.
    return list(io.StringIO(text, newline=""))


def not_text(text: str) -> bool:
    """Whether bytes that are not UTF-8 stood in the text."""
    if text.isascii():
        return False
    return any("\udc80" <= letter <= "\udcff" for letter in text)


def separator_of(given: str) -> str:
    """`tab` or a tab itself, and so on. Raises UserError for what cannot separate fields."""
    character = SEPARATORS.get(given.lower(), "\t" if given == "\\t" else given)
    if len(character) != 1 or character in '"\r\n':
        raise UserError(f"--separator {given!r}: give one character, or one of {', '.join(SEPARATORS)}")
    return character


def header_of(lines: list[str], separator: str) -> tuple[list[str], int]:
    """The column names of the first line that is not empty, and how many lines were used up. Names are made distinct."""
    for record, end in _records(lines, 0, separator):
        if record.error or any(field.strip() for field in record.fields):
            # A damaged header is cut plainly, so that an error message can show it.
            names = record.fields if not record.error else lines[record.line - 1].rstrip("\r\n").split(separator)
            return _distinct([name.strip() for name in names]), end
    return [], len(lines)


def records(lines: list[str], start: int, separator: str, width: int, image: int) -> Iterator[Record]:
    """The records from line number `start` (from 0) on; empty lines are passed over.

    Args:
        width: number of columns of the header.
        image: number of the image column. A line of a quoted field that has all columns and a picture's name in the
            image column is a row that a stray quote swallowed.

    A line that is wrong gives a record with an `error` and reading goes on with the next line. Tab-separated files are
    often written without any quoting: there a line that cannot be read as quoted is cut at its tabs.
    """
    while start < len(lines):
        for record, end in _records(lines, start, separator):
            swallowed = any(_is_row(lines[n], separator, width, image) for n in range(record.line, end))
            if record.error or swallowed:
                yield _plain(lines[record.line - 1], record, separator, width, image)
                start = record.line
                break  # read again from the line after the damaged one
            start = end
            if any(field.strip() for field in record.fields):
                yield _fitted(record, width)


def _records(lines: list[str], start: int, separator: str) -> Iterator[tuple[Record, int]]:
    """Records with the number of the line after each; the first error is the last record."""
    end = start

    def feed() -> Iterator[str]:
        nonlocal end
        while end < len(lines):
            end += 1
            yield lines[end - 1]

    reader = csv.reader(feed(), delimiter=separator, strict=True)
    while True:
        first = end
        try:
            yield Record(first + 1, next(reader)), end
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(first + 1, [], str(error)), end
            return


def _is_row(line: str, separator: str, width: int, image: int) -> bool:
    fields = line.rstrip("\r\n").split(separator)
    return (
        len(fields) == width
        and '"' not in separator.join(fields[: image + 1])
        and Path(fields[image].strip()).suffix.lower() in IMAGE_SUFFIXES
    )


def _plain(line: str, record: Record, separator: str, width: int, image: int) -> Record:
    if separator == "\t" and _is_row(line, separator, width, image):
        return Record(record.line, line.rstrip("\r\n").split(separator))
    reason = record.error or "a quote opens here and closes after other rows"
    return Record(record.line, [], f"quotes do not match ({reason})")


def _fitted(record: Record, width: int) -> Record:
    fields = record.fields
    while len(fields) > width and not fields[-1].strip():
        fields = fields[:-1]  # spreadsheets leave empty columns at the end
    if len(fields) != width:
        more = " (put fields that hold the separator into quotes)" if len(fields) > width else ""
        return Record(record.line, [], f"{len(fields)} fields where the header has {width}{more}")
    return Record(record.line, fields)


def _distinct(names: list[str]) -> list[str]:
    taken: set[str] = set()
    for i, name in enumerate(names):
        number = 1
        while names[i] in taken:
            number += 1
            names[i] = f"{name}.{number}"
        taken.add(names[i])
    return names
