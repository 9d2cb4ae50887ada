"""A `SiglipModel` of transformers as an open_clip config and state: the same function under other names.

As transformers_clip.py: only config and safetensors are read, and whatever would be another function is refused by name. The image
tower is one of siglip_towers.py; the text tower is open_clip's, not causal, pooled at the last position. The tokenizer is the folder's
own, run by transformers behind open_clip's cleaning, as for open_clip's own SigLIP models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipling.errors import UserError
from clipling.models import siglip_towers
from clipling.models.inits import State
from clipling.models.irregular_config import mlp_ratio
from clipling.models.transformers_clip import PARTS
from clipling.models.transformers_files import CONFIG, checked_part, preprocessing
from clipling.models.transformers_state import Blocks, renamed
from clipling.store import read_json

# What a config.json that leaves a setting out means (SiglipTextConfig and SiglipVisionConfig of transformers).
_TEXT = {
    "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "max_position_embeddings": 64, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "projection_size": None,
}  # fmt: skip
_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "num_channels": 3,
    "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "vision_use_head": True,
}  # fmt: skip
_ACTIVATIONS = {"gelu_pytorch_tanh": "tanh", "gelu": "erf"}
# How texts are cleaned before the tokenizer sees them, by its class: as open_clip does for SigLIP; SigLIP 2 was trained on lower case.
_CLEAN = {
    **dict.fromkeys(("SiglipTokenizer", "T5Tokenizer", "T5TokenizerFast"), "canonicalize"),
    **dict.fromkeys(("GemmaTokenizer", "GemmaTokenizerFast", "Siglip2Tokenizer"), "lower"),
}


def siglip_config(folder: Path) -> dict[str, Any]:
    """The open_clip config (`model_cfg`, `preprocess_cfg`) of a transformers SigLIP.

    UserError, naming the setting, for what open_clip's model cannot be.
    """
    path = folder / CONFIG
    content = read_json(path)
    text, vision = checked_part(content, "text", _TEXT, path), checked_part(content, "vision", _VISION, path)
    for name, part in (("text", text), ("vision", vision)):
        if part["hidden_act"] not in _ACTIVATIONS:
            raise UserError(f"{path}: {name}_config.hidden_act is {part['hidden_act']!r}; expected one of {', '.join(_ACTIVATIONS)}")
    if vision["num_channels"] != 3:
        raise UserError(f"{path}: vision_config.num_channels is {vision['num_channels']}; pictures have 3")
    if vision["layer_norm_eps"] != siglip_towers.EPS:
        raise UserError(f"{path}: vision_config.layer_norm_eps is {vision['layer_norm_eps']}; expected {siglip_towers.EPS}")
    if vision["vision_use_head"] is not True:
        raise UserError(f"{path}: vision_use_head is {vision['vision_use_head']!r}; without its head there is no embedding")
    projected = text["hidden_size"] if text["projection_size"] is None else text["projection_size"]
    if projected != vision["hidden_size"]:
        raise UserError(
            f"{path}: text embeddings have {projected!r} dimensions (text_config.projection_size) and those of pictures "
            f"{vision['hidden_size']} (vision_config.hidden_size), so they cannot be compared"
        )
    square = {"height": vision["image_size"], "width": vision["image_size"]}
    defaults = {"size": square, "do_center_crop": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return {
        "model_cfg": {
            "embed_dim": vision["hidden_size"],
            "init_logit_bias": -10,  # so that there is one; its value comes with the weights
            "vision_cfg": _vision(vision),
            "text_cfg": {**_text(text), **_tokenizer(folder)},
        },
        "preprocess_cfg": preprocessing(folder, vision["image_size"], defaults),
    }


def _vision(part: dict[str, Any]) -> dict[str, Any]:
    name = siglip_towers.tower_name(
        width=part["hidden_size"],
        layers=part["num_hidden_layers"],
        heads=part["num_attention_heads"],
        units=part["intermediate_size"],
        patch=part["patch_size"],
        size=part["image_size"],
        activation=_ACTIVATIONS[part["hidden_act"]],
    )
    return {"image_size": part["image_size"], "timm_model_name": name, "timm_pool": "map", "timm_proj": "none"}


def _text(part: dict[str, Any]) -> dict[str, Any]:
    made = {
        "context_length": part["max_position_embeddings"],
        "vocab_size": part["vocab_size"],
        "width": part["hidden_size"],
        "heads": part["num_attention_heads"],
        "layers": part["num_hidden_layers"],
        "mlp_ratio": mlp_ratio(part["hidden_size"], part["intermediate_size"]),
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": part["layer_norm_eps"]},
    }
    if _ACTIVATIONS[part["hidden_act"]] == "tanh":
        made["act_kwargs"] = {"approximate": "tanh"}
    return made


def _tokenizer(folder: Path) -> dict[str, Any]:
    """The settings of open_clip's `HFTokenizer`; UserError where the folder has no tokenizer of a kind that SigLIP is known with."""
    path = folder / "tokenizer_config.json"
    if not path.is_file() or not any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        raise UserError(
            f"{folder} lacks its tokenizer: expected tokenizer_config.json and tokenizer.json or spiece.model beside the weights"
        )
    content = read_json(path)
    kind = content.get("tokenizer_class") if isinstance(content, dict) else None
    if kind not in _CLEAN:
        raise UserError(f"{path}: tokenizer_class is {kind!r}; a SigLIP has one of {', '.join(_CLEAN)}")
    return {"hf_tokenizer_name": str(folder.resolve()), "tokenizer_kwargs": {"clean": _CLEAN[kind]}}


