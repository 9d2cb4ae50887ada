"""A student as a `CLIPModel` of transformers: the same function under other names, or the first thing that does not fit.

What fits: a ViT of open_clip's own with a class token, beside its causal text transformer with CLIP's tokens, of regular layers, with
GELU or QuickGELU. It is read back by transformers_clip.py with bit-equal weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file
from torch import Tensor

from clipling.errors import UserError
from clipling.models.clip_tokenizer import tokenizer_files
from clipling.models.dual import Student
from clipling.models.inits import State
from clipling.models.irregular_config import head_width
from clipling.models.tokens import EOT, SOT
from clipling.models.transformers_clip import BLOCKS, TENSORS, TRANSPOSED
from clipling.models.transformers_files import CONFIG, WEIGHTS
from clipling.models.transformers_state import QKV
from clipling.store import atomic_produce, atomic_write, disk_error

PREPROCESSING = "preprocessor_config.json"
_RESAMPLING = {"bilinear": 2, "bicubic": 3}
# Settings that transformers' config has too, and those that change nothing in evaluation.
_SAME_VISION = ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "norm_kwargs", "patch_dropout", "pos_embed_type")
_SAME_TEXT = ("context_length", "width", "heads", "layers", "mlp_ratio", "norm_kwargs", "pad_id", "eos_id")
_OF_TIMM = "timm_"  # settings of a tower that is not there, once timm_model_name is known to be None
_OF_HF = "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"


def save_transformers(student: Student, folder: Path | str, card: str | None = None) -> None:
    """Writes what `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained` read, and with `card` a README.md.

    Every file whole or not at all, `config.json` last. UserError, naming the first thing that does not fit, before anything is
    written.
    """
    folder = Path(folder)
    config, pictures, state = transformers_config(student), _image_processor(student), _state(student)
    try:
        (folder / CONFIG).unlink(missing_ok=True)  # a kill in between must not leave the new weights with the old config
    except OSError as error:
        raise disk_error(error, folder / CONFIG) from error
    atomic_produce(folder / WEIGHTS, lambda path: save_file(state, path, metadata={"format": "pt"}))
    for name, content in tokenizer_files(student.context_length).items():
        atomic_write(folder / name, content)
    atomic_write(folder / PREPROCESSING, json.dumps(pictures, indent=2) + "\n")
    if card is not None:
        atomic_write(folder / "README.md", card)
    atomic_write(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def transformers_config(student: Student) -> dict[str, Any]:
    """The content of config.json; UserError, naming the first thing that does not fit."""
    reason = why_not(student)
    if reason is not None:
        raise UserError(
            f"transformers' CLIP cannot be this model: {reason}. What fits is a ViT of open_clip's own with its causal text transformer; "
            "other models are kept in open_clip's layout (--to open_clip)"
        )
    model = student.config["model_cfg"]
    vision, text = CLIPVisionCfg(**model["vision_cfg"]), CLIPTextCfg(**model["text_cfg"])
    act = {"hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu", "projection_dim": student.embed_dim}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float32",
        "projection_dim": student.embed_dim,
        "logit_scale_init_value": student.logit_scale.item(),
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": student.image_size,
            "patch_size": vision.patch_size,
            "num_channels": 3,
            **_tower(vision, vision.width // head_width("image", model)),
            **act,
        },
        "text_config": {
            "model_type": "clip_text_model",
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocab_size,
            "bos_token_id": SOT,
            "eos_token_id": EOT,
            **_tower(text, text.heads),
            **act,
        },
    }


def _tower(part: CLIPVisionCfg | CLIPTextCfg, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": part.width,
        "intermediate_size": int(part.width * part.mlp_ratio),
        "num_hidden_layers": part.layers,
        "num_attention_heads": heads,
        "layer_norm_eps": (part.norm_kwargs or {}).get("eps", 1e-5),
    }


def why_not(student: Student) -> str | None:
    """The first thing that transformers' CLIP cannot be, for people; None where all fits."""
    return next(_misfits(student), None)


def _misfits(student: Student) -> Iterator[str]:
    """What a CLIPModel cannot be, one sentence each."""
    config, model = student.config, student.config["model_cfg"]
    for side in config.get("pruned", {}):
        yield f"the layers of its {side} tower differ in their numbers of heads and MLP units (pruned by learned masks)"
    vision, text = CLIPVisionCfg(**model["vision_cfg"]), CLIPTextCfg(**model["text_cfg"])
    if vision.timm_model_name is not None:
        yield f"its image tower is {vision.timm_model_name!r} of timm"
    if not isinstance(vision.layers, int):
        yield "its image tower is a ResNet"
    if text.hf_model_name is not None:
        yield f"its text tower is {Path(text.hf_model_name).name!r} of Hugging Face"
    own = [field for field in fields(vision) if not field.name.startswith(_OF_TIMM)]
    for where, part, known, same in (("vision_cfg", vision, own, _SAME_VISION), ("text_cfg", text, fields(text), _SAME_TEXT)):
        for field in known:
            value = getattr(part, field.name)
            if field.name not in (*same, *_OF_HF, "output_tokens") and (value or None) != (field.default or None):
                yield f"{where}.{field.name} is {value!r}"
        if set(part.norm_kwargs or {}) - {"eps"}:
            yield f"{where}.norm_kwargs is {part.norm_kwargs!r}"
    if student.logit_bias is not None:
        yield "it has a logit_bias"
    preprocess = student.preprocess_cfg
    if preprocess["interpolation"] not in _RESAMPLING:
        yield f"preprocess_cfg.interpolation is {preprocess['interpolation']!r}"
    if (preprocess["resize_mode"] or "shortest") not in ("shortest", "squash"):
        yield f"preprocess_cfg.resize_mode is {preprocess['resize_mode']!r}"


def _image_processor(student: Student) -> dict[str, Any]:
    preprocess, side = student.preprocess_cfg, student.image_size
    squash = preprocess["resize_mode"] == "squash"
    square = {"height": side, "width": side}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if squash else {"shortest_edge": side},
        "resample": _RESAMPLING[preprocess["interpolation"]],
        "do_center_crop": not squash,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess["mean"]),
        "image_std": list(preprocess["std"]),
    }


def _state(student: Student) -> State:
    """The tensors under the names of a CLIPModel, their values untouched."""
    left = student.stock_state()
    made = {}
    for name, ours in TENSORS.items():
        value = left.pop(ours)
        made[name] = value.T.contiguous() if ours in TRANSPOSED else value
    for tower, blocks in BLOCKS.items():
        for number in range(student.config["model_cfg"][f"{tower}_cfg"].get("layers", 12)):
            before, after = f"{blocks.prefix}.{number}.", f"{tower}_model.encoder.layers.{number}."
            for kind in ("weight", "bias"):
                for name, ours in blocks.parts.items():
                    made[f"{after}{name}.{kind}"] = left.pop(f"{before}{ours}.{kind}")
                made |= _apart(left.pop(f"{before}{blocks.qkv}{kind}"), after, kind)
    if left:
        raise UserError(f"transformers' CLIP has no place for {next(iter(left))} ({len(left)} tensors of this model)")
    return made


def _apart(joined: Tensor, after: str, kind: str) -> State:
    return {f"{after}{name}.{kind}": part.clone() for name, part in zip(QKV, joined.chunk(3))}
