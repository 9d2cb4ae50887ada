"""Images with a class each, for zero-shot classification: class folders and CLIP_benchmark's layout."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image

from clipling.data import images, index, source
from clipling.data.folder import walk
from clipling.data.pairs import Location, Row, hash_bytes, read_image
from clipling.data.problems import Problems
from clipling.data.reading import IMAGE_SUFFIXES, Options, Reading, clean_key
from clipling.data.shards import read_shards
from clipling.errors import UserError
from clipling.store import read_json

DEFAULT_TEMPLATES = ["a photo of a {c}."]


@dataclass
class LabelledImages:
    """P images of C classes.

    Attributes:
        labels: int64 [P], numbers into `classnames`.
        classnames: [C].
        templates: prompts with `{c}` where the class name goes.
        hashes: [P] of the image bytes; computed on first use when they were not given.
    """

    name: str
    keys: list[str]
    locations: list[Location]
    labels: np.ndarray
    classnames: list[str]
    templates: list[str] = field(default_factory=lambda: list(DEFAULT_TEMPLATES))
    problems: Problems = field(default_factory=Problems)
    hashes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    def image_bytes(self, i: int) -> bytes:
        """The encoded image. Raises UserError when the file has gone since it was indexed."""
        return read_image(self.locations[i], self.keys[i])

    def image(self, i: int) -> Image.Image:
        """The upright RGB picture. Raises UserError or ImageError."""
        return images.decode(self.image_bytes(i))

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal blake2b of 128 bits of keys, image hashes, labels and class names."""
        if not self.hashes:
            self.hashes = [hash_bytes(self.image_bytes(i)) for i in range(len(self))]
        total = blake2b(digest_size=16)
        for text in (*self.keys, *self.hashes, *map(str, self.labels), *self.classnames):
            data = text.encode("utf-8", "surrogatepass")
            total.update(len(data).to_bytes(8, "little") + data)
        return total.hexdigest()


def open_labelled(
    spec: str,
    classes: Sequence[str] | Path | str | None = None,
    templates: Sequence[str] | Path | str | None = None,
    *,
    max_bad: float = 0.1,
) -> LabelledImages:
    """Images with classes: a folder with one folder a class, CLIP_benchmark's layout, tars with `.cls`, a demo.

    CLIP_benchmark's layout is `classnames.txt` and, in the folder `test`, `nshards.txt` and `0.tar`, ... with `.cls`.

    Args:
        spec: the folder, the tars, `demo:emoji`, or `demo:toyworld` with knobs.
        classes: class names, or a file with one a line, in the order of the labels (of class folders: their sorted
            names); or a `.json` object from folder name to class name. Without it, class folders name the classes.
        templates: prompts with `{c}` for the class name (`{}` will do), or a file with one a line.
        max_bad: the share of images that may be unusable; they are left out and listed.

    Raises:
        UserError: no classes, names that do not fit the labels, templates without `{c}`, too many bad images.
    """
    if str(spec).strip().startswith("demo:"):
        return _demo(str(spec).strip(), classes, templates)
    kind, paths = source.resolve(str(spec).strip())
    folder = Path(os.path.abspath(Path(spec).expanduser()))
    benchmark = _benchmark(folder)
    prompts = None
    if benchmark is not None:
        root, tars = benchmark
        readings, names = _tars(tars, _stated(root / "classnames.txt", classes))
        prompts = root / "zeroshot_classification_templates.txt"
    elif kind == "tar":
        if classes is None:
            raise UserError(f"{spec}: tars hold class numbers only. Give the class names, one a line: --classes FILE")
        readings, names = _tars(paths, _names(classes))
    elif kind == "folder":
        readings, names = _folders(folder, classes)
    else:
        raise UserError(f"{spec} has no classes. Give a folder with one folder a class, or CLIP_benchmark's layout.")
    if templates is None:
        templates = prompts if prompts is not None and prompts.is_file() else DEFAULT_TEMPLATES
    return _examined(str(spec), readings, names, read_templates(templates), max_bad)


