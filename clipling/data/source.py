"""Opens a source by its spec: a folder, a table, JSON lines, parquet, webdataset tars, a demo, or several."""

from __future__ import annotations

import json
import os
from dataclasses import astuple
from pathlib import Path
from shlex import quote

from clipling.data import index
from clipling.data.arrow import parquet_files, saved_dataset
from clipling.data.csvlines import SEPARATORS, header_of, read_lines, separator_of
from clipling.data.folder import read_folder
from clipling.data.jsonl import read_jsonl
from clipling.data.packed import warn_of_a_part
from clipling.data.pairs import Pairs
from clipling.data.parquet import columns_of, read_tables
from clipling.data.problems import Problems
from clipling.data.reading import Options, Reading, field_of, is_url
from clipling.data.shards import expand_braces, read_shards
from clipling.data.table import read_table
from clipling.errors import UserError, near

_TABLES = (".csv", ".tsv")
_JSON_LINES = (".jsonl", ".ndjson")
_IN_FOLDER = ("captions.csv", "captions.tsv", "metadata.jsonl", "captions.jsonl", "metadata.csv", "metadata.parquet")
_KINDS = (
    "a folder (of pictures, tars, parquet files or a saved Hugging Face dataset), .csv, .tsv, .jsonl, .parquet, .tar (with ranges such as "
    "{00000..00005}), demo:emoji or demo:toyworld"
)


def open_pairs(
    spec: str,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    group: str | None = None,
    separator: str | None = None,
    max_bad: float = 0.1,
    captions_optional: bool = False,
) -> Pairs:
    """The pairs of a source; every image is looked at once, and the index that this makes is kept.

    Args:
        spec: a folder, a file, tars with brace ranges, `demo:emoji`, `demo:toyworld?pairs=2000&seed=3`, or several joined by `::`.
        image_column, caption_column: columns (or JSON fields, `lang.de` for nested ones) where their names say little.
        group: the column or field of what stays on one side of a split, such as a product.
        separator: of CSV, where it is not found out: `tab`, `comma`, `semicolon`, `pipe` or a character.
        max_bad: the share of rows that may be unusable; they are left out and listed.
        captions_optional: whether images without captions are wanted too.

    Raises:
        UserError: what is wrong with the source, or with more than `max_bad` of its rows, and what to do.
    """
    options = Options(image_column, caption_column, group, separator, captions_optional)
    if str(spec).strip().startswith("demo:") and "::" not in str(spec):
        return _open_demo(str(spec).strip(), options)
    parts = [resolve(part.strip()) for part in str(spec).split("::")]
    _refuse_ignored(options, {kind for kind, _ in parts}, spec)
    # The current folder counts: relative paths of a table may start there.
    cache = index.index_path([(kind, *map(str, paths)) for kind, paths in parts], astuple(options), os.getcwd())
    found = index.kept(cache, lambda: _read_all(parts, options), str(spec))
    problems = Problems(str(spec), found.problems)
    check_usable(problems, len(found.rows), max_bad)
    return Pairs.from_rows(str(spec), found.rows, found.hashes, problems)


def read_parts(spec: str, options: Options) -> list[Reading]:
    """What the readers find in the parts of a spec, before any picture is looked at. Raises UserError as `open_pairs` does."""
    parts = [resolve(part.strip()) for part in str(spec).split("::")]
    _refuse_ignored(options, {kind for kind, _ in parts}, spec)
    return _read_all(parts, options)


def _read_all(parts: list[tuple[str, list[Path]]], options: Options) -> list[Reading]:
    """The readings of all parts; their rows know the number of theirs."""
    readings = []
    for number, (kind, paths) in enumerate(parts):
        for reading in _read(kind, paths, options):
            for row in reading.rows:
                row.part = number
            readings.append(reading)
    return readings


def check_usable(problems: Problems, good: int, max_bad: float) -> None:
    """Lists the problems in a file, and raises UserError when they are too many or nothing is left."""
    problems.check(good + len(problems), max_bad)
    if not good:
        listed = f": {problems.summary()}.\n{problems.first()}" if len(problems) else "."
        raise UserError(f"{problems.name} has no usable pair{listed}")
    if len(problems):
        problems.list_file()