_BOTH = ("weight", "bias")
_TENSORS = {
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
    "text_model.embeddings.token_embedding.weight": "text.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    **{f"text_model.final_layer_norm.{kind}": f"text.ln_final.{kind}" for kind in _BOTH},
    **{f"text_model.head.{kind}": f"text.text_projection.{kind}" for kind in _BOTH},
    **{f"vision_model.embeddings.patch_embedding.{kind}": f"visual.trunk.patch_embed.proj.{kind}" for kind in _BOTH},
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    **{f"vision_model.post_layernorm.{kind}": f"visual.trunk.norm.{kind}" for kind in _BOTH},
    "vision_model.head.probe": "visual.trunk.attn_pool.latent",
    **{f"vision_model.head.attention.in_proj_{kind}": f"visual.trunk.attn_pool.in_proj.{kind}" for kind in _BOTH},
    **{f"vision_model.head.attention.out_proj.{kind}": f"visual.trunk.attn_pool.proj.{kind}" for kind in _BOTH},
    **{f"vision_model.head.layernorm.{kind}": f"visual.trunk.attn_pool.norm.{kind}" for kind in _BOTH},
    **{f"vision_model.head.mlp.{fc}.{kind}": f"visual.trunk.attn_pool.mlp.{fc}.{kind}" for fc in ("fc1", "fc2") for kind in _BOTH},
}
_VISION_PARTS = {
    "layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
_BLOCKS = {
    "text": Blocks("text.transformer.resblocks", PARTS, "attn.in_proj_"),
    "vision": Blocks("visual.trunk.blocks", _VISION_PARTS, "attn.qkv."),
}


def siglip_state(files: list[Path]) -> State:
    """The tensors of `weight_files` under the names that open_clip's `CustomTextCLIP` has for them, as they are stored.

    UserError for a tensor that a SiglipModel does not have. A tensor that is missing here is missing in the result.
    """
    made = renamed(files, "SiglipModel", _TENSORS, _BLOCKS)
    pool = "visual.trunk.attn_pool."
    for kind in _BOTH:  # timm keeps the query's projection apart from those of keys and values
        joined = made.pop(f"{pool}in_proj.{kind}", None)
        if joined is not None:
            width = len(joined) // 3
            made[f"{pool}q.{kind}"], made[f"{pool}kv.{kind}"] = joined[:width].clone(), joined[width:].clone()
    for name in ("logit_scale", "logit_bias"):
        if name in made and made[name].numel() == 1:
            made[name] = made[name].reshape(())
    if "visual.trunk.pos_embed" in made:
        made["visual.trunk.pos_embed"] = made["visual.trunk.pos_embed"][None]
    return made
