"""The untrained students that come with clipling: one open_clip config each, in `zoo/`, and open_clip's own of MobileCLIP."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch

from clipling.errors import UserError, near
from clipling.models.build import find_text_folder
from clipling.models.dual import Student

ZOO = Path(__file__).parent / "zoo"
# Of MobileCLIP (arXiv 2311.17049) and MobileCLIP2 (arXiv 2508.20691) what open_clip has: all but MobileCLIP-S0's convolutional text tower.
# Parameters of the image tower, of the text tower without token rows, of the token rows: to build all of them takes half a minute.
MOBILECLIP = {
    "MobileCLIP-S1": (21_541_632, 38_131_200, 25_296_896),
    "MobileCLIP-S2": (35_815_232, 38_131_200, 25_296_896),
    "MobileCLIP-B": (86_349_056, 38_131_200, 25_296_896),
    "MobileCLIP2-S0": (11_406_976, 38_131_200, 25_296_896),
    "MobileCLIP2-S2": (35_815_232, 38_131_200, 25_296_896),
    "MobileCLIP2-B": (86_349_056, 38_131_200, 25_296_896),
    "MobileCLIP2-S3": (125_235_648, 85_704_960, 37_945_344),
    "MobileCLIP2-S4": (321_784_832, 85_704_960, 37_945_344),
    "MobileCLIP2-L-14": (303_966_976, 85_704_960, 37_945_344),
}


def zoo_names() -> list[str]:
    """The names of the zoo's students."""
    return sorted([*(path.stem for path in ZOO.glob("*.json")), *MOBILECLIP])


def zoo_config(name: str) -> dict[str, Any]:
    """The config of one student of the zoo; UserError with near matches for an unknown name."""
    if name not in zoo_names():
        raise UserError(f"no student is called {name!r}. {near(name, zoo_names())}")
    if name in MOBILECLIP:
        found = open_clips_config(name)
        found["preprocess_cfg"]["size"] = found["model_cfg"]["vision_cfg"]["image_size"]
        return found
    return json.loads((ZOO / f"{name}.json").read_text(encoding="utf-8"))


def open_clips_config(name: str) -> dict[str, Any]:
    """The config of one of open_clip's models, with the preprocessing of its published weights; ready to be changed."""
    import open_clip

    model = copy.deepcopy(open_clip.get_model_config(name))
    tags = open_clip.list_pretrained_tags_by_model(name)
    given = open_clip.get_pretrained_cfg(name, tags[0]) if tags else {}
    kept = {key: given[key] for key in ("mean", "std", "interpolation", "resize_mode") if given.get(key)}
    return {"model_cfg": model, "preprocess_cfg": kept}


def zoo_sizes(name: str) -> dict[str, int]:
    """`Student.sizes()` without making any weights."""
    if name in MOBILECLIP:
        image, text, rows = MOBILECLIP[name]
        logit_scale = 1
        total = image + text + rows + logit_scale
        return {"image": image, "text": text, "token_rows": rows, "total": total, "total_without_token_rows": total - rows}
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