DEMO = ("demo:emoji", "demo:emoji/train", "demo:emoji/val", "demo:emoji/test")
TOYWORLD = "demo:toyworld"


def is_toyworld(spec: str) -> bool:
    """Whether a spec is a ToyWorld's, with knobs behind `?` or without."""
    return spec.partition("?")[0] == TOYWORLD


def demo_split(spec: str) -> str | None:
    """`test` of `demo:emoji/test`, None of `demo:emoji`. Raises UserError for what is not there."""
    if spec not in DEMO:
        raise UserError(f"there is no {spec!r}. {near(spec, (*DEMO, TOYWORLD))}")
    return spec.partition("/")[2] or None


def _open_demo(spec: str, options: Options) -> Pairs:
    wanted = _check_demo(spec)
    if options != Options(captions_optional=options.captions_optional):
        raise UserError(f"{spec} has its own columns and groups: leave the options for columns out")
    if is_toyworld(spec):
        from clipling.data.toyworld import open_world, parse_world

        pairs = open_world(parse_world(spec))
        pairs.name = spec
        return pairs
    from clipling.data.emoji import open_emoji

    pairs = open_emoji()
    if wanted is None:
        return pairs
    part = pairs.subset([i for i, extras in enumerate(pairs.extras) if extras["split"] == wanted])
    part.name = spec
    return part


def _check_demo(spec: str) -> str | None:
    """The split that a demo's spec names, or None. Raises UserError for a demo, split or knob that is not there."""
    if not is_toyworld(spec):
        return demo_split(spec)
    from clipling.data.toyworld_world import parse_world

    parse_world(spec)
    return None


def resolve(part: str) -> tuple[str, list[Path]]:
    """(kind, files) of one part of a spec. Raises UserError for what is missing or is not a source."""
    if part.startswith("demo:"):
        _check_demo(part)
        return "demo", [Path(part)]
    if not part:
        raise UserError(f"the source has an empty part. Give {_KINDS}; several are joined by '::'")
    if is_url(part):
        raise UserError(
            f"{part} is not on this machine: download it first, once, with\n  clipling data pack {quote(part)} FOLDER\n"
            "(it goes on where it was stopped, and shrinks the pictures to what training needs), then give FOLDER"
        )
    paths = _files(part)
    if len(paths) == 1 and paths[0].is_dir():
        return _in_folder(paths[0])
    kinds = {_kind(path) for path in paths}
    if len(kinds) > 1:
        raise UserError(f"{part} stands for files of several kinds ({', '.join(sorted(kinds))}): join them by '::'")
    return kinds.pop(), paths


