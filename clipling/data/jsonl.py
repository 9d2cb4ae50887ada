"""JSON lines: one object a line with an image path and one or several captions."""

from __future__ import annotations

import json
from pathlib import Path

from clipling.data.pairs import Row
from clipling.data.problems import Problems
from clipling.data.reading import (
    Options,
    Paths,
    Reading,
    field_of,
    is_url,
    make_row,
    text_of,
    texts_of,
    url_error,
)
from clipling.data.table import URL_COLUMNS, find_columns
from clipling.errors import UserError, near

IMAGE_FIELDS = ("image", "file_name", "filepath", "path")
CAPTION_FIELDS = ("caption", "captions", "text", "title", "description")


def read_jsonl(path: Path, options: Options) -> Reading:
    """Rows of a JSONL file, keyed by the image path as written. Captions are a string or a list of strings.

    Fields may be given as paths: `lang.de` is the field `de` of the object `lang`.

    Raises:
        UserError: a given field is in no line; the file's first object lacks an image or captions; links.
    """
    path = Path(path)
    reading = Reading(str(path), problems=Problems(str(path)), inputs=[str(path)])
    records = _records(path, reading.problems)
    if not records:
        raise UserError(f"{path} holds no JSON object. Each line must be one, such as {_EXAMPLE}")
    _check_given(path, [record for _, record in records], options)
    paths = Paths(path.parent)
    for where, record in records:
        row = _row(record, where, reading.problems, paths, options)
        if row is not None:
            reading.rows.append(row)
    if not reading.rows:
        _explain(path, records[0][1], options)
    return reading


_EXAMPLE = '{"image": "pictures/1.jpg", "captions": ["a dog", "a brown dog"]}'


def _records(path: Path, problems: Problems) -> list[tuple[str, dict]]:
    found = []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name} line {number}"
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            problems.add("unparsable line", where, f"not JSON: {error}"[:300])
            continue
        if isinstance(record, dict):
            found.append((where, record))
        else:
            problems.add("unparsable line", where, "not a JSON object")
    return found


def _check_given(path: Path, records: list[dict], options: Options) -> None:
    given = {"--image-column": options.image_column, "--caption-column": options.caption_column}
    for flag, name in {**given, "--group": options.group}.items():
        if name is not None and all(field_of(record, name) is None for record in records):
            raise UserError(
                f"{path}: no line has the field {name!r} ({flag}). The first line has: "
                f"{', '.join(map(repr, records[0]))}. {near(name, records[0])}"
            )


def _name(record: dict, given: str | None, wanted: tuple[str, ...]) -> str | None:
    return given if given is not None else next((name for name in wanted if record.get(name) is not None), None)


def _row(record: dict, where: str, problems: Problems, paths: Paths, options: Options) -> Row | None:
    wanted = (*IMAGE_FIELDS, *URL_COLUMNS) if options.links else IMAGE_FIELDS
    image = _name(record, options.image_column, wanted)
    caption = _name(record, options.caption_column, CAPTION_FIELDS)
    value = field_of(record, caption) if caption else None
    captions = [] if value is None else texts_of(value)
    if captions is None:
        problems.add("unparsable line", where, "the captions are neither a string nor a list of strings")
        return None
    row = make_row(field_of(record, image) if image else None, captions, paths, where, problems, options)
    if row is None:
        return None
    row.group = text_of(field_of(record, options.group)) if options.group else ""
    used = (image, caption, options.group)
    row.extras = {name: value for name, value in record.items() if name not in used and value is not None}
    return row


def _explain(path: Path, record: dict, options: Options) -> None:
    """No line gave a row: says so when names or links are the reason, and leaves other reasons to the problems."""
    names = [*record, *(name for name in (options.image_column, options.caption_column, options.group) if name)]
    columns = find_columns(names, options, str(path), IMAGE_FIELDS, CAPTION_FIELDS)
    value = field_of(record, columns.image)
    if isinstance(value, str) and is_url(value) and not options.links:
        raise url_error(str(path), columns.image, columns.caption)
