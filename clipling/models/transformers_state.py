"""Tensors of transformers' encoders under the names of other models: renamed, and three projections of attention joined into one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clipling.errors import UserError
from clipling.models.inits import State, read_weights

_LAYER = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
CONSTANTS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")  # old versions stored them


@dataclass(frozen=True)
class Blocks:
    """Names in the layers of one of our towers.

    prefix: before the layer's number. parts: ours by transformers', both without `.weight` and `.bias`. qkv: of the joined
    projections, before `weight` and `bias`.
    """

    prefix: str
    parts: Mapping[str, str]
    qkv: str


def renamed(files: list[Path], kind: str, whole: Mapping[str, str], blocks: Mapping[str, Blocks]) -> State:
    """The tensors of safetensors files of a transformers `kind` under our names, as they are stored.

    whole: our names by theirs, outside of the layers. blocks: `text` and `vision`. UserError for a tensor that is in neither; a
    tensor that is missing here is missing in the result.
    """
    made: State = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for file in files:
        for name, value in read_weights(file).items():
            if name in whole:
                made[whole[name]] = value
            elif name not in CONSTANTS and not _put(name, value, made, joined, blocks):
                raise UserError(f"{file}: {name} is not a tensor of a {kind}; only plain models of this kind can be opened")
    for target, parts in joined.items():
        missing = [part for part in QKV if part not in parts]
        if missing:
            raise UserError(f"{files[0].parent}: {target} lacks its {missing[0]}, so these are not the whole weights of a {kind}")
        made[target] = torch.cat([parts[part] for part in QKV])
    return made


def _put(name: str, value: Tensor, made: State, joined: dict[str, dict[str, Tensor]], blocks: Mapping[str, Blocks]) -> bool:
    """Files one tensor of a layer; whether it is one."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return False
    tower, number, part, kind = match.groups()
    names = blocks[tower]
    if part in QKV:
        joined.setdefault(f"{names.prefix}.{number}.{names.qkv}{kind}", {})[part] = value
    elif part in names.parts:
        made[f"{names.prefix}.{number}.{names.parts[part]}.{kind}"] = value
    else:
        return False
    return True
