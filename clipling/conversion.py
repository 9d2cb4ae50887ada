"""A model from one layout to another, its card and licences with it: what `clipling convert` runs."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from clipling.card_rows import last_parts
from clipling.converted_card import converted_card
from clipling.errors import UserError, near
from clipling.models.dual import Student
from clipling.models.hub import CONFIG, IRREGULAR_CONFIG, PICKLES, TEXT_FILES, WEIGHTS, open_student, save_student
from clipling.models.licences import AMLR, licences_of
from clipling.models.published import open_published
from clipling.models.to_transformers import PREPROCESSING, save_transformers, transformers_config
from clipling.models.transformers_files import CONFIG as TRANSFORMERS_CONFIG
from clipling.models.transformers_files import WEIGHTS as TRANSFORMERS_WEIGHTS
from clipling.runfolder import entries, is_leftover, keep_apart, shown
from clipling.store import atomic_produce, disk_error

LAYOUTS = ("open_clip", "transformers")
NOTICES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt")
# Whatever a conversion writes, configs first: without one, what a kill leaves of a folder is no model.
MADE = (CONFIG, IRREGULAR_CONFIG, TRANSFORMERS_CONFIG, WEIGHTS, TRANSFORMERS_WEIGHTS, PREPROCESSING, "README.md", *TEXT_FILES, *NOTICES)


def convert(model: str, to: str, out: Path, config: str | None = None, *, overwrite: bool = False) -> dict[str, Any]:
    """Writes `model` into `out` in the layout `to`, opens what was written and compares every weight.

    model: what `open_student` opens, or a checkpoint file together with `config` (see models/published.py). UserError for a model
    that the layout cannot hold, and for a folder that holds anything else, before anything is written.
    """
    if to not in LAYOUTS:
        raise UserError(f"--to is {to!r}. {near(to, LAYOUTS)}")
    keep_apart(out, model, str(Path(model.removeprefix("local-dir:")) / "model"))
    _check_out(out, overwrite)
    student, said = _opened(model, config)
    if to == "open_clip" and "pruned" in student.config:
        raise UserError(f"{model} has layers that differ in size, which stock open_clip cannot build: it stays in clipling's own layout")
    source = _folder_of(model)
    name = _last_part(model)
    licences = {spec: licence.text for spec, licence in licences_of(str(source) if source else model).items()}
    if said.get("layout") == "mobileclip":
        licences = {name: f"{AMLR}, where these are Apple's weights"}
    card = converted_card(source, name, to, _in_words(said, to), student.config, licences)
    if to == "transformers":
        transformers_config(student)  # a model that does not fit is refused before an older one is removed
    with _beside(out) as fresh:  # an older conversion goes only when the new one is whole
        (save_transformers if to == "transformers" else save_student)(student, fresh, card)
        _copy_notices(source, fresh)
        _compare(student, open_student(f"transformers:{fresh}" if to == "transformers" else fresh), out)
        _remove(out)
        _move(fresh, out)
    sizes = student.sizes()
    made = {"model": model, "to": to, "out": str(out), "parameters": f"{sizes['total']:,}", "embed_dim": student.embed_dim, **said}
    return {**made, "weights": "read back, equal to the source's bit by bit"}


def _opened(model: str, config: str | None) -> tuple[Student, dict[str, Any]]:
    file = Path(model)
    checkpoint = file.suffix in (*PICKLES, ".safetensors")
    if checkpoint and config is None:
        raise UserError(
            f"{model} is a checkpoint file, which does not say how its model is built. Give --config: a name of the zoo or of open_clip, "
            "or a .json file in the form of open_clip_config.json"
        )
    if config is not None and not checkpoint:
        raise UserError(f"--config belongs to a checkpoint file (.pt, .safetensors); {model} has a config of its own")
    return open_published(file, config) if config is not None else (open_student(model), {})


def _check_out(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out expects a folder")
    strange = [path.name for path in entries(out) if path.name not in MADE]
    if entries(out) and not overwrite:
        raise UserError(f"the folder {out} already exists and is not empty. Use --overwrite, or another --out.")
    if strange:
        raise UserError(f"--overwrite: {out} holds files that no conversion made ({shown(strange)}). Choose another --out.")


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A temporary folder on the disk of `out`, gone afterwards."""
    place = Path(os.path.abspath(out))
    fresh = place.parent / f".{place.name}.{secrets.token_hex(4)}.tmp"
    try:
        yield fresh
    except OSError as error:
        raise disk_error(error, out) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _move(fresh: Path, out: Path) -> None:
    """Every file to its place, configs last: without one, what a kill leaves of a folder is no model."""
    out.mkdir(parents=True, exist_ok=True)
    for name in reversed(MADE):
        if (fresh / name).is_file():
            os.replace(fresh / name, out / name)


def _remove(out: Path) -> None:
    """Takes away an older conversion: two layouts in one folder would not be told apart."""
    if not out.is_dir():
        return
    try:
        for name in MADE:
            (out / name).unlink(missing_ok=True)
        for path in filter(is_leftover, list(out.iterdir())):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error


def _folder_of(model: str) -> Path | None:
    """The folder that the model lies in, or None: of a run its `model/`."""
    folder = Path(model.removeprefix("local-dir:").removeprefix("transformers:"))
    inner = folder / "model"
    if any((inner / name).is_file() for name in (CONFIG, IRREGULAR_CONFIG)):
        return inner
    return folder if folder.is_dir() else None


def _last_part(model: str) -> str:
    return last_parts(model.removeprefix("local-dir:").removeprefix("transformers:"))


def _in_words(said: dict[str, Any], to: str) -> str:
    layout = f"from the layout {said['layout']} " if said.get("layout") else ""
    masks = said.get("ignored_masks")
    left = f", without its {masks} tensors of pruning masks" if masks else ""
    return f"{layout}to the layout of {to}, the same weights{left}."


def _copy_notices(source: Path | None, out: Path) -> None:
    for name in NOTICES:
        if source is not None and (source / name).is_file():
            atomic_produce(out / name, lambda path, name=name: shutil.copyfile(source / name, path))


def _compare(student: Student, written: Student, out: Path) -> None:
    ours, theirs = student.stock_state(), written.stock_state()
    if ours.keys() != theirs.keys() or not all(torch.equal(value, theirs[name]) for name, value in ours.items()):
        raise UserError(f"{out} does not hold the weights that were written: is the disk sound?")
