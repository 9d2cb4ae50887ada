"""Odd strings: what users paste, and what breaks tokenizers."""

from __future__ import annotations

import random

PIECES = (
    "a photo of a dog", "The QUICK brown fox", "don't they've we'll I'd it's", "'s 'T 're'VE", "'ſ ſtart ſ's",
    "İstanbul ISTANBUL ıstanbul", "Straße ẞ ﬁ ﬃ Ⅷ ½ ²", "naïve café Zoë", "na\u0308i\u0308ve",
    "â€œquotesâ€\u009d", "Ã©tÃ© schÃ¶n", "ÐŸÑ€Ð¸Ð²ÐµÑ‚", "å…«", "&amp;", "&amp;amp;lt;b&gt;",
    "&lt;b&gt;", "&#128021;", "&#x1F415;", "&nbsp;", "&notanentity;", "&&amp", "🐕", "👩‍👩‍👧‍👦",
    "🏳️‍🌈", "🇫🇷", "👍🏽", "一只狗在雪地里跑", "東京タワー", "안녕하세요",
    "สวัสดี", "مرحبا بالعالم", "שלום", "नमस्ते", "Ελληνικά ΣΑΣ",
    "Привет", "\x00", "\x07\x1b[31mred\x1b[0m", "\x1c\x1d\x1e\x1f", "\x85\u2028\u2029", "\u200b\u200d\ufeff",
    "\u3000\xa0\u2003", "\t\r\n\v\f", " ", "   ", "", "<start_of_text>", "<end_of_text>", "<START_OF_TEXT>", "<ſtart_of_text>",
    "!<start_of_text>", "<start_of_text>!", "<<end_of_text>>", "<start_of_textx", "<start", "<|startoftext|>", "<|endoftext|>",
    "[MASK]", "[SEP] [CLS]", "[PAD]", "</w>", "a</w>b", "_under_score_", "....", "!!!???", "12345", "1 2 3", "1,234.56",
    "٣٤٥", "१२३", "\U00010d40\U00010d4a", "\U00016d40", "\ua7cb\u1c89", "\ud800", "a\udfffb", "x", "word ", "e\u0301",
    "http://example.com/?q=a&b=c#d", "C:\\path\\file.txt", "{c}", "%s %d", "'; DROP TABLE", "ǅ ǆ Ǆ", "K Å Ω", "ﷺ",
    "\u202eabc",
)  # fmt: skip


def odd_strings(count: int, seed: int = 0) -> list[str]:
    """Different strings: the pieces themselves, then mixtures of them, of random characters of every plane, and of mojibake."""
    draw = random.Random(seed)
    made = dict.fromkeys(PIECES)
    while len(made) < count:
        kind = draw.random()
        if kind < 0.5:
            text = draw.choice(("", " ", "  ", "\n")).join(draw.choice(PIECES) for _ in range(draw.randint(1, 8)))
        elif kind < 0.75:
            text = "".join(_character(draw) for _ in range(draw.randint(1, 40)))
        elif kind < 0.9:
            text = "".join(draw.choice("ab st'<>_&;#x!?.,0123 \t'sſ") for _ in range(draw.randint(1, 30)))
        else:
            text = draw.choice(PIECES).encode("utf-8", "replace").decode("latin-1")
        made[text] = None
    return list(made)[:count]


def _character(draw: random.Random) -> str:
    highest = draw.choice((0x7F, 0x24F, 0x2FFF, 0xFFFF, 0x1FFFF, 0x10FFFF))
    return chr(draw.randint(0, highest))
