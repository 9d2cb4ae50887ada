"""The run folder: who may write into it, what of an older run may go, and which pairs a run was made from."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, TextIO

import yaml

from clipling.data.pairs import Pairs
from clipling.engine.runtime import Runtime
from clipling.errors import UserError
from clipling.recipe import Recipe, from_yaml, to_yaml
from clipling.store import disk_error, read_json

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder go unnoticed there
    fcntl = None  # type: ignore[assignment]

# What is there before the first checkpoint: nothing is lost when these are written anew.
BEFORE_TRAINING = ("recipe.yaml", "environment.json", "problems.tsv", "inputs.json", "guides.json", "knowledge.json", "metrics.jsonl")
RUN_FILES = (*BEFORE_TRAINING, "summary.json", "report.html")
RUN_FOLDERS = ("checkpoints", "model", "eval")
LOCK = ".lock"


@contextlib.contextmanager
def run_folder(out: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Makes the folder, and keeps other processes out of it. Nothing of an older run is removed here.

    Raises UserError for a folder that must not be written into: see `check_folder`.
    """
    check_folder(out, recipe, resume=resume, overwrite=overwrite)
    if resume and (out / "summary.json").is_file():
        yield  # finished: nothing will be written
        return
    fresh = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    try:
        with locked(out):
            check_folder(out, recipe, resume=resume, overwrite=overwrite)  # again: who held the lock may have left a run
            yield
    except UserError:
        if fresh:
            _remove_if_empty(out)
        raise


def _remove_if_empty(out: Path) -> None:
    """A run that was refused before its first file leaves no folder behind."""
    with contextlib.suppress(OSError):
        if not entries(out):
            (out / LOCK).unlink(missing_ok=True)
            out.rmdir()


