"""Texts of many kinds, to compare two tokenizers by: each class a name, and what belongs to it."""

from __future__ import annotations

import random
import unicodedata
from html.entities import html5

WORDS = "a dog runs through the snow two children on red bicycle it's they're man's DOG Café naïve Größe 3.14 2nd".split(" ")  # noqa: SIM905
WRITTEN = (  # noqa: SIM905
    "小狗在雪地里奔跑 犬が雪の中を走る 개가 눈 속을 달린다 собака бежит по снегу كلب يجري في الثلج כלב רץ בשלג "
    "कुत्ता बर्फ में दौड़ता है หมาวิ่งในหิมะ σκύλος τρέχει στο χιόνι ΣΚΥΛΟΣ İstanbul ıssız Straße ẞ Đà Nẵng"
).split(" ")
SPECIAL = ("<start_of_text>", "<end_of_text>", "<|endoftext|>", "[CLS]", "[MASK]")
EMOJI = ["🐕", "👩🏽\u200d🚀", "🇨🇭", "❤\ufe0f", "👨\u200d👩\u200d👧\u200d👦", "1\ufe0f\u20e3", "☕", "🫠"]
MOJIBAKE = ["â€œquotedâ€\x9d text", "cafÃ© in MÃ¼nchen", "the womanâ€™s hat", "âœ” done", "Ã\xa0 la carte", "Ð¿ÑÐ¸Ð²ÐµÑ"]


def odd_texts(each: int = 150, seed: int = 3) -> dict[str, list[str]]:
    """The classes, about `each` texts in each, the same for the same seed."""
    rng = random.Random(seed)
    makers = {
        "words": lambda: " ".join(rng.choices(WORDS, k=rng.randint(1, 12))),
        "long": lambda: " ".join(rng.choices(WORDS, k=rng.randint(60, 200))),
        "scripts": lambda: " ".join(rng.choices(WRITTEN, k=rng.randint(1, 6))),
        "emoji": lambda: "".join(rng.choices([*EMOJI, " ", "dog"], k=rng.randint(1, 8))),
        "punctuation": lambda: "".join(rng.choices("!\"#$%'()*+,-./:;=?@[\\]^_`{|}~ ab1’‘“”…–—", k=rng.randint(1, 30))),
        "blanks": lambda: "".join(rng.choices("ab \t\n\r\v\f\x1c\x85\xa0\u1680\u2003\u2028\u3000\u200b\ufeff", k=rng.randint(1, 20))),
        "entities": lambda: " ".join(rng.choices(_entities(rng), k=3)),
        "controls": lambda: "".join(rng.choices([chr(c) for c in range(32)] + ["\x7f", "\x1b[31m", "\u206a", "\ufff9", "a", "dog"], k=12)),
        "compatibility": lambda: "".join(rng.choices("ﬁﬂﬀﬃﬅĲĳŉǅＡｂ３！￥ｱﾞ㎏①²™Ⅳſıİßẞ a", k=10)),
        "combining": lambda: unicodedata.normalize("NFD", " ".join(rng.choices([*WRITTEN, "Café", "Ångström", "ñandú"], k=3))),
        "special tokens": lambda: rng.choice(["", "a "]) + rng.choice(SPECIAL) + " dog",
        "any letters": lambda: "".join(chr(rng.choice(_ASSIGNED)) for _ in range(rng.randint(1, 12))),
        "mojibake": lambda: rng.choice(MOJIBAKE),
    }
    found = {name: [make() for _ in range(each)] for name, make in makers.items()}
    found["words"] += ["", " ", "a", "it's", "'s", "<", "&", "<b>bold &amp; beautiful</b>", "&amp;amp;amp;lt;", "x" * 400]
    return found


def _entities(rng: random.Random) -> list[str]:
    names = rng.sample(sorted(html5), 6)
    numbers = [rng.choice([0, 9, 13, 38, 60, 128, 133, 150, 159, 173, 8217, 0xD800, 0xFDD0, 0x1F415, 0x110000]) for _ in range(3)]
    made = [f"&{name}" for name in names] + [f"&{name.upper()}" for name in names[:2]]
    return made + [f"&#{n};" for n in numbers] + [f"&#x{n:x}" for n in numbers] + ["dog", "&amp;lt;", "AT&T", "&;", "&#;", "<i>"]


# What both sides know: characters that were assigned before the older of two Unicode versions, without those in planes of their own.
_ASSIGNED = [c for c in range(0x20, 0x2FFFF) if unicodedata.ucd_3_2_0.category(chr(c)) not in ("Cn", "Cs", "Co")]
