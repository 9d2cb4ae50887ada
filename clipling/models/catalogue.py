"""The untrained students that come with clipling: one open_clip config each, in `zoo/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from clipling.errors import UserError, near
from clipling.models.build import find_text_folder
from clipling.models.dual import Student

ZOO = Path(__file__).parent / "zoo"


def zoo_names() -> list[str]:
    """The names of the zoo's students."""
    return sorted(path.stem for path in ZOO.glob("*.json"))


def zoo_config(name: str) -> dict[str, Any]:
    """The config of one student of the zoo; UserError with near matches for an unknown name."""
    if name not in zoo_names():
        raise UserError(f"no student is called {name!r}. {near(name, zoo_names())}")
    return json.loads((ZOO / f"{name}.json").read_text(encoding="utf-8"))


def zoo_sizes(name: str) -> dict[str, int]:
    """`Student.sizes()` without making any weights."""
    config = zoo_config(name)
    with torch.device("meta"):
        return Student(config, find_text_folder(config)).sizes()


def zoo_table() -> dict[str, Any]:
    """The zoo, smallest first: {"header": [...], "rows": [[...], ...]}; parameters in millions."""
    header = ["name", "pixels", "embedding", "image tower, M", "text tower, M", "token rows, M"]
    rows = []
    for name in zoo_names():
        model = zoo_config(name)["model_cfg"]
        shape = [name, str(model["vision_cfg"]["image_size"]), str(model["embed_dim"])]
        try:
            sizes = zoo_sizes(name)
        except UserError:  # its text tower's config comes with a package that is not installed
            rows.append((float("inf"), [*shape, "?", "?", "?"]))
            continue
        counts = [f"{sizes[part] / 1e6:.2f}" for part in ("image", "text", "token_rows")]
        rows.append((sizes["total_without_token_rows"], [*shape, *counts]))
    return {"header": header, "rows": [row for _, row in sorted(rows)]}
