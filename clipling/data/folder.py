"""A folder of images with a `.txt` of captions, or a `.json`, beside each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clipling.data.beside import PACKED_KEY, captions_of, group_and_extras, record_of
from clipling.data.pairs import Location, Row
from clipling.data.problems import Problems
from clipling.data.reading import IMAGE_SUFFIXES, Options, Reading, clean_key
from clipling.errors import UserError


def walk(folder: Path, follow: Callable[[str], bool] = lambda path: True) -> Iterator[tuple[str, list[str]]]:
    """(folder, file names) of a tree in sorted order; hidden files and folders are passed over, links are followed where `follow`
    says so."""
    seen = set()
    for base, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(base)
        if real in seen:
            folders.clear()  # a link back into the tree
            continue
        seen.add(real)
        shown = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        folders[:] = [name for name in shown if not os.path.islink(path := os.path.join(base, name)) or follow(path)]
        yield base, sorted(name for name in files if not name.startswith("."))


def read_folder(folder: Path, options: Options) -> Reading:
    """Rows of all images below `folder`, sorted by path and keyed by the path below it.

    Captions are those of the `.json` of the same name (`dog.jpg` and `dog.json`), as in tars, otherwise the lines of the `.txt`. Images
    without any, and `.txt` without an image, are problems; where captions are optional they are not, nor is a file beside a picture that
    is not text or JSON.

    Raises:
        UserError: no images, or no captions at all.
    """
    folder = Path(os.path.abspath(folder))
    reading = Reading(str(folder), problems=Problems(str(folder)))
    images = texts = 0
    for base, names in walk(folder):
        reading.inputs.append(base)
        below = os.path.relpath(base, folder)
        stems, records = ({Path(n).stem: n for n in names if Path(n).suffix.lower() == suffix} for suffix in (".txt", ".json"))
        for name in names:
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                images += 1
                key = clean_key((Path(below) / name).as_posix())
                beside = {
                    kind: os.path.join(base, found[stem])
                    for kind, found in (("txt", stems), ("json", records))
                    if (stem := Path(name).stem) in found
                }
                _add(reading, key, os.path.join(base, name), beside, options)
        lonely = stems.keys() - {Path(name).stem for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES}
        texts += len(stems) - len(lonely)
        for stem in () if options.captions_optional else sorted(lonely):
            where = clean_key((Path(below) / stems[stem]).as_posix())
            reading.problems.add("no image", where, "a .txt without an image of the same name")
    if not images:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).{_other_files(folder)}")
    if not texts and not reading.rows and not options.captions_optional:
        raise _without_captions(folder, images)
    reading.rows.sort(key=lambda row: row.key)
    return reading


def _add(reading: Reading, key: str, path: str, beside: Mapping[str, str], options: Options) -> None:
    """beside: the files of the same name, `txt` and `json`."""
    reading.inputs.extend(beside.values())
    record: dict[str, Any] = {}
    try:
        if "json" in beside:
            record = record_of(Path(beside["json"]).read_bytes())
    except (OSError, ValueError) as error:
        if not options.captions_optional:
            reading.problems.add("unparsable json", key, f"{Path(beside['json']).name}: {error}")
            return
    captions = []
    try:
        captions = captions_of(record, lambda: _text(beside), options)
    except (OSError, ValueError) as error:
        if not options.captions_optional:
            reading.problems.add("unreadable caption", key, f"{Path(beside['txt']).name}: {error}")
            return
    if not captions and not options.captions_optional:
        kind = "empty caption" if "txt" in beside else "no caption"
        said = f"{key}: empty .txt" if "txt" in beside else f"no {Path(key).stem}.txt beside it"
        reading.problems.add(kind, key, f"{said}, and no caption in its .json" if "json" in beside else said)
        return
    group, extras = group_and_extras(record, options)
    reading.rows.append(Row(record.get(PACKED_KEY) or key, captions, Location(path), group, extras))


def _text(beside: Mapping[str, str]) -> str | None:
    return Path(beside["txt"]).read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8") if "txt" in beside else None


def _without_captions(folder: Path, images: int) -> UserError:
    return UserError(
        f"{folder} holds {images:,} images and no captions.{_other_files(folder)}\n"
        "To train, give each image captions in one of these ways:\n"
        "  dog.txt beside dog.jpg, one caption a line;\n"
        '  dog.json beside dog.jpg, such as {"caption": ["a dog", "a brown dog"]};\n'
        "  captions.csv in the folder, with the columns filepath,title;\n"
        '  metadata.jsonl in the folder, with lines such as {"file_name": "dog.jpg", "text": "a dog"}.\n'
        "Without captions a model can still be distilled into a small one on these images (clipling distill); a trained model "
        "can embed and search them and, when they are sorted into one folder a class, its zero-shot classification can be "
        "measured on them (clipling eval)."
    )


def _other_files(folder: Path) -> str:
    """A sentence about files of the folder, or just below it, that may be what the user meant."""
    found = [
        path
        for pattern in ("*", "*/metadata.*", "*/captions.*")
        for path in sorted(folder.glob(pattern))
        if path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".parquet", ".tar")
    ]
    if not found:
        return ""
    return f" Did you mean {' or '.join(str(path) for path in found[:3])}?"
