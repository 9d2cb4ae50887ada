"""The model card of a converted model: the source's own, which travels along, with how the new layout is opened and where it is from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipling.card import how_to_open

LIBRARIES = {"open_clip": "open_clip", "transformers": "transformers"}
TRANSFORMERS = """\
    from transformers import CLIPModel, CLIPProcessor
    model = CLIPModel.from_pretrained("PATH_OF_THIS_FOLDER")
    processor = CLIPProcessor.from_pretrained("PATH_OF_THIS_FOLDER")

Its processor does not mend broken encodings or HTML in texts as open_clip's tokenizer does, and by default resizes pictures by
torchvision, a level or two of 255 beside Pillow: `AutoImageProcessor.from_pretrained(..., backend="pil")` gives the same pixels."""


def converted_card(source: Path | None, name: str, to: str, said: str, config: Mapping[str, Any], licences: Mapping[str, str]) -> str:
    """Markdown. Of a source without a card, one that says where the model is from and under which licences.

    source: the folder or file that was converted. name: its last part. to: `open_clip` or `transformers`. said: what happened to it.
    """
    opened = TRANSFORMERS if to == "transformers" else how_to_open(config)
    origin = f"Converted by clipling from `{name}`: {said}\n"
    text = _card_of(source)
    if text is None:
        listed = "\n".join(f"- `{model}`: {licence}" for model, licence in licences.items())
        return (
            f"---\nlibrary_name: {LIBRARIES[to]}\ntags: [clip, image-text, clipling]\ntaught_by: {json.dumps(dict(licences))}\n---\n"
            f"# {name}\n\n## Open it\n\n{opened}\n\n## Where it is from\n\n{origin}\n{listed}\n"
        )
    for library in LIBRARIES.values():
        text = text.replace(f"\nlibrary_name: {library}\n", f"\nlibrary_name: {LIBRARIES[to]}\n", 1)
    text = _without(_without(text, "Open it"), "Converted")
    return f"{text.rstrip()}\n\n## Open it\n\n{opened}\n\n## Converted\n\n{origin}"


def _card_of(source: Path | None) -> str | None:
    if source is None or not (source / "README.md").is_file():
        return None
    return (source / "README.md").read_text(encoding="utf-8", errors="replace")


def _without(text: str, section: str) -> str:
    """The card without the section of that heading, which ends at the next heading of its rank."""
    before, found, after = text.partition(f"\n## {section}\n")
    if not found:
        return text
    _, again, rest = after.partition("\n## ")
    return before + (f"\n## {rest}" if again else "\n")
