"""Parquet and arrow tables: image paths, or the images themselves as Hugging Face datasets and img2dataset store them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from clipling.data.arrow import ArrowFile, splits_of
from clipling.data.pairs import Location, Row, hash_bytes
from clipling.data.problems import Problems
from clipling.data.reading import (
    Options,
    Paths,
    Reading,
    clean_captions,
    clean_key,
    is_url,
    make_row,
    text_of,
    texts_of,
    url_error,
)
from clipling.data.table import CAPTION_COLUMNS, IMAGE_COLUMNS, Columns, find_columns
from clipling.errors import UserError, missing_extra
from clipling.store import atomic_produce, cache_dir

_IMAGES = (*IMAGE_COLUMNS, "jpg", "png")
_CAPTIONS = (*CAPTION_COLUMNS, "captions")


def read_tables(paths: Sequence[Path], options: Options) -> list[Reading]:
    """`read_parquet` of each; files that are named by their splits give their rows that `split`."""
    splits = splits_of(list(paths))
    readings = []
    for path in paths:
        reading = read_parquet(path, options)
        for row in reading.rows if path in splits else ():
            row.extras.setdefault("split", splits[path])
        readings.append(reading)
    return readings


def read_parquet(path: Path, options: Options) -> Reading:
    """Rows of a parquet or arrow file whose image column holds paths, bytes, or Hugging Face's `{bytes, path}`.

    Images inside the file are copied once into one file of the cache, so that each can be read at random; equal
    images become one pair, keyed by `path` where those are all different, otherwise by row number.

    Raises:
        UserError: not parquet, no such columns, links.
    """
    path = Path(os.path.abspath(path))
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra("pyarrow, which reads parquet files,", "train") from error
    reading = Reading(str(path), problems=Problems(str(path)), inputs=[str(path)])
    try:
        with ArrowFile(path) if path.suffix == ".arrow" else pyarrow.parquet.ParquetFile(path) as file:
            columns = find_columns(file.schema_arrow.names, options, str(path), _IMAGES, _CAPTIONS)
            wanted = [name for name in file.schema_arrow.names if name == columns.image or not _is_bytes(file, name)]
            _read(file, path, wanted, columns, reading, options)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    return reading


def columns_of(path: Path) -> list[str]:
    """The names of the columns. Raises what pyarrow raises for a damaged file, and ImportError without pyarrow."""
    import pyarrow.parquet

    return ArrowFile(path).schema_arrow.names if path.suffix == ".arrow" else pyarrow.parquet.read_schema(path).names


def _is_bytes(file: Any, name: str) -> bool:
    import pyarrow

    kind = file.schema_arrow.field(name).type
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def _read(file: Any, path: Path, wanted: list[str], columns: Columns, reading: Reading, options: Options) -> None:
    kind = file.schema_arrow.field(columns.image).type
    if _is_bytes(file, columns.image) or str(kind).startswith("struct"):
        stamp = os.stat(path)
        name = blake2b(f"{path}\0{stamp.st_size}\0{stamp.st_mtime_ns}\0{columns.image}".encode()).hexdigest()[:32]
        copy = cache_dir() / "embedded" / f"{name}.bin"
        if not copy.exists():
            atomic_produce(copy, lambda temporary: _copy_images(file, columns.image, temporary))
        _add_embedded(file, path, wanted, columns, copy, reading, options)
        return
    paths = Paths(path.parent)
    for number, record in enumerate(_records(file, wanted)):
        where, written = f"{path.name} row {number}", record[columns.image]
        if number == 0 and isinstance(written, str) and is_url(written) and not options.links:
            raise url_error(str(path), columns.image, columns.caption)
        row = make_row(written, _captions(record, columns), paths, where, reading.problems, options)
        if row is not None:
            reading.rows.append(_finish(row, record, columns))


def _records(file: Any, wanted: list[str]) -> Iterator[dict]:
    for batch in file.iter_batches(batch_size=1024, columns=wanted):
        yield from batch.to_pylist()


def _image_of(value: Any) -> tuple[bytes, str]:
    if isinstance(value, dict):
        return value.get("bytes") or b"", value.get("path") or ""
    return value or b"", ""


def _copy_images(file: Any, column: str, temporary: Path) -> None:
    seen: set[str] = set()
    with open(temporary, "wb") as out:
        for record in _records(file, [column]):
            data, _ = _image_of(record[column])
            if data and (digest := hash_bytes(data)) not in seen:
                seen.add(digest)
                out.write(data)


def _add_embedded(file: Any, path: Path, wanted: list[str], columns: Columns, copy: Path, reading: Reading, options: Options) -> None:
    places: dict[str, Location] = {}
    names: dict[str, str] = {}
    end = 0
    for number, record in enumerate(_records(file, wanted)):
        where = f"{path.name} row {number}"
        data, name = _image_of(record[columns.image])
        captions = clean_captions(_captions(record, columns))
        if not data and name and os.path.isfile(name):  # Hugging Face's Image may name a file instead
            row = Row(clean_key(name), captions, Location(os.path.abspath(name)))
            if captions or options.captions_optional:
                reading.rows.append(_finish(row, record, columns))
            else:
                reading.problems.add("empty caption", where, "no caption")
            continue
        if not data:
            reading.problems.add("no image", where, "the image column holds no bytes")
            continue
        digest = hash_bytes(data)
        if digest not in places:
            places[digest] = Location(str(copy), end, len(data))
            names[digest] = name
            end += len(data)
        if not captions and not options.captions_optional:
            reading.problems.add("empty caption", where, "no caption")
            continue
        row = Row(f"{path.stem}/{number:08d}", captions, places[digest])
        reading.rows.append(_finish(row, record, columns))
    used = [names[digest] for digest in places]
    if all(used) and len(set(used)) == len(used):
        key_of = {place: clean_key(names[digest]) for digest, place in places.items()}
        for row in reading.rows:
            row.key = key_of.get(row.location, row.key)


def _captions(record: dict, columns: Columns) -> list[str]:
    return (texts_of(record[columns.caption]) or []) if columns.caption else []


def _finish(row: Row, record: dict, columns: Columns) -> Row:
    row.group = text_of(record[columns.group]) if columns.group else ""
    used = (columns.image, columns.caption, columns.group)
    row.extras = {name: value for name, value in record.items() if name not in used and _is_plain(value)}
    return row


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, (str, int, float, bool))
