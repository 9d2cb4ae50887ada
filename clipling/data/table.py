"""CSV and TSV tables of image paths and captions: separator and columns are found out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from clipling.data.csvlines import SEPARATORS, Record, header_of, not_text, read_lines, records, separator_of
from clipling.data.problems import Problems
from clipling.data.reading import IMAGE_SUFFIXES, Options, Paths, Reading, choose, is_url, make_row, url_error
from clipling.errors import UserError

IMAGE_COLUMNS = ("filepath", "image", "img", "path", "file_name", "filename")
CAPTION_COLUMNS = ("title", "caption", "text", "description")
_EXAMPLE = "Name yours, for example"
URL_COLUMNS = ("url", "image_url", "img_url", "link", "image_link", "urls")


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are used; `caption` is None where captions may be absent and are."""

    image: str
    caption: str | None
    group: str | None


def read_table(path: Path, options: Options) -> Reading:
    """Rows of a CSV or TSV file, keyed by the image path as written (relative to the table where it lies below it).

    Raises:
        UserError: no such columns, links instead of files, not text, empty.
    """
    path = Path(path)
    lines = read_lines(path)
    separator = _separator(path, lines, options)
    header, start = header_of(lines, separator)
    if not_text("".join(header)):
        raise UserError(f"{path} is not UTF-8 text. Save it as UTF-8 (in spreadsheets: 'CSV UTF-8').")
    columns = find_columns(header, options, str(path), IMAGE_COLUMNS, CAPTION_COLUMNS)
    places = header.index(columns.image), header.index(columns.caption) if columns.caption else None
    found = records(lines, start, separator, len(header), places[0])
    first = list(islice(found, 100))
    if not options.links:
        _refuse_links(path, first, header, columns)
    reading = Reading(str(path), problems=Problems(str(path)), inputs=[str(path)])
    paths = Paths(path.parent)
    for part in (first, found):
        for record in part:
            _add(reading, record, header, columns, paths, options)
    return reading


def find_columns(header: Sequence[str], options: Options, where: str, images: Sequence[str], captions: Sequence[str]) -> Columns:
    """The columns to use. Raises UserError that names what was found, what is wanted and how to say it."""
    image = choose(header, images, options.image_column, "--image-column", where)
    caption = choose(header, captions, options.caption_column, "--caption-column", where)
    group = choose(header, (), options.group, "--group", where)
    shown = ", ".join(repr(name[:60]) for name in header[:20]) + (", ..." if len(header) > 20 else "")
    if image is None:
        links = choose(header, URL_COLUMNS, None, "", where)
        if links is not None and not options.links:
            raise url_error(where, links, caption)
        image = links
    if image is None:
        raise _no_image_column(where, shown, header, caption, options, images, captions)
    if caption is None and not options.captions_optional:
        rest = [name for name in header if name != image]
        raise UserError(
            f"{where}: no caption column. Its columns are: {shown}. Wanted is one of {', '.join(captions)}. "
            f"{_advice(rest, '--caption-column')}"
        )
    return Columns(image, caption, group)


def _no_image_column(
    where: str, shown: str, header: Sequence[str], caption: str | None, options: Options, images: Sequence[str], captions: Sequence[str]
) -> UserError:
    """Names the captions' column in the same message where that is missing too: else it would be the next one."""
    both = caption is None and not options.captions_optional
    what = "no image column and no caption column" if both else "no image column"
    wanted = f"Wanted is one of {', '.join(images)}{' and one of ' + ', '.join(captions) if both else ''}."
    rest = [name for name in header if name != caption]
    advice = _advice(rest, "--image-column")
    if both and len(rest) > 1 and advice.startswith(_EXAMPLE):
        advice += f" --caption-column '{rest[1][:60]}'"
    return UserError(f"{where}: {what}. Its columns are: {shown}. {wanted} {advice}")


def _advice(names: Sequence[str], flag: str) -> str:
    if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names):
        return "The first line must name the columns: put a line such as filepath,title above it."
    example = names[0][:60] if names and names[0] else "NAME"
    return f"{_EXAMPLE}: {flag} '{example}'"


def _separator(path: Path, lines: list[str], options: Options) -> str:
    if not any(line.strip() for line in lines):
        raise UserError(f"{path} is empty. Its first line must name the columns, such as filepath,title.")
    candidates = list(SEPARATORS.values())
    if path.suffix.lower() == ".tsv":
        candidates.sort(key=lambda character: character != "\t")
    fitting = [character for character in candidates if _fits(header_of(lines, character)[0], options)]
    if options.separator is not None:
        given = separator_of(options.separator)
        if fitting and given not in fitting and not _fits(header_of(lines, given)[0], options):
            name = next(name for name, character in SEPARATORS.items() if character == fitting[0])
            raise UserError(
                f"{path} is not separated by {options.separator!r}: read so, its columns are "
                f"{', '.join(repr(column) for column in header_of(lines, given)[0])}. "
                f"It looks separated by {name}: leave --separator out, or give --separator {name}."
            )
        return given
    if fitting:
        return fitting[0]
    return max(candidates, key=lambda character: len(header_of(lines, character)[0]))


def _fits(header: list[str], options: Options) -> bool:
    lower = {name.lower() for name in header}
    wanted = (*IMAGE_COLUMNS, *URL_COLUMNS) if options.links else IMAGE_COLUMNS
    image = options.image_column in header if options.image_column else not lower.isdisjoint(wanted)
    caption = options.caption_column in header if options.caption_column else not lower.isdisjoint(CAPTION_COLUMNS)
    return image and (caption or options.captions_optional)


def _refuse_links(path: Path, first: list[Record], header: list[str], columns: Columns) -> None:
    place = header.index(columns.image)
    values = [record.fields[place] for record in first if record.fields and record.fields[place].strip()]
    if values and is_url(values[0]):
        raise url_error(str(path), columns.image, columns.caption)


def _add(reading: Reading, record: Record, header: list[str], columns: Columns, paths: Paths, options: Options) -> None:
    where = f"{Path(reading.origin).name} line {record.line}"
    if record.error:
        reading.problems.add("unparsable line", where, record.error)
        return
    if any(map(not_text, record.fields)):
        reading.problems.add("not UTF-8", where, "the line has bytes that are not UTF-8 text")
        return
    values = dict(zip(header, record.fields))
    captions = [values[columns.caption]] if columns.caption else []
    row = make_row(values[columns.image], captions, paths, where, reading.problems, options)
    if row is None:
        return
    row.group = values[columns.group].strip() if columns.group else ""
    used = (columns.image, columns.caption, columns.group)
    row.extras = {name: text for name, text in values.items() if name not in used and text.strip()}
    reading.rows.append(row)
