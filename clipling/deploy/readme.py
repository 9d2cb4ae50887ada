"""The README of an exported folder: the model's own card, licences and all, and how the export is used."""

from __future__ import annotations

import re
from pathlib import Path

from clipling.runtime.manifest import Manifest

_USE = """
## Exported to ONNX

    pip install 'clipling[runtime]'

    import clipling
    model = clipling.load("PATH_OF_THIS_FOLDER")
    model.encode_image(["photo.jpg"])            # unit rows [n, {dim}]
    model.encode_text(["a dog in the snow"])
    model.predict("photo.jpg", ["dog", "cat"])

`clipling.json` says what the graphs read, `gate.json` what was measured of them, and `kit/` holds fixtures and samples for apps.
"""


def find_card(model: str) -> str | None:
    """The card beside the weights that `model` names, where there is one."""
    folder = Path(model.removeprefix("local-dir:"))
    found = next((path for path in (folder / "model" / "README.md", folder / "README.md") if path.is_file()), None)
    return None if found is None else found.read_text(encoding="utf-8", errors="replace")


def readme(manifest: Manifest, card: str | None) -> str:
    """Markdown; without a card, a title and what is not known."""
    if card is None:
        card = f"# {manifest.name}\n\nThe model came without a card: its data, licences and measured results are not known here.\n"
    return f"{without_opening(card).rstrip()}\n{_USE.format(dim=manifest.embed_dim)}"


def without_opening(card: str) -> str:
    """The card without its section on opening the model: an exported folder holds no weights for open_clip."""
    return re.sub(r"(?ms)^## Open it\n.*?(?=^## |\Z)", "", card)
