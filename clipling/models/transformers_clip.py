"""A `CLIPModel` of transformers as an open_clip config and state: the same function under other names.

What is read are the files that `CLIPModel.save_pretrained` and `CLIPProcessor.save_pretrained` write; transformers itself
is not needed. Whatever would make open_clip's model another function is refused by name, never approximated. Only dropout is
dropped: open_clip has none in attention, and it plays no part in evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipling.errors import UserError
from clipling.models.inits import State
from clipling.models.irregular_config import mlp_ratio
from clipling.models.tokens import EOT, ClipTokens
from clipling.models.transformers_files import CONFIG, checked_count, checked_part, preprocessing
from clipling.models.transformers_state import Blocks, renamed
from clipling.store import read_json

# What a config.json that leaves a setting out means (CLIPTextConfig and CLIPVisionConfig of transformers).
_TEXT = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
    "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": EOT,
}  # fmt: skip
_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "num_channels": 3,
    "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
_OPEN_CLIP_EPS = 1e-5


def clip_config(folder: Path) -> dict[str, Any]:
    """The open_clip config (`model_cfg`, `preprocess_cfg`) of a transformers CLIP.

    UserError, naming the setting, for what open_clip's model cannot be.
    """
    path = folder / CONFIG
    content = read_json(path)
    text, vision = checked_part(content, "text", _TEXT, path), checked_part(content, "vision", _VISION, path)
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
        "embed_dim": checked_count(width, "projection_dim", path),
        "quick_gelu": act == "quick_gelu",
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            **tower(vision),
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "heads": text["num_attention_heads"],
            **tower(text),
        },
    }
    return {"model_cfg": model, "preprocess_cfg": preprocessing(folder, vision["image_size"])}


def tower(part: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that both towers of open_clip's config share, of a checked part of transformers'."""
    made = {
        "layers": part["num_hidden_layers"],
        "width": part["hidden_size"],
        "mlp_ratio": mlp_ratio(part["hidden_size"], part["intermediate_size"]),
    }
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


TENSORS = {
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
TRANSPOSED = ("text.text_projection", "visual.proj")  # a Linear in transformers, a plain matrix in open_clip
PARTS = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
BLOCKS = {
    "text": Blocks("text.transformer.resblocks", PARTS, "attn.in_proj_"),
    "vision": Blocks("visual.transformer.resblocks", PARTS, "attn.in_proj_"),
}


def clip_state(files: list[Path]) -> State:
    """The tensors of `weight_files` under the names that open_clip's `CustomTextCLIP` has for them, as they are stored.

    UserError for a tensor that a CLIPModel does not have. A tensor that is missing here is missing in the result.
    """
    made = renamed(files, "CLIPModel", TENSORS, BLOCKS)
    return {name: value.T.contiguous() if name in TRANSPOSED else value for name, value in made.items()}
