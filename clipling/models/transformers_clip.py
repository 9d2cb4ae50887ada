"""A `CLIPModel` of transformers as an open_clip config and state: the same function under other names.

What is read are the files that `CLIPModel.save_pretrained` and `CLIPProcessor.save_pretrained` write; transformers itself
is not needed. Whatever would make open_clip's model another function is refused by name, never approximated. Only dropout is
dropped: open_clip has none in attention, and it plays no part in evaluation.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor

from clipling.errors import UserError
from clipling.models.inits import State, read_weights
from clipling.models.tokens import EOT, ClipTokens
from clipling.store import read_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
WANTED = (CONFIG, "model*.safetensors", INDEX, "preprocessor_config.json", "processor_config.json", "tokenizer.json", "vocab.json")

# What a config.json that leaves a setting out means (CLIPTextConfig and CLIPVisionConfig of transformers).
_TEXT = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
    "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": EOT,
}  # fmt: skip
_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "num_channels": 3,
    "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
_NO_COUNTS = ("hidden_act", "layer_norm_eps", "eos_token_id")
_OPEN_CLIP_EPS = 1e-5
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


def clip_config(folder: Path) -> dict[str, Any]:
    """The open_clip config (`model_cfg`, `preprocess_cfg`) of a transformers CLIP.

    UserError, naming the setting, for another kind of model and for what open_clip's model cannot be.
    """
    path = folder / CONFIG
    content = read_json(path)
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind != "clip":
        raise UserError(
            f"{path} is of model_type {kind!r}. Of the models of transformers only CLIP ('clip', both towers) can be opened; a model in "
            "open_clip's layout has an open_clip_config.json"
        )
    text, vision = _part(content, "text", _TEXT, path), _part(content, "vision", _VISION, path)
    act = text["hidden_act"]
    if act != vision["hidden_act"]:
        raise UserError(f"{path}: hidden_act is {act!r} for text and {vision['hidden_act']!r} for pictures; open_clip has one for both")
    if act not in ("gelu", "quick_gelu"):
        raise UserError(f"{path}: hidden_act is {act!r}; open_clip's towers have 'gelu' or 'quick_gelu'")
    if vision["num_channels"] != 3:
        raise UserError(f"{path}: vision_config.num_channels is {vision['num_channels']}; pictures have 3")
    _check_tokens(text, folder)
    width = content.get("projection_dim", 512)
    model: dict[str, Any] = {
        "embed_dim": _count(width, "projection_dim", path),
        "quick_gelu": act == "quick_gelu",
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            **_tower(vision),
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "heads": text["num_attention_heads"],
            **_tower(text),
        },
    }
    return {"model_cfg": model, "preprocess_cfg": _preprocessing(folder, vision["image_size"])}


def _part(content: dict[str, Any], name: str, defaults: dict[str, Any], path: Path) -> dict[str, Any]:
    # Where an old file has both spellings, transformers takes `..._config_dict` alone.
    given = content.get(f"{name}_config_dict") or content.get(f"{name}_config") or {}
    if not isinstance(given, dict):
        raise UserError(f"{path}: {name}_config must be a mapping, not {given!r}")
    part = {key: given.get(key, default) for key, default in defaults.items()}
    for key in part.keys() - set(_NO_COUNTS):
        _count(part[key], f"{name}_config.{key}", path)
    if part["hidden_size"] % part["num_attention_heads"]:
        raise UserError(
            f"{path}: {name}_config.hidden_size {part['hidden_size']} is not a multiple of its {part['num_attention_heads']} heads"
        )
    return part


def _count(value: Any, name: str, path: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{path}: {name} is {value!r}; expected a positive whole number")
    return value


def _tower(part: dict[str, Any]) -> dict[str, Any]:
    width, inner = part["hidden_size"], part["intermediate_size"]
    ratio = inner / width
    if int(width * ratio) != inner:  # open_clip builds int(width * ratio) units, and the product may round down
        ratio = (inner + 0.5) / width
    made = {"layers": part["num_hidden_layers"], "width": width, "mlp_ratio": ratio}
    if part["layer_norm_eps"] != _OPEN_CLIP_EPS:
        made["norm_kwargs"] = {"eps": part["layer_norm_eps"]}
    return made


def _check_tokens(text: dict[str, Any], folder: Path) -> None:
    """Refuses other tokens than CLIP's own, and a text feature that is not taken at their end token.

    transformers takes it at the largest id where `eos_token_id` is 2 (its files before 4.31), otherwise at the first
    `eos_token_id`. With CLIP's tokens both are the first end token, the largest id of all, as in open_clip; any padding
    comes after it, where a causal tower does not look.
    """
    stock = ClipTokens(text["max_position_embeddings"]).stock.encoder
    if text["vocab_size"] != len(stock):
        raise UserError(
            f"{folder / CONFIG}: text_config.vocab_size is {text['vocab_size']}; only CLIP's own {len(stock)} tokens can be opened"
        )
    if text["eos_token_id"] not in (2, EOT):
        raise UserError(
            f"{folder / CONFIG}: text_config.eos_token_id is {text['eos_token_id']!r}, so the text feature would not be taken at CLIP's "
            f"end token ({EOT}, or 2 in old files)"
        )
    if (folder / "vocab.json").is_file():
        found: Any = read_json(folder / "vocab.json")
    elif (folder / "tokenizer.json").is_file():
        content = read_json(folder / "tokenizer.json")
        found = (content.get("model") or {}).get("vocab") if isinstance(content, dict) else None
    else:
        return
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    if found != {special.get(token, token): number for token, number in stock.items()}:
        raise UserError(f"{folder}: its tokenizer does not have CLIP's own tokens, so this text tower would be given wrong ids")


def _preprocessing(folder: Path, image_size: int) -> dict[str, Any]:
    """The open_clip `preprocess_cfg`; without a file, that of CLIP (`CLIPImageProcessor`)."""
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


_TENSORS = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "text.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    "text_model.final_layer_norm.weight": "text.ln_final.weight",
    "text_model.final_layer_norm.bias": "text.ln_final.bias",
    "text_projection.weight": "text.text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "visual_projection.weight": "visual.proj",
}
_TRANSPOSED = ("text_projection.weight", "visual_projection.weight")  # a Linear there, a plain matrix in open_clip
_CONSTANTS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
_LAYER = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_IN_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def clip_state(files: list[Path]) -> State:
    """The tensors of `weight_files` under the names that open_clip's `CustomTextCLIP` has for them, as they are stored.

    UserError for a tensor that a CLIPModel does not have. A tensor that is missing here is missing in the result.
    """
    made: State = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for file in files:
        for name, value in read_weights(file).items():
            if name in _TENSORS:
                made[_TENSORS[name]] = value.T.contiguous() if name in _TRANSPOSED else value
            elif name not in _CONSTANTS:
                _layer_tensor(name, value, made, joined, file)
    for target, parts in joined.items():
        missing = [part for part in _QKV if part not in parts]
        if missing:
            raise UserError(f"{files[0].parent}: {target} lacks its {missing[0]}, so these are not the whole weights of a CLIPModel")
        made[target] = torch.cat([parts[part] for part in _QKV])
    return made


def _layer_tensor(name: str, value: Tensor, made: State, joined: dict[str, dict[str, Tensor]], file: Path) -> None:
    match = _LAYER.fullmatch(name)
    tower, number, part, kind = match.groups() if match else ("", "", "", "")
    block = f"{'visual' if tower == 'vision' else 'text'}.transformer.resblocks.{number}"
    if part in _QKV:
        joined.setdefault(f"{block}.attn.in_proj_{kind}", {})[part] = value
    elif part in _IN_LAYER:
        made[f"{block}.{_IN_LAYER[part]}.{kind}"] = value
    else:
        raise UserError(f"{file}: {name} is not a tensor of a CLIPModel; only plain CLIP models of transformers can be opened")
