"""A folder of images with a `.txt` of captions beside each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from clipling.data.pairs import Location, Row
from clipling.data.problems import Problems
from clipling.data.reading import IMAGE_SUFFIXES, Options, Reading, clean_captions, clean_key
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

    Captions are the lines of the `.txt` of the same name (`dog.jpg` and `dog.txt`). Images without one, and `.txt`
    without an image, are problems; where captions are optional they are not, nor is a `.txt` that is not text.

    Raises:
        UserError: no images, or no captions at all.
    """
    folder = Path(os.path.abspath(folder))
    reading = Reading(str(folder), problems=Problems(str(folder)))
    images = texts = 0
    for base, names in walk(folder):
        reading.inputs.append(base)
        below = os.path.relpath(base, folder)
        stems = {Path(name).stem: name for name in names if Path(name).suffix.lower() == ".txt"}
        for name in names:
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                images += 1
                key = clean_key((Path(below) / name).as_posix())
                text = stems.get(Path(name).stem)
                _add(reading, key, os.path.join(base, name), text and os.path.join(base, text), options)
        lonely = stems.keys() - {Path(name).stem for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES}
        texts += len(stems) - len(lonely)
        for stem in () if options.captions_optional else sorted(lonely):
            where = clean_key((Path(below) / stems[stem]).as_posix())
            reading.problems.add("no image", where, "a .txt without an image of the same name")
    if not images:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).{_other_files(folder)}")
    if not texts and not options.captions_optional:
        raise _without_captions(folder, images)
    reading.rows.sort(key=lambda row: row.key)
    return reading


def _add(reading: Reading, key: str, path: str, text: str | None, options: Options) -> None:
    captions = []
    if text is not None:
        reading.inputs.append(text)
        try:
            content = Path(text).read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8")
            captions = clean_captions(content.split("\n"))
        except (OSError, ValueError) as error:
            if not options.captions_optional:
                reading.problems.add("unreadable caption", key, f"{Path(text).name}: {error}")
                return
    if not captions and not options.captions_optional:
        kind = "no caption" if text is None else "empty caption"
        reading.problems.add(kind, key, f"no {Path(key).stem}.txt beside it" if text is None else f"{key}: empty .txt")
        return
    reading.rows.append(Row(key, captions, Location(path)))


def _without_captions(folder: Path, images: int) -> UserError:
    return UserError(
        f"{folder} holds {images:,} images and no captions.{_other_files(folder)}\n"
        "To train, give each image captions in one of these ways:\n"
        "  dog.txt beside dog.jpg, one caption a line;\n"
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
