"""The model of an index: a copy of the exported folder lies in the index, so that serving needs nothing else."""

from __future__ import annotations

import os
import secrets
import shutil
from hashlib import blake2b
from pathlib import Path

from clipling.deploy.search.catalogue import NAME, Catalogue
from clipling.deploy.search.index import Encoder, refuse_another_model
from clipling.errors import UserError
from clipling.runtime.manifest import read_manifest
from clipling.store import disk_error, read_json

MANIFEST = "clipling.json"
FOLDER = "model"
_UNUSED = ("kit", "gate.json")  # of an exported folder, in an index


def model_for(given: str, out: Path, threads: int | None = None, overwrite: bool = False) -> tuple[Encoder, dict[str, str]]:
    """(runtime, what the catalogue keeps of it) of an exported folder, or of a run or model, which is exported first.

    Raises UserError where `given` is neither, of a run or model where torch is not installed, and where the index in `out` is
    of another model and not to be overwritten.
    """
    folder, kept = Path(given).expanduser(), out / FOLDER
    if (folder / MANIFEST).is_file():
        about = _take(folder, out, overwrite)
    else:
        about = _export(given, out, overwrite)
    return open_model(kept, threads), about


def _take(folder: Path, out: Path, overwrite: bool) -> dict[str, str]:
    """Copies an exported folder into the index, where it is not there."""
    about, kept = _about(folder), out / FOLDER
    if (out / NAME).is_file() and not overwrite:
        catalogue = Catalogue(out)
        try:
            refuse_another_model(catalogue, about)
        finally:
            catalogue.close()
    if not (kept / MANIFEST).is_file() or fingerprint(kept) != about["fingerprint"]:
        fresh = kept.with_name(f".{FOLDER}.{secrets.token_hex(4)}.tmp")
        try:
            shutil.copytree(folder, fresh, ignore=shutil.ignore_patterns(*_UNUSED))
            if kept.exists():
                shutil.rmtree(kept)
            os.replace(fresh, kept)  # a kill between the two is mended by the next call
        except OSError as error:
            raise disk_error(error, kept) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return about


def _export(given: str, out: Path, overwrite: bool) -> dict[str, str]:
    """Exports a run or model into the index; the same weights are not exported again."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{given} is not an exported folder (it has no {MANIFEST}), and torch, which exports a run or a model, is not installed. "
            "Export it where torch is (clipling export MODEL --out DIR) and give DIR, or: pip install 'clipling[train]'"
        ) from error
    from clipling.deploy.export import export, open_student, weights_hash

    student, kept = open_student(given), out / FOLDER
    if (kept / MANIFEST).is_file() and read_json(kept / MANIFEST).get("source", {}).get("weights") == weights_hash(student):
        return _take(kept, out, overwrite)
    out.mkdir(parents=True, exist_ok=True)
    fresh = kept.with_name(f".{FOLDER}.export.{secrets.token_hex(4)}.tmp")
    try:
        export(student, fresh, name=Path(given).name)
        return _take(fresh, out, overwrite)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def open_model(folder: Path, threads: int | None = None) -> Encoder:
    """The runtime of an exported folder."""
    from clipling.runtime.model import load

    return load(folder, threads=threads)


def fingerprint(folder: Path) -> str:
    """Of everything in an exported folder that decides an embedding: the towers, the tokenizer, how both are fed."""
    read_manifest(folder)  # a manifest that was edited by hand is named, and not stumbled over
    manifest = read_json(folder / MANIFEST)
    digest = blake2b(digest_size=16)
    for part in ("image", "text"):
        tower = manifest.get(part) or {}
        digest.update(repr(sorted((k, v) for k, v in tower.items() if k != "files")).encode())
        for name in sorted({*(tower.get("files") or {}).values(), *filter(None, [tower.get("tokenizer")])}):
            digest.update(name.encode())
            try:
                with open(folder / name, "rb") as file:
                    while block := file.read(2**20):
                        digest.update(block)
            except OSError as error:
                raise UserError(f"{folder} is not whole: {name}: {error.strerror or error}. Export the model again.") from error
    return digest.hexdigest()


def _about(folder: Path) -> dict[str, str]:
    return {"fingerprint": fingerprint(folder), "model": str(read_json(folder / MANIFEST).get("name") or folder.name)}
