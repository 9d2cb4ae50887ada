"""Models to compare with: architectures of open_clip or of the zoo by name, with random weights. Good for speed alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from clipling.errors import UserError, near
from clipling.models.catalogue import zoo_config, zoo_names
from clipling.models.dual import Student
from clipling.models.hub import new_student
from clipling.runtime.manifest import NAME
from clipling.store import cache_dir, read_json


def reference_student(name: str) -> Student:
    """An untrained student of that architecture, in evaluation mode. UserError for an unknown name."""
    return new_student(reference_config(name)).eval()


def reference_config(name: str) -> dict[str, Any]:
    import open_clip

    if name in zoo_names():
        return zoo_config(name)
    config = open_clip.get_model_config(name)
    if config is None:
        raise UserError(f"no architecture is called {name!r}. {near(name, [*open_clip.list_models(), *zoo_names()])}")
    if "hf_model_name" in config["text_cfg"]:
        raise UserError(f"the text tower of {name!r} is read from a model hub. Take an architecture with open_clip's own text tower")
    return {"model_cfg": config}


def reference_folder(name: str) -> Path:
    """The architecture exported once into the cache folder: fp32 graphs with random weights."""
    from clipling.deploy.export import export_fp32
    from clipling.deploy.folder import made_whole

    folder = cache_dir() / "references" / name
    config = reference_config(name)
    if (folder / NAME).is_file() and read_json(folder / NAME)["source"].get("config") == config:
        return folder
    print(f"{name}: exported once for comparison, which takes a minute or two", file=sys.stderr, flush=True)
    with made_whole(folder, overwrite=True) as place:
        export_fp32(reference_student(name), place, name, {"weights": "random", "config": config})
    return folder