def is_labelled(spec: str) -> bool:
    """Whether a source has classes and no captions: CLIP_benchmark's layout, or class folders without any caption file."""
    folder = Path(os.path.abspath(Path(spec).expanduser()))
    if not folder.is_dir():
        return False
    if _benchmark(folder) is not None:
        return True
    found = {"images": 0, "captions": 0}
    for base, names in walk(folder):
        below = Path(os.path.relpath(base, folder)).parts
        suffixes = [Path(name).suffix.lower() for name in names]
        found["images"] += sum(s in IMAGE_SUFFIXES for s in suffixes) if below else 0
        found["captions"] += sum(s in (".txt", ".csv", ".tsv", ".jsonl", ".parquet", ".tar") for s in suffixes)
    return found["images"] > 0 and found["captions"] == 0


def _demo(spec: str, classes: object, templates: object) -> LabelledImages:
    split = None if source.is_toyworld(spec) else source.demo_split(spec)
    if classes is not None or templates is not None:
        raise UserError(f"{spec.partition('?')[0].partition('/')[0]} has its own classes and templates: leave these options out")
    if source.is_toyworld(spec):
        from clipling.data.toyworld import open_world_labelled, parse_world

        labelled, _ = open_world_labelled(parse_world(spec))
        labelled.name = spec
        return labelled
    from clipling.data.emoji import emoji_zero_shot

    return emoji_zero_shot((split or "test",))


def _benchmark(folder: Path) -> tuple[Path, list[Path]] | None:
    """(root, tars) of CLIP_benchmark's layout, given its root or one of its splits; None for another folder."""
    if (folder / "nshards.txt").is_file() and (folder.parent / "classnames.txt").is_file():
        root, split = folder.parent, folder
    else:
        splits = {path.parent.name: path.parent for path in folder.glob("*/nshards.txt")}
        if not splits or not (folder / "classnames.txt").is_file():
            return None
        if "test" not in splits and len(splits) > 1:
            raise UserError(f"{folder} has the splits {', '.join(sorted(splits))}: give the folder of one of them")
        root, split = folder, splits.get("test", next(iter(splits.values())))
    count = (split / "nshards.txt").read_text(encoding="utf-8", errors="replace").strip()
    if not count.isdecimal():
        raise UserError(f"{split / 'nshards.txt'} must hold the number of tars, not {count[:40]!r}")
    tars = [split / f"{number}.tar" for number in range(int(count))]
    missing = [tar.name for tar in tars if not tar.is_file()]
    if missing:
        raise UserError(f"{split}: {len(missing)} of {len(tars)} tars are missing, first {missing[0]}")
    return root, tars


def _stated(file: Path, classes: Sequence[str] | Path | str | None) -> list[str]:
    """The names of CLIP_benchmark's `classnames.txt`, or as many others in their stead."""
    # Published lists name a class twice (ImageNet's "missile"): it stands, and results say so.
    stated = read_lines(file)
    named = stated if classes is None else _names(classes)
    if len(named) != len(stated):
        raise UserError(f"{len(named)} class names for the {len(stated)} classes that {file} states")
    return named


def _tars(tars: Sequence[Path], names: list[str]) -> tuple[list[Reading], list[str]]:
    readings = read_shards(tars, Options(captions_optional=True))
    highest = -1
    for reading in readings:
        kept = []
        for row in reading.rows:
            label = str(row.extras.get("cls", ""))
            if label.isdecimal():
                highest = max(highest, int(label))
                kept.append(Row(row.key, [], row.location, extras={"label": int(label)}))
            else:
                detail = f"label {label!r} is not a whole number" if label else "no .cls"
                reading.problems.add("no class", f"{Path(reading.origin).name}:{row.key}", detail)
        reading.rows = kept
    if highest >= len(names):  # not one bad row: the list is of other classes
        raise UserError(f"{len(names)} class names, but the label {highest} occurs: {highest + 1} classes or more. Give a name for each.")
    return readings, names