def check_folder(out: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Refuses a run that would be overwritten unasked, resumed with another recipe, or mixed with other files."""
    if resume and overwrite:
        raise UserError("--resume and --overwrite contradict each other: give one of them")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out expects a folder")
    outside_runs(out)
    if not out.is_dir():
        return
    strange, begun, ours = strange_names(out), begun_names(out), is_run(out)
    if resume:
        if (strange or begun) and not ours:
            raise UserError(f"--resume: {out} is no run: it holds {shown(strange or begun)} and no recipe.yaml of a run. Mend --out.")
        if ours:
            same_recipe(out, recipe)
    elif overwrite:
        if strange:
            raise UserError(f"--overwrite: {out} holds files that no run made ({shown(strange)}). Choose another --out.")
        if begun and not ours:
            raise UserError(
                f"--overwrite: {out} holds {shown(begun)} but no recipe.yaml or summary.json of a run, so it may be something else. "
                "Choose another --out."
            )
    elif strange or begun:
        raise UserError(
            f"the folder {out} already exists and is not empty. Use --resume to continue its run, --overwrite, or another --out."
        )


def outside_runs(out: Path) -> None:
    """Refuses a folder inside another run: its --overwrite or its removal would take this one along."""
    above = next((folder for folder in out.resolve().parents if is_run(folder)), None)
    if above is not None:
        raise UserError(f"--out {out} is inside the run {above}. Choose an --out beside it.")


def keep_apart(out: Path, *models: str) -> None:
    """Refuses to write where a model lies that is needed to the end: --overwrite would remove it."""
    for model in models:
        place = Path(model.removeprefix("local-dir:").removeprefix("transformers:"))
        if place.exists() and (place.resolve() == out.resolve() or out.resolve() in place.resolve().parents):
            raise UserError(f"--out {out} is where the model {model} lies, which must not be written over. Choose another --out.")


def models_of(recipe: Recipe) -> list[str]:
    """Every model that a recipe starts from or learns from, as it is named there."""
    inherit = recipe.student.inherit
    named = [teacher.model for teacher in recipe.teachers.values()] + list(recipe.student.init.values())
    named += [spec for spec in (inherit.source, inherit.text_source) if spec] if inherit else []
    return [spec for spec in named if spec and spec not in recipe.teachers]


def shown(names: list[str]) -> str:
    return ", ".join(sorted(names)[:5])


def entries(folder: Path) -> list[Path]:
    """What a folder holds apart from the lock and what a killed write left."""
    return [p for p in folder.iterdir() if p.name != LOCK and not is_leftover(p)] if folder.is_dir() else []


def is_leftover(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def strange_names(out: Path) -> list[str]:
    """Files of another origin, those that only have the name of a run's file included."""
    found = [p.name for p in entries(out) if p.name not in RUN_FILES and p.name not in RUN_FOLDERS]
    return found + [name for name in OURS if (out / name).exists() and not is_ours(out / name)]


def begun_names(out: Path) -> list[str]:
    """What there would be to lose: everything but files from before the first checkpoint and empty folders."""
    return [p.name for p in entries(out) if p.name not in BEFORE_TRAINING and not (p.is_dir() and not entries(p))]


# Keys that our own files have, whatever version wrote them.
OURS = {"recipe.yaml": {"objective", "student", "optimiser"}, "summary.json": {"train_pairs", "samples_seen"}}


def is_run(out: Path) -> bool:
    return any(is_ours(out / name) for name in OURS)


def is_ours(path: Path) -> bool:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and content.keys() >= OURS[path.name]


def same_recipe(out: Path, recipe: Recipe) -> None:
    path = out / "recipe.yaml"
    if not path.is_file():
        return  # Killed before its first file was written: nothing to contradict.
    changed = _changes(yaml.safe_load(to_yaml(from_yaml(path))), yaml.safe_load(to_yaml(recipe)))
    if changed:
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        onward = f", or go on from its weights: `clipling finetune {out} --out ...`" if (out / "model").is_dir() else ""
        raise UserError(
            f"--resume: the recipe differs from the one that began {out} ({'; '.join(changed[:3])}{more}). "
            f"Resume with the same settings, start a new run with another --out{onward}."
        )


def same_command(out: Path, recipe: Recipe, runtime: Runtime, **flags: bool) -> None:
    """Raises UserError in every process unless all were started with the same settings: each would train on, to its own."""
    mine = {**yaml.safe_load(to_yaml(recipe)), "out": str(out), **flags}
    differ = [
        f"{name} is {first} in process 1, {here} in process {runtime.rank + 1}"
        for name, first, here in _differences(runtime.of_first(mine), mine)
    ]
    if runtime.any(bool(differ)):
        which = "; ".join(differ[:3]) or "another process says which"
        raise UserError(f"the processes were started with different settings: {which}. Start all of them with the same command.")


def _changes(before: Any, now: Any) -> list[str]:
    """`stages.0.epochs was 3, is 5` for each setting that differs; "-" for one that is not there."""
    return [f"{name} was {old}, is {new}" for name, old, new in _differences(before, now)]


def _differences(one: Any, other: Any, name: str = "") -> list[tuple[str, str, str]]:
    if isinstance(one, list) and isinstance(other, list) and all(isinstance(item, dict) for item in [*one, *other]):
        one, other = ({str(n): item for n, item in enumerate(given)} for given in (one, other))
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [(name, _value(one), _value(other))]
    keys = dict.fromkeys([*one, *other])
    return [found for key in keys for found in _differences(one.get(key, "-"), other.get(key, "-"), f"{name}.{key}".lstrip("."))]


def _value(value: Any) -> str:
    return "null" if value is None else str(value)


def clear(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Removes what must not be mixed with the run that begins now: the old run, or a start that came to nothing.

    A run that is resumed loses only the parts of files that a kill left.
    """
    try:
        if overwrite:
            for folder in RUN_FOLDERS:
                if (out / folder).exists():
                    shutil.rmtree(out / folder)
        if not resume:
            for name in RUN_FILES if overwrite else BEFORE_TRAINING:
                (out / name).unlink(missing_ok=True)
        for folder in (out / "checkpoints", out / "model"):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error


def inputs_of(train: Pairs, val: Pairs) -> dict[str, Any]:
    """What `inputs.json` says of the pairs, enough to notice others."""
    return {name: {"pairs": len(p), "keys": keys_digest(p), "fingerprint": p.fingerprint} for name, p in (("train", train), ("val", val))}


def keys_digest(pairs: Pairs) -> str:
    return blake2b("\n".join(pairs.keys).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def same_inputs(out: Path, now: dict[str, Any]) -> None:
    """Refuses to go on with other pairs. A run of before there was `inputs.json` is believed."""
    path = out / "inputs.json"
    if not path.is_file():
        return
    before = read_json(path)
    if before == now:
        return
    try:
        (train, train_now), (val, val_now) = ((before[name], now[name]) for name in ("train", "val"))
        kept = train["keys"] == train_now["keys"] and val["keys"] == val_now["keys"]
        counts = (
            f"{train['pairs']} training pairs then, {train_now['pairs']} now; {val['pairs']} validation pairs then, {val_now['pairs']} now"
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged. Start the run again with --overwrite.") from error
    why = "; the keys are the same, but pictures, captions or groups are not" if kept else ""
    raise UserError(
        f"--resume: the pairs differ from those that began the run: {counts}{why}. "
        "Put the data back as it was, or start a new run with another --out."
    )


_HELD: set[TextIO] = set()


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Holds the folder for this process alone; the system lets go when the process dies, however it dies."""
    if fcntl is None:
        yield
        return
    try:
        file = (out / LOCK).open("a", encoding="utf-8")
    except OSError as error:
        raise disk_error(error, out / LOCK) from error
    _HELD.add(file)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is training into {out}. Wait for its end, or choose another --out.") from None
        yield
    finally:
        _HELD.discard(file)
        file.close()


def _let_go() -> None:
    """In forked children, such as loader workers: they may outlive a killed run for seconds and must not hold its folder."""
    for file in _HELD:
        file.close()
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
