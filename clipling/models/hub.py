"""Students made, opened and saved. Weights are safetensors; no foreign pickle is ever loaded."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from safetensors.torch import save_file
from torch import Tensor

from clipling.errors import UserError, near
from clipling.models.build import checked_config, find_text_folder
from clipling.models.catalogue import zoo_config, zoo_names, zoo_table
from clipling.models.dual import Student
from clipling.models.inits import init_image, init_text, load_exactly, read_weights
from clipling.models.transformers_clip import clip_config, clip_state
from clipling.models.transformers_files import CONFIG as TRANSFORMERS_CONFIG
from clipling.models.transformers_files import hub_folder, model_type, weight_files
from clipling.models.transformers_siglip import siglip_config, siglip_state
from clipling.store import atomic_produce, atomic_write, cache_dir, disk_error, read_json

__all__ = ["new_student", "open_student", "save_student", "zoo_config", "zoo_names", "zoo_table"]

CONFIG = "open_clip_config.json"
IRREGULAR_CONFIG = "clipling_config.json"  # of what stock open_clip cannot build: it finds no config, and says so
WEIGHTS = "open_clip_model.safetensors"
WEIGHT_NAMES = (WEIGHTS, "open_clip_pytorch_model.safetensors", "model.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
TEXT_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model",
)  # fmt: skip


def new_student(
    config: str | Path | dict[str, Any],
    *,
    seed: int = 0,
    init: dict[str, str] | None = None,
    vocabulary: Sequence[str] | Tensor | None = None,
) -> Student:
    """A student to be trained, in training mode.

    config: a name of the zoo, a `.json` file or its content. The weights depend on `seed` alone, and no global generator is
    touched. init: what starts from trained weights: {"image": ..., "text": ...} (see inits.py) or {"model": SPEC}, anything
    that `open_student` opens and that fits the config (another image size is fine for a ViT). vocabulary: the training
    captions, or their token ids, to restrict the token table to (see vocabulary.py).
    """
    if isinstance(config, str) and not config.endswith(".json"):
        config = zoo_config(config)
    elif not isinstance(config, dict):
        config = read_json(config)
    init = dict(init or {})
    for part in init:
        if part not in ("image", "text", "model"):
            raise UserError(f"init has an unknown part {part!r}. {near(part, ('image', 'text', 'model'))}")
    student = _seeded(config, seed)
    if "model" in init:
        if len(init) > 1:
            raise UserError("init takes either 'model', or 'image' and 'text', not both")
        source = open_student(init["model"])
        state = source.stock_state()
        resize_pos_embed(state, student.model)
        load_exactly(student.model, state, f"the model {init['model']!r}")
        for key in ("mean", "std"):
            student.preprocess_cfg[key] = source.preprocess_cfg[key]
    if "image" in init:
        init_image(student, init["image"])
    if "text" in init:
        init_text(student, init["text"])
    if vocabulary is not None:
        ids = vocabulary if isinstance(vocabulary, Tensor) else student.tokenise(vocabulary)
        student.restrict_vocabulary(ids, frozen_rest="model" in init or "text" in init)
    return student.train()


def _seeded(config: dict[str, Any], seed: int, beside: Path | None = None) -> Student:
    config = checked_config(config)
    text_folder = find_text_folder(config, beside)
    # Only the CPU's generator: `torch.manual_seed` would also seed those of accelerators, which are not restored.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Student(config, text_folder)


def save_student(student: Student, folder: Path | str, card: str | None = None) -> None:
    """Writes `open_clip_config.json`, `open_clip_model.safetensors` and, with `card`, `README.md`, each whole or not at all.

    A student with irregular towers (see irregular.py) has `clipling_config.json` instead, and `open_student` alone opens it.

    Stock `open_clip.create_model_and_transforms("local-dir:" + folder)` opens it and gives the same embeddings. A Hugging
    Face text tower's config and tokenizer are saved beside it; stock open_clip opens such a folder too, but looks the
    tower's config up by its name, at the hub.
    """
    folder = Path(folder)
    state = student.stock_state()
    config = folder / (IRREGULAR_CONFIG if "pruned" in student.config else CONFIG)
    content = json.dumps(_without_paths(student.config), indent=2) + "\n"
    for old in (folder / CONFIG, folder / IRREGULAR_CONFIG):
        if old.is_file() and (old != config or old.read_text(encoding="utf-8", errors="replace") != content):
            try:
                old.unlink()  # a kill in between must not leave the new weights with the old config
            except OSError as error:
                raise disk_error(error, old) from error
    atomic_produce(folder / WEIGHTS, lambda path: save_file(state, path, metadata={"format": "pt"}))
    if student.text_folder is not None and student.text_folder.resolve() != folder.resolve():
        for name in TEXT_FILES if "hf_model_name" in student.config["model_cfg"]["text_cfg"] else TEXT_FILES[1:]:
            source = student.text_folder / name
            if source.is_file():
                atomic_produce(folder / name, lambda path, source=source: shutil.copyfile(source, path))
    if card is not None:
        atomic_write(folder / "README.md", card)
    atomic_write(config, content)


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The config as it is published: a text tower that was read from a folder is named by that folder's last part.

    Its own config and tokenizer lie beside the weights, where `open_student` looks first.
    """
    made = copy.deepcopy(config)
    text = made["model_cfg"]["text_cfg"]
    for key in ("hf_model_name", "hf_tokenizer_name"):
        if Path(text.get(key) or "").is_absolute():
            text[key] = Path(text[key]).name
    return made


