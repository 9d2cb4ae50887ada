"""Photos without captions, and texts without photos: what distillation can learn from.

`Pairs` of them have no caption rows of their own (`unpaired`): `captions` are texts that belong to no photo, and a training
batch draws from all of them for every photo. Without any texts there is one, the empty one: nothing is ever said of a photo.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from clipling.data.csvlines import SEPARATORS, header_of, not_text, read_lines, records
from clipling.data.jsonl import CAPTION_FIELDS
from clipling.data.pairs import Pairs, Row, clean_caption
from clipling.data.reading import choose, field_of, texts_of
from clipling.data.source import open_pairs
from clipling.data.table import CAPTION_COLUMNS
from clipling.errors import UserError

NO_CAPTION = ""


def open_photos(
    spec: str,
    *,
    image_column: str | None = None,
    group: str | None = None,
    separator: str | None = None,
    max_bad: float = 0.1,
) -> Pairs:
    """The photos of a source, without any captions that it may have.

    spec: as for `open_pairs`: a folder with photos at any depth, tars, tables, `demo:emoji`, several joined by `::`. The
    other arguments as there. Photos of equal bytes are one pair: the first, which takes a group or extras that it lacks from
    the others. Broken ones are left out and listed.

    Raises UserError for what is wrong with the source, or with more than `max_bad` of its rows.
    """
    options = {"image_column": image_column, "group": group, "separator": separator}
    return bare(open_pairs(spec, **options, max_bad=max_bad, captions_optional=True))


def bare(pairs: Pairs) -> Pairs:
    """The photos of pairs, equal ones once, and no caption."""
    rows: list[Row] = []
    hashes: list[str] = []
    known: dict[str, Row] = {}
    for i, found in enumerate(pairs.hashes):
        row = pairs.row(i)
        row.captions = []
        if found not in known:
            rows.append(row)
            hashes.append(found)
            if found:
                known[found] = row
        else:
            same = known[found]
            same.group = same.group or row.group
            same.extras = {**row.extras, **same.extras}
    photos = Pairs.from_rows(pairs.name, rows, hashes, pairs.problems)
    photos.captions, photos.unpaired = [NO_CAPTION], True
    return photos


def with_texts(photos: Pairs, texts: Sequence[str]) -> Pairs:
    """The same photos beside texts that belong to none of them: any of the texts may be drawn for any photo.

    Raises UserError without texts.
    """
    if not texts:
        raise UserError("the list of texts is empty: give at least one text, or no list")
    photos = bare(photos)
    photos.captions = list(texts)
    return photos


def read_texts(path: Path | str) -> list[str]:
    """The texts of a list, in order, without blanks around them and without empty ones.

    path: `.txt` (one a line), `.jsonl` (a field `caption`, `captions`, `text` or `title`), or `.csv` / `.tsv` (a column
    `title`, `caption` or `text`). Repeats are kept: they are drawn as often as they are written.

    Raises UserError for a file that is missing, is not UTF-8, holds no text or a damaged line.
    """
    path = Path(path).expanduser()
    readers = {".txt": _lines, ".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _table, ".tsv": _table}
    if not path.is_file():
        raise UserError(f"{path} is not a file. A list of texts is a .txt with one text a line, a .jsonl or a .csv")
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} is not a list of texts. Give a .txt with one text a line, a .jsonl, .csv or .tsv")
    try:
        lines = read_lines(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    for number, line in enumerate(lines, start=1):
        if not_text(line):
            raise UserError(f"{path} line {number} is not UTF-8 text. Save the list as UTF-8")
    texts = [text for text in map(clean_caption, readers[path.suffix.lower()](path, lines)) if text]
    if not texts:
        raise UserError(f"{path} holds no text: every line is empty")
    return texts


def _lines(path: Path, lines: list[str]) -> list[str]:
    return lines


def _json_lines(path: Path, lines: list[str]) -> list[str]:
    texts: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number} is not JSON: {error}") from error
        values = [field_of(record, name) for name in CAPTION_FIELDS] if isinstance(record, dict) else []
        found = next((texts_of(value) for value in values if value is not None), None)
        if found is None:
            raise UserError(f"{path} line {number} has no text: wanted is an object with a field {', '.join(CAPTION_FIELDS)}")
        texts.extend(found)
    return texts


def _table(path: Path, lines: list[str]) -> list[str]:
    likely = "\t" if path.suffix.lower() == ".tsv" else ","
    for separator in sorted(SEPARATORS.values(), key=lambda character: character != likely):
        header, start = header_of(lines, separator)
        column = choose(header, CAPTION_COLUMNS, None, "", str(path))
        if column is None:
            continue
        place = header.index(column)
        found = list(records(lines, start, separator, len(header), place))
        for record in found:
            if record.error:
                raise UserError(f"{path} line {record.line}: {record.error}")
        return [record.fields[place] for record in found]
    raise UserError(f"{path} has no column of texts: its first line must name one of {', '.join(CAPTION_COLUMNS)}")
