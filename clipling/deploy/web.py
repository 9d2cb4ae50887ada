"""`clipling export MODEL --out DIR --to web`: a folder for any static file server that searches photos in the browser."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from html.entities import html5
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from clipling.deploy.folder import check_place, made_whole
from clipling.deploy.web_packages import ONNXRUNTIME, TOKENIZERS, contents
from clipling.errors import UserError
from clipling.runtime.manifest import NAME, Manifest, read_manifest
from clipling.store import read_json

FILES = resources.files("clipling.deploy") / "web_files"
PAGE = (".html", ".css", ".js")  # what of them is the page
MARK = "folder.json"  # what the page loads, and by what an older folder of ours is known
PRECISIONS = ("int8", "fp32")  # the wasm backend has no kernels for fp16
CARRIED = ("README.md", "gate.json")  # of the exported folder, where they are there


def export_web(
    model: str,
    out: Path,
    *,
    make: Callable[[Path], Any],
    precision: Sequence[str] = (),
    runtime: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """The web folder of any model, or of a folder that was exported before (then torch is not needed).

    make: exports the model into the folder it is given, in the `precision` that was asked for. The rest as in `write_web`.
    """
    if "fp16" in precision:
        raise UserError("--precision fp16 is not for --to web: browsers have no kernels for it. Say --precision int8, or leave it out")
    if precision and (Path(model) / NAME).is_file():
        raise UserError(f"{model} is exported already; --precision would be ignored. Give the model itself, or leave --precision out")
    check_place(out, overwrite, MARK, _made())
    if (Path(model) / NAME).is_file():
        return write_web(Path(model), out, runtime, overwrite)
    for package in (ONNXRUNTIME, TOKENIZERS):
        contents(package, runtime)  # whoever has no npm is told before the model is exported
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "exported"
        make(exported)
        return write_web(exported, out, runtime, overwrite)


def write_web(exported: Path, out: Path, runtime: Path | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Makes the web folder `out` of an exported folder, whole or not at all; returns what `clipling export` prints.

    Of each tower int8 is taken where it is there, else fp32. runtime: see `web_packages.contents`. UserError for a model that a
    browser cannot run, for packages that are not to be had and for an `out` that is in use.
    """
    manifest = _for_browsers(read_manifest(exported), exported)
    packages = {package.name: contents(package, runtime) for package in (ONNXRUNTIME, TOKENIZERS)}
    with made_whole(out, overwrite, MARK, _made()) as folder:
        _fill(folder, exported, manifest, packages)
        loaded = sum(read_json(folder / MARK)["files"].values())
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    precisions = {side: next(iter(getattr(manifest, side).files)) for side in ("image", "text")}
    return {"name": manifest.name, "out": str(out), "precisions": precisions, "bytes": size, "bytes_loaded": loaded}


def _made() -> tuple[str, ...]:
    """What a web folder holds at its top."""
    return (MARK, "licences.txt", "entities.json", "model", "vendor", *(file.name for file in FILES.iterdir() if file.name.endswith(PAGE)))


def _for_browsers(manifest: Manifest, exported: Path) -> Manifest:
    """The manifest with the one graph of each tower that the page runs."""
    for side in ("image", "text"):
        part = getattr(manifest, side)
        chosen = next((name for name in PRECISIONS if name in part.files), None)
        if chosen is None:
            raise UserError(
                f"{exported} has no int8 or fp32 graph of the {side} tower (it has: {', '.join(part.files)}); fp16 does not run in browsers"
            )
        manifest = dataclasses.replace(manifest, **{side: dataclasses.replace(part, files={chosen: part.files[chosen]})})
    return manifest


def _fill(folder: Path, exported: Path, manifest: Manifest, packages: dict[str, dict[str, bytes]]) -> None:
    (folder / "model").mkdir()
    (folder / "vendor").mkdir()
    for file in FILES.iterdir():
        if file.name.endswith(PAGE):
            (folder / file.name).write_bytes(file.read_bytes())
    for found in packages.values():
        for name, data in found.items():
            if name.startswith("dist/"):
                (folder / "vendor" / Path(name).with_suffix(".js" if name.endswith(".mjs") else ".wasm").name).write_bytes(data)
    (folder / "entities.json").write_text(json.dumps(html5, sort_keys=True), encoding="utf-8")
    (folder / "licences.txt").write_text(_licences(packages[TOKENIZERS.name]["LICENSE"].decode()), encoding="utf-8")
    manifest.write(folder / "model")
    model = [manifest.text.tokenizer, *manifest.image.files.values(), *manifest.text.files.values()]
    for name in [*model, *(name for name in CARRIED if (exported / name).is_file())]:
        shutil.copyfile(exported / name, folder / "model" / name)
    loaded = [f"model/{name}" for name in (NAME, *model)] + ["entities.json", "vendor/ort-wasm-simd-threaded.wasm"]
    content = {"key": _key([folder / name for name in loaded]), "files": {name: (folder / name).stat().st_size for name in loaded}}
    (folder / MARK).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _key(paths: list[Path]) -> str:
    """Names what embeddings depend on: an index that a browser kept is read by the same model only."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _licences(apache: str) -> str:
    """What is bundled, by whom and under which terms."""
    return ("\n" + "=" * 120 + "\n\n").join([(FILES / "licences.txt").read_text("utf-8"), apache, _built_in()])


def _built_in() -> str:
    """The notices of what is built into onnxruntime: they come with its Python package."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.files("onnxruntime") or []:
            if file.name == "ThirdPartyNotices.txt":
                return Path(file.locate()).read_text("utf-8", "replace")
    return "The notices of what is built into onnxruntime are in ThirdPartyNotices.txt of its source.\n"
