"""What the folders of transformers' models have in common: where files are, settings that are checked, the image processor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from clipling.errors import UserError
from clipling.store import read_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "spiece.model")
WANTED = (CONFIG, "model*.safetensors", INDEX, "preprocessor_config.json", "processor_config.json", *TOKENIZER)

_NO_COUNTS = ("hidden_act", "layer_norm_eps", "eos_token_id", "vision_use_head", "projection_size")
_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers; open_clip has no others


def hub_folder(name: str) -> Path:
    """The folder with the files of the hub's model `name` (a local folder is its own); downloaded when there is a connection.

    Pickled weights are not among the files. UserError when the model is neither on this machine nor to be had.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except Exception as error:  # the hub's client raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the model {name!r} of transformers is not on this machine and cannot be downloaded: {reason} "
            "Download it where there is a connection, and give its folder instead"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, several when they are sharded; none when there are no such weights."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        return []
    content = read_json(folder / INDEX)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or any(not isinstance(n, str) or Path(n).name != n for n in places.values()):
        raise UserError(f"{folder / INDEX} does not say which tensor is in which file of the folder (weight_map)")
    return [folder / name for name in sorted(set(places.values()))]


def model_type(folder: Path) -> Any:
    """The `model_type` of a folder's config.json: `clip`, `siglip`, ..."""
    content = read_json(folder / CONFIG)
    return content.get("model_type") if isinstance(content, dict) else None


def checked_part(content: Mapping[str, Any], name: str, defaults: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings `defaults` of one tower (`text`, `vision`), those left out by default; UserError for what is no number of things."""
    # Where an old file has both spellings, transformers takes `..._config_dict` alone.
    given = content.get(f"{name}_config_dict") or content.get(f"{name}_config") or {}
    if not isinstance(given, dict):
        raise UserError(f"{path}: {name}_config must be a mapping, not {given!r}")
    part = {key: given.get(key, default) for key, default in defaults.items()}
    for key in part.keys() - set(_NO_COUNTS):
        checked_count(part[key], f"{name}_config.{key}", path)
    if part["hidden_size"] % part["num_attention_heads"]:
        raise UserError(
            f"{path}: {name}_config.hidden_size {part['hidden_size']} is not a multiple of its {part['num_attention_heads']} heads"
        )
    return part


def checked_count(value: Any, name: str, path: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{path}: {name} is {value!r}; expected a positive whole number")
    return value


def preprocessing(folder: Path, image_size: int, defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The open_clip `preprocess_cfg`.

    defaults: of what the file leaves out, where it is another thing than for CLIP (`CLIPImageProcessor`).
    """
    given: Any = {}
    path = folder / "preprocessor_config.json"
    if path.is_file():
        given = read_json(path)
    elif (folder / "processor_config.json").is_file():
        path = folder / "processor_config.json"
        content = read_json(path)
        given = content.get("image_processor", {}) if isinstance(content, dict) else None
    if not isinstance(given, dict):
        raise UserError(f"{path} does not hold the settings of an image processor")
    given = {**(defaults or {}), **given}
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if given.get(step, True) is not True:
            raise UserError(f"{path}: {step} is {given[step]!r}; pictures are always resized, scaled to 0 ... 1 and normalised")
    factor = given.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or abs(factor * 255 - 1) > 1e-6:
        raise UserError(f"{path}: rescale_factor is {factor!r}; expected 1/255")
    for key, least in (("image_mean", -1e9), ("image_std", 1e-6)):
        numbers = given.get(key) or [1.0, 1.0, 1.0]
        if not isinstance(numbers, list) or len(numbers) != 3 or not all(isinstance(n, int | float) and n >= least for n in numbers):
            raise UserError(f"{path}: {key} is {given[key]!r}; expected three numbers{', above 0' if least > 0 else ''}")
    resample = given.get("resample", 3)
    if not isinstance(resample, int) or resample not in _RESAMPLING:
        raise UserError(f"{path}: resample is {resample!r}; expected 2 (bilinear) or 3 (bicubic)")
    return {
        "size": image_size,
        "mean": list(given.get("image_mean") or OPENAI_DATASET_MEAN),
        "std": list(given.get("image_std") or OPENAI_DATASET_STD),
        "interpolation": _RESAMPLING[resample],
        "resize_mode": _resize_mode(given, image_size, path),
    }


def _resize_mode(given: dict[str, Any], image_size: int, path: Path) -> str:
    """`shortest` (resized by the shorter side, the centre cut out) or `squash`; UserError for anything else."""
    square = {"height": image_size, "width": image_size}
    size = given.get("size", image_size)
    size = {"shortest_edge": size} if isinstance(size, int) else size
    crop = given.get("crop_size", image_size)
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    cropped = given.get("do_center_crop", True)
    if size == {"shortest_edge": image_size} and cropped and crop == square:
        return "shortest"
    if size == square and (not cropped or crop == square):
        return "squash"
    raise UserError(
        f"{path}: pictures are resized to {size} and {f'cut to {crop}' if cropped else 'not cut'}; for this model of {image_size} px "
        f"either 'shortest_edge' {image_size} with that centre crop, or {square} can be had"
    )