def _folders(folder: Path, classes: Sequence[str] | Path | str | None) -> tuple[list[Reading], list[str]]:
    reading = Reading(str(folder), problems=Problems(str(folder)), inputs=[str(folder)])
    found: list[str] = []
    for base, names in walk(folder):
        below = Path(os.path.relpath(base, folder)).parts
        reading.inputs.append(base)
        for name in names if below else ():
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                if below[0] not in found:
                    found.append(below[0])
                key = clean_key("/".join((*below, name)))
                reading.rows.append(Row(key, [], Location(os.path.join(base, name)), extras={"label": below[0]}))
    if len(found) < 2:
        raise UserError(
            f"{folder} holds {len(found)} folders with images. Sort the images into one folder a class, such as "
            f"{folder.name}/cat/1.jpg and {folder.name}/dog/2.jpg."
        )
    found.sort()
    for row in reading.rows:
        row.extras["label"] = found.index(row.extras["label"])
    if classes is None:
        return [reading], [clean_key(name).replace("_", " ") for name in found]
    named = _names(classes, found)
    if len(named) != len(found):
        raise UserError(f"{len(named)} class names for {len(found)} class folders ({', '.join(found[:5])}, ...)")
    return [reading], named


def _names(classes: Sequence[str] | Path | str, folders: Sequence[str] = ()) -> list[str]:
    """Class names as a user gives them. Raises UserError for two of one name: no picture could be put in the right one."""
    if not isinstance(classes, (str, Path)):
        names, where = [str(name) for name in classes], "the class names"
    elif Path(classes).suffix.lower() == ".json":
        table = read_json(classes)
        missing = [name for name in folders if not isinstance(table, dict) or name not in table]
        if missing or not folders:
            raise UserError(f"{classes} must be an object from each class folder to its name; missing: {missing[:5]}")
        names, where = [str(table[name]) for name in folders], str(classes)
    else:
        names, where = read_lines(classes), str(classes)
    return _once(names, f"{where}: two classes have the name")


def _once(lines: list[str], what: str) -> list[str]:
    """The lines, each of which must be there once."""
    seen: set[str] = set()
    for line in lines:
        if line in seen:
            raise UserError(f"{what} {line!r}. Give each one once.")
        seen.add(line)
    return lines


def read_templates(templates: Sequence[str] | Path | str) -> list[str]:
    """Prompts with `{c}` for the class name, as given or from a file with one a line.

    Raises UserError for one without a place, with a place of another name, and for one that is there twice: it would count double.
    """
    lines = read_lines(templates) if isinstance(templates, (str, Path)) else list(templates)
    lines = [line.replace("{}", "{c}") for line in lines]
    wrong = [line for line in lines if "{c}" not in line]
    if wrong or not lines:
        raise UserError(f"a template needs {{c}} where the class name goes: {wrong[0]!r}" if wrong else "no templates")
    for line in lines:
        foreign = [place for place in re.findall(r"\{[^{}]*\}", line) if place != "{c}"]
        if foreign:
            raise UserError(
                f"the template {line!r} has the place {foreign[0]}, which nothing fills. The class name goes where {{c}} stands."
            )
    return _once(lines, "there are two templates")


def read_lines(path: Path | str) -> list[str]:
    """The lines of a UTF-8 file, without blanks around them and without empty ones. Raises UserError when there is none."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty: one entry a line is expected")
    return lines


def _examined(spec: str, readings: list[Reading], names: list[str], templates: list[str], max_bad: float) -> LabelledImages:
    # The readings are made anew each time (they are quick); what is kept is that the images were looked at.
    cache = index.index_path("labelled", [reading.origin for reading in readings], names)
    found = index.kept(cache, lambda: readings, spec)
    problems = Problems(spec, found.problems)
    source.check_usable(problems, len(found.rows), max_bad)
    return LabelledImages(
        name=spec,
        keys=[row.key for row in found.rows],
        locations=[row.location for row in found.rows],
        labels=np.array([row.extras["label"] for row in found.rows], dtype=np.int64),
        classnames=names,
        templates=templates,
        problems=problems,
        hashes=found.hashes,
    )