def _files(part: str) -> list[Path]:
    path = Path(os.path.abspath(Path(part).expanduser()))
    if _exists(path):
        return [path]
    if "*" in path.name or "?" in path.name:
        paths = sorted(path.parent.glob(path.name))
        if not paths:
            raise UserError(f"{part}: no file in {path.parent} fits {path.name!r}")
        return paths
    paths = [Path(name) for name in expand_braces(str(path))]
    missing = [name for name in paths if not _exists(name)]
    if not missing:
        return paths
    if len(paths) > 1:
        shown = ", ".join(str(name) for name in missing[:3])
        raise UserError(f"{part}: {len(missing)} of {len(paths)} files do not exist: {shown}{' ...' * (len(missing) > 3)}")
    parent = path.parent
    while not _exists(parent) and parent != parent.parent:
        parent = parent.parent
    lost = path.relative_to(parent).parts[0]
    there = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    advice = f"In {parent}: {near(lost, there, 'there is')}" if there else f"{parent} is empty."
    raise UserError(f"{part[:300]} does not exist. A source is {_KINDS}. {advice[:1000]}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or one that cannot be a name
        return False


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if path.is_dir():
        return "folder"
    if suffix in _TABLES:
        return "table"
    if suffix in _JSON_LINES:
        return "jsonl"
    if suffix in (".parquet", ".tar"):
        return suffix[1:]
    if suffix == ".arrow":
        return "parquet"
    if suffix in (".gz", ".tgz", ".zip", ".xz", ".bz2", ".zst"):
        raise UserError(f"{path.name} is packed: unpack it first. Images in a plain .tar can be read at random.")
    if suffix == ".json":
        raise UserError(f"{path.name}: a .json file is one object. Save one object a line, as .jsonl.")
    if suffix in (".xls", ".xlsx", ".ods"):
        raise UserError(f"{path.name}: save the table as CSV (UTF-8) first.")
    raise UserError(f"{path.name} is not a source. A source is {_KINDS}.")


def _in_folder(folder: Path) -> tuple[str, list[Path]]:
    """A folder is read by the table in it, as the tars, the dataset or the parquet files in it, or else by the .txt beside its images."""
    for name in _IN_FOLDER:
        if (folder / name).is_file():
            return _kind(folder / name), [folder / name]
    tars = sorted(folder.glob("*.tar"))
    if tars:
        warn_of_a_part(folder)
        return "tar", tars
    tables = saved_dataset(folder) or parquet_files(folder)
    return ("parquet", tables) if tables else ("folder", [folder])


_READ_BY = {
    "image_column": {"table", "jsonl", "parquet"},
    "caption_column": {"table", "jsonl", "parquet", "tar"},
    "group": {"table", "jsonl", "parquet", "tar"},
    "separator": {"table"},
}


def _refuse_ignored(options: Options, kinds: set[str], spec: str) -> None:
    for name, readers in _READ_BY.items():
        value = getattr(options, name)
        if value is not None and kinds.isdisjoint(readers):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {value!r} says nothing about {spec}, which is {' and '.join(sorted(kinds))}: leave it out")


def fitting_options(spec: str, given: dict[str, str | None], other: str) -> dict[str, str | None]:
    """Options of the source `other` that say something about `spec` too; None for those that do not.

    A table, JSON lines or parquet must have the column (a table more than one column by that separator); tars take
    options of tars only.
    """
    parts = [resolve(part.strip()) for part in spec.split("::")]
    tars = "tar" in {resolve(part.strip())[0] for part in other.split("::")}
    fitting: dict[str, str | None] = {}
    for name, value in given.items():
        files = [(kind, path) for kind, paths in parts if kind in _READ_BY[name] for path in paths]
        fits = value is not None and files and all(tars if kind == "tar" else _has(kind, path, name, value) for kind, path in files)
        fitting[name] = value if fits else None
    return fitting


def _has(kind: str, path: Path, name: str, value: str) -> bool:
    """Whether an option says something about a file. A file that cannot be read takes all: its reader says what is wrong."""
    try:
        if kind == "table":
            lines = read_lines(path)
            if name == "separator":
                return len(header_of(lines, separator_of(value))[0]) > 1
            return any(value in header_of(lines, character)[0] for character in SEPARATORS.values())
        if kind == "jsonl":
            return any(field_of(_object(line), value) is not None for line in read_lines(path))
        return value in columns_of(path)
    except (OSError, ValueError, ImportError):
        return True


def _object(line: str) -> dict:
    """The JSON object of a line; an empty one where there is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _read(kind: str, paths: list[Path], options: Options) -> list[Reading]:
    try:
        if kind == "demo":
            pairs = _open_demo(paths[0].as_posix(), Options())
            files = sorted({location.path for location in pairs.locations})
            rows = [pairs.row(i) for i in range(len(pairs))]
            # Tars of a world lie in a folder of its own, whose name tells two worlds apart.
            origin = Path(files[0]).parent.name if is_toyworld(paths[0].as_posix()) else "demo-emoji"
            return [Reading(origin, rows, pairs.problems, files)]
        if kind == "tar":
            return read_shards(paths, options)
        if kind == "parquet":
            return read_tables(paths, options)
        reader = {"table": read_table, "jsonl": read_jsonl, "folder": read_folder}[kind]
        return [reader(path, options) for path in paths]
    except OSError as error:
        raise UserError(f"{error.filename or paths[0]} cannot be read: {error.strerror or error}") from error
