"""Checkpoints as the authors of TinyCLIP and MobileCLIP published them: one pickled file of tensors, under names of their own.

A pickle can run code when it is loaded, so it is read by torch's restricted loader (`weights_only=True`), which knows tensors and plain
containers and nothing else, and only where a user asks for the conversion of that file. What comes out is a student of open_clip's kind.
Layouts: TinyCLIP (arXiv 2309.12314) keeps the two towers and the scale in wrappers of their own, with or without DDP's `module.`;
MobileCLIP (arXiv 2311.17049) is renamed by open_clip and timm. Neither was tried on the published files, only on files in their layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import CustomTextCLIP, convert_to_custom_text_state_dict
from torch import Tensor

from clipling.errors import UserError, near
from clipling.models.catalogue import open_clips_config, zoo_config, zoo_names
from clipling.models.dual import Student
from clipling.models.hub import new_student
from clipling.models.inits import State, load_exactly, read_weights
from clipling.store import read_json

# What only Apple's own layout has: the first convolution of a FastViT, and of the ViT with a convolutional stem.
MOBILECLIP = ("image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight", "image_encoder.model.patch_emb.0.block.conv.weight")
_WRAPPERS = ("state_dict", "model")
_TINYCLIP = re.compile(r"_?(image_encoder|text_encoder|logit_scale)(_without_ddp)?(\.module)*\.")
_MASKS = "l0_module"


def open_published(file: Path, config: str) -> tuple[Student, dict[str, Any]]:
    """A student, in evaluation mode, of a checkpoint, and what is to be said of it: {"layout": ..., "ignored_masks": ...}.

    config: what the file does not say: a name of the zoo, of open_clip's models, or a .json file in the form of
    open_clip_config.json. UserError for a pickle with anything but tensors and containers, and for weights of another shape.
    """
    student = new_student(published_config(config)).eval()
    state = tensors_of(read_weights(file) if file.suffix == ".safetensors" else _unpickled(file), file)
    state, said = renamed_state(student.model, state)
    load_exactly(student.model, state, str(file))
    return student, said


def published_config(config: str) -> dict[str, Any]:
    """The config that a name or a file stands for; for open_clip's names with the preprocessing of their published weights."""
    import open_clip

    if config.endswith(".json"):
        return read_json(config)
    if config in zoo_names():
        return zoo_config(config)
    if config not in open_clip.list_models():
        raise UserError(
            f"--config {config!r} is no model of the zoo or of open_clip. {near(config, [*zoo_names(), *open_clip.list_models()])}"
        )
    return open_clips_config(config)


def _unpickled(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist") from error
    except Exception as error:  # the loader raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{file} is not a checkpoint of tensors alone, or not whole: {reason} Anything else in a pickle can run code when it is "
            "loaded, so it is not. Where you trust the file, save its state_dict as .safetensors and give that"
        ) from error


def tensors_of(saved: Any, file: Path) -> State:
    """The state dict inside a checkpoint, without wrappers and without the `module.` of DDP."""
    while isinstance(saved, Mapping) and (inner := next((k for k in _WRAPPERS if isinstance(saved.get(k), Mapping)), None)):
        saved = saved[inner]
    if not isinstance(saved, Mapping) or not saved or not all(isinstance(v, Tensor) for v in saved.values()):
        raise UserError(f"{file} holds no state dict: expected tensors by name, alone or under {' or '.join(map(repr, _WRAPPERS))}")
    state = dict(saved)
    while all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def renamed_state(model: CustomTextCLIP, state: State) -> tuple[State, dict[str, Any]]:
    """The tensors under the names of `model`, and which layout they were in."""
    if any(name in state for name in MOBILECLIP):
        state = convert_state_dict(model, state)
        state["logit_scale"] = state["logit_scale"].reshape(())
        return state, {"layout": "mobileclip"}
    if not any(_TINYCLIP.match(name) for name in state):
        return convert_to_custom_text_state_dict(state), {"layout": "open_clip"}
    made: State = {}
    masks = 0
    for name, value in state.items():
        if _MASKS in name.split("."):
            masks += 1
            continue
        short = _TINYCLIP.sub("", name, count=1)
        if short in made and not torch.equal(made[short], value):
            raise UserError(f"two tensors of this checkpoint are both {short}, and they differ: which one counts is not known")
        made[short] = value
    made = convert_to_custom_text_state_dict(made)
    return made, {"layout": "tinyclip", "ignored_masks": masks}
