"""The tokenizers of Hugging Face text towers (BERT, SigLIP), as open_clip's HFTokenizer uses them."""

from __future__ import annotations

import json
from typing import Any

from clipling.deploy.tokens import Exported
from clipling.errors import UserError
from clipling.models.dual import Student


def export_hf(student: Student, options: dict[str, Any]) -> Exported:
    """The tokenizer of the student's text folder.

    UserError for what changes ids after the tokenizer (`strip_sep_token`, a `tokenizer_mode`, a language) and for tokenizers that
    fill or cut rows on the left.
    """
    text_cfg = student.config["model_cfg"]["text_cfg"]
    clean = options.pop("clean", "whitespace")
    refused = [name for name in ("strip_sep_token", "language") if options.pop(name, None)]
    if text_cfg.get("tokenizer_mode"):
        refused.append("tokenizer_mode")
    if refused or clean not in ("whitespace", "lower", "canonicalize"):
        raise UserError(
            f"{' and '.join(refused) or f'clean {clean!r}'} of the student's tokenizer cannot be exported: no tokenizer.json does that"
        )
    student.tokenise(["a dog"])
    wrapped = student._tokenise.tokenizer
    backend = getattr(wrapped, "backend_tokenizer", None)
    if backend is None or wrapped.padding_side != "right" or getattr(wrapped, "truncation_side", "right") != "right":
        raise UserError(
            f"the tokenizer {type(wrapped).__name__} of the student cannot be exported: it is no fast one, or works from the left"
        )
    start, end = _around(wrapped)
    content = json.loads(backend.to_str())
    content["truncation"] = {"direction": "Right", "max_length": student.context_length, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = None
    return Exported(json.dumps(content, ensure_ascii=False), clean, start, end, int(wrapped.pad_token_id))


def _around(wrapped: Any) -> tuple[int | None, int | None]:
    """The special ids that this tokenizer puts before and after every text."""
    bare = [wrapped(text, add_special_tokens=False)["input_ids"] for text in ("dog", "runs far")]
    full = [wrapped(text)["input_ids"] for text in ("dog", "runs far")]
    starts = {ids[0] for ids, plain in zip(full, bare) if ids[: len(plain)] != plain}
    ends = {ids[-1] for ids, plain in zip(full, bare) if ids[-len(plain) :] != plain}
    return (starts.pop() if len(starts) == 1 else None), (ends.pop() if len(ends) == 1 else None)
