"""CLIP's tokens in the files of other libraries: Hugging Face `tokenizers` (tokenizer.json) and `CLIPTokenizer` of transformers.

The vocabulary and the merges are open_clip's. These files cannot express open_clip's cleaning (mended encodings, unescaped HTML), and
they fold letters by Unicode's NFC, so texts that hold such things get other ids; plain text gets the same.
"""

from __future__ import annotations

import json
from typing import Any

from clipling.models.tokens import EOT, SOT, ClipTokens

START, END = "<|startoftext|>", "<|endoftext|>"
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def vocabulary() -> dict[str, int]:
    """The id of every token, start and end as transformers spells them."""
    stock = ClipTokens(77).stock.encoder
    special = {SOT: START, EOT: END}
    return {special.get(number, token): number for token, number in stock.items()}


def merges() -> list[tuple[str, str]]:
    """The pairs that are joined, the first before all others."""
    ranks = ClipTokens(77).stock.bpe_ranks
    return sorted(ranks, key=ranks.__getitem__)


def tokenizer_json() -> dict[str, Any]:
    """The content of tokenizer.json: what `CLIPTokenizer` of transformers 5 saves."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **flags} for number, token in ((SOT, START), (EOT, END))],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END, EOT],
            "cls": [START, SOT],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary(),
            "merges": [list(pair) for pair in merges()],
        },
    }


def tokenizer_files(context_length: int) -> dict[str, str]:
    """The contents of the files that transformers of any version reads a `CLIPTokenizer` from, by their names."""
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length, "do_lower_case": True, **special}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges())]
    return {
        "tokenizer.json": json.dumps(tokenizer_json(), ensure_ascii=False) + "\n",
        "vocab.json": json.dumps(vocabulary(), ensure_ascii=False) + "\n",
        "merges.txt": "\n".join(lines) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }
