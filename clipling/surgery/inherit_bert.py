"""Configs of smaller BERT text towers, which open_clip knows by a folder alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from open_clip.hf_model import HFTextEncoder

from clipling.errors import UserError
from clipling.models.dual import Student
from clipling.models.hub import TEXT_FILES
from clipling.store import atomic_produce, atomic_write, cache_dir, read_json


def smaller_bert(source: Student, *, layers: int, hidden: int, intermediate: int, folder: Path | str | None = None) -> Path:
    """A folder with the config of a smaller BERT, and the source's tokenizer: for `text_cfg.hf_model_name` of a target.

    hidden is a multiple of the source's head width; the heads follow from it. folder: by default one in clipling's cache, named
    by its content. `save_student` copies these files beside the weights, so a saved student needs the folder no more.
    """
    tower = source.model.text
    if not isinstance(tower, HFTextEncoder) or tower.config.model_type != "bert" or source.text_folder is None:
        raise UserError("smaller_bert needs a source with a BERT text tower")
    now = tower.config
    head_width = now.hidden_size // now.num_attention_heads
    given = {"layers": layers, "hidden": hidden, "intermediate": intermediate}
    most = {"layers": now.num_hidden_layers, "hidden": now.hidden_size, "intermediate": now.intermediate_size}
    for name, value in given.items():
        if not 0 < value <= most[name]:
            raise UserError(f"smaller_bert: {name} is {value}, but must be 1 to {most[name]}, the source's")
    if hidden % head_width:
        raise UserError(f"smaller_bert: hidden is {hidden}, but must be a multiple of the source's head width {head_width}")
    config = {key: value for key, value in read_json(source.text_folder / "config.json").items() if key != "_name_or_path"}
    config |= {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": hidden // head_width}
    config["intermediate_size"] = intermediate
    files = [source.text_folder / name for name in TEXT_FILES if name != "config.json" and (source.text_folder / name).is_file()]
    if folder is None:
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for file in files:
            digest.update(file.read_bytes())
        folder = cache_dir() / "text_towers" / f"bert-{layers}x{hidden}x{intermediate}-{digest.hexdigest()[:12]}"
    folder = Path(folder)
    for file in files:
        atomic_produce(folder / file.name, lambda path, file=file: shutil.copyfile(file, path))
    atomic_write(folder / "config.json", json.dumps(config, indent=2) + "\n")
    return folder
