"""A student's tokenizer as one `tokenizer.json` that gives the ids of stock open_clip's."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

import regex
from open_clip.tokenizer import SimpleTokenizer

from clipling.errors import UserError
from clipling.models.dual import Student
from clipling.models.tokens import EOT, SOT

START, END = "<start_of_text>", "<end_of_text>"
SUFFIX = "</w>"


@dataclass(frozen=True)
class Exported:
    """content: of tokenizer.json. The rest as in `runtime.manifest.TextSide`."""

    content: str
    clean: str
    start: int | None
    end: int | None
    pad: int


def export_tokens(student: Student) -> Exported:
    """The tokenizer of the student's config; UserError for settings whose ids no `tokenizer.json` gives."""
    text_cfg = student.config["model_cfg"]["text_cfg"]
    options = dict(text_cfg.get("tokenizer_kwargs") or {})
    if student.text_folder is not None:
        from clipling.deploy.tokens_hf import export_hf

        return export_hf(student, options)
    clean = options.pop("clean", "lower")
    if options or clean not in ("lower", "canonicalize"):
        raise UserError(
            f"tokenizer_kwargs {text_cfg['tokenizer_kwargs']} of the student's config cannot be exported: CLIP's own tokenizer is "
            "exported with clean 'lower' or 'canonicalize' and nothing else"
        )
    return Exported(json.dumps(clip_tokenizer(student.context_length), ensure_ascii=False), clean, SOT, EOT, 0)


def clip_tokenizer(context_length: int) -> dict[str, Any]:
    """CLIP's byte-pair tokenizer in the format of the `tokenizers` library, for cleaned lower-case text."""
    stock = SimpleTokenizer()
    vocabulary = {name: number for name, number in stock.encoder.items() if name not in (START, END)}
    merges = [list(pair) for pair, _ in sorted(stock.bpe_ranks.items(), key=lambda item: item[1])]
    for name, number in ((START, SOT), (END, EOT)):
        _spell(name, number, stock, vocabulary, merges)
    special = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in ((START, SOT), (END, EOT))}
    around = [{"SpecialToken": {"id": START, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    around.append({"SpecialToken": {"id": END, "type_id": 0}})
    return {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": context_length, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": word_pattern()}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {"type": "TemplateProcessing", "single": around, "pair": around, "special_tokens": special},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": SUFFIX,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _spell(name: str, number: int, stock: SimpleTokenizer, vocabulary: dict[str, int], merges: list[list[str]]) -> None:
    """Merges, after all others, by which the word `name` in a user's text becomes the id `number`, as in open_clip.

    They meet nowhere else: `<` stands beside letters in no other word of the pattern.
    """
    del stock.cache[name]  # there it is one word already
    word = stock.bpe(name).split(" ")
    while len(word) > 1:
        merges.append(word[:2])
        word[:2] = [word[0] + word[1]]
        vocabulary[word[0]] = number if len(word) == 1 else max(EOT, *vocabulary.values()) + 1


def word_pattern() -> str:
    """open_clip's pattern of words without flags and classes, so that every engine and version of Unicode reads it alike.

    open_clip ignores case: in lower-case text the long s is the only other letter that this lets in.
    """
    letters, numbers = _ranges(r"\p{L}"), _ranges(r"\p{N}")
    starts = "|".join(name.replace("s", "[sſ]", 1) for name in (START, END))
    endings = "|".join(f"'{ending}" for ending in ("[sſ]", "t", "re", "ve", "m", "ll", "d"))
    return f"{starts}|{endings}|[{letters}]+|[{numbers}]|[^{_ranges(OTHERS, inside=False)}]+"


OTHERS = r"[^\s\p{L}\p{N}]"


def _ranges(kind: str, inside: bool = True) -> str:
    """The characters that the regex library counts to a class, or those that it does not, as ranges inside of brackets.

    Case ignored, as in open_clip: so U+0345, a mark whose capital is a letter, is neither a letter nor one of OTHERS.
    """
    everything = "".join(chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF)
    found = [match.span() for match in regex.finditer(f"{kind}+", everything, regex.IGNORECASE)]
    if not inside:
        ends = [0, *(end for span in found for end in span), len(everything)]
        found = [span for span in zip(ends[::2], ends[1::2]) if span[0] < span[1]]
    runs = [everything[start:end] for start, end in found]
    return "".join(run if len(run) < 3 else f"{run[0]}-{run[-1]}" for run in runs)