def open_student(spec: str | Path) -> Student:
    """A trained student, in evaluation mode.

    spec: a folder in open_clip's layout (`local-dir:` before it is allowed), a run folder (its `model/` is opened), the
    folder of a transformers CLIP or SigLIP (`transformers:` before it where both layouts are there), `NAME@TAG`, a pretrained
    model of open_clip (which downloads it), or `transformers:NAME`, a CLIP or SigLIP of the hub.
    """
    text = str(spec)
    if text.startswith("transformers:"):
        return _open_transformers(hub_folder(text.removeprefix("transformers:")))
    folder = Path(text.removeprefix("local-dir:"))
    if _config_file(folder / "model"):
        folder = folder / "model"
    if folder.is_dir():
        return _open_folder(folder)
    if "@" in text:
        return _open_pretrained(*text.split("@", 1))
    if text in zoo_names():
        raise UserError(f"{text!r} is an untrained student of the zoo: use new_student, or give the folder of a trained model")
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(text)
    if tags:
        raise UserError(f"{text!r} is an architecture of open_clip. Add the weights, for example {text}@{tags[0]}")
    if folder.exists():
        raise UserError(f"{text} is a file; expected a run folder, the folder of a model, or an open_clip name with @TAG")
    if len(folder.parts) > 1 or text.startswith("local-dir:"):
        raise UserError(f"{text} does not exist. {_beside(folder)}")
    raise UserError(f"{text!r} is neither a folder here nor a model. {near(text, [*zoo_names(), *open_clip.list_models()])}")


def _beside(folder: Path) -> str:
    """What there is where a folder was looked for: its siblings whose names are near, or the first part that is missing."""
    parent = folder.parent
    while not parent.is_dir() and parent != parent.parent:
        folder, parent = parent, parent.parent
    there = [path.name for path in parent.iterdir() if path.is_dir()]
    return f"In {parent}: {near(folder.name, there, 'there is')}" if there else f"{parent} has no folders in it."


def _config_file(folder: Path) -> Path | None:
    return next((folder / name for name in (CONFIG, IRREGULAR_CONFIG) if (folder / name).is_file()), None)


def _open_folder(folder: Path) -> Student:
    file = _config_file(folder)
    if file is None and (folder / TRANSFORMERS_CONFIG).is_file():
        return _open_transformers(folder)
    if (folder / "clipling.json").is_file() and file is None:
        raise UserError(
            f"{folder} is an exported model, which runs without torch: clipling predict and embed, search, latency and clipling.load take "
            "it. Give the run or the model that it was exported from"
        )
    if file is None:
        raise UserError(f"{folder} holds no {CONFIG}, so it is not a model in open_clip's layout. Give the folder of a saved model")
    weights = next((folder / name for name in WEIGHT_NAMES if (folder / name).is_file()), None)
    if weights is None:
        raise _no_weights(folder, WEIGHTS)
    config = read_json(file)
    student = _seeded(config, 0, folder)
    load_exactly(student.model, convert_to_custom_text_state_dict(read_weights(weights)), str(weights))
    return student.eval()


def _open_transformers(folder: Path) -> Student:
    kind = model_type(folder)
    if kind not in ("clip", "siglip"):
        raise UserError(
            f"{folder / TRANSFORMERS_CONFIG} is of model_type {kind!r}. Of the models of transformers only CLIP ('clip') and SigLIP "
            "('siglip'), both towers, can be opened; a model in open_clip's layout has an open_clip_config.json"
        )
    config = clip_config(folder) if kind == "clip" else siglip_config(folder)
    files = weight_files(folder)
    if not files:
        raise _no_weights(folder, "model.safetensors")
    student = _seeded(config, 0, folder)
    load_exactly(student.model, clip_state(files) if kind == "clip" else siglip_state(files), str(folder))
    return student.eval()


def _no_weights(folder: Path, expected: str) -> UserError:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if not pickles:
        return UserError(f"{folder} holds no weights: expected {expected}")
    return UserError(
        f"{folder / pickles[0]} is a pickle, which can run any code when it is loaded. Convert it to {expected} with "
        "safetensors where you trust it"
    )


def _open_pretrained(name: str, tag: str) -> Student:
    import open_clip

    if name not in open_clip.list_models():
        raise UserError(f"open_clip has no model {name!r}. {near(name, open_clip.list_models())}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise UserError(f"open_clip has no weights {tag!r} for {name!r}. {near(tag, tags)}")
    quick_gelu = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    try:
        stock = open_clip.create_model(name, pretrained=tag, force_quick_gelu=quick_gelu, weights_only=True)
        model_cfg = {**open_clip.get_model_config(name), "quick_gelu": quick_gelu}
        folder = None
        if model_cfg["text_cfg"].get("hf_tokenizer_name"):
            folder = cache_dir() / "tokenizers" / name
            open_clip.get_tokenizer(name).save_pretrained(folder)
    except Exception as error:  # the hub's client raises many kinds
        raise UserError(f"open_clip cannot provide {name}@{tag}: {error}") from error
    student = _seeded({"model_cfg": model_cfg, "preprocess_cfg": stock.visual.preprocess_cfg}, 0, folder)
    load_exactly(student.model, convert_to_custom_text_state_dict(stock.state_dict()), f"{name}@{tag}")
    return student.eval()
