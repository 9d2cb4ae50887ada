"""`clipling export MODEL --out DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from clipling.errors import UserError


def export(
    model: Positional[str],
    /,
    out: Path,
    to: Literal["onnx", "web"] = "onnx",
    precision: tuple[Literal["int8", "fp16"], ...] = (),
    data: str | None = None,
    labelled: str | None = None,
    max_drop: float = 1.0,
    min_cosine: float = 0.98,
    web_runtime: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> dict[str, Any]:
    """Exports a model to ONNX: a folder that runs without torch, in Python (clipling.load), on phones and in browsers.

    Preprocessing is inside of the image graph. Every export is checked against the torch model before it is put in its place.

    Args:
        model: A run folder, a folder of a model, or an open_clip name with @TAG.
        out: The folder to make: two graphs, tokenizer, manifest, and an app kit with fixtures and samples.
        to: onnx, or web: a folder for any static file server whose page indexes and searches photos in the browser, offline. MODEL may
            then also be a folder that was exported before.
        precision: Smaller graphs beside the fp32 ones: int8, fp16, or both. They are added when they pass the gate, and not otherwise.
        data: Pairs (or class folders) of yours that int8 is calibrated and the loss is measured on. Without it, quality is not measured.
        labelled: Class folders, or CLIP_benchmark's layout: the loss of zero-shot accuracy is measured on them.
        max_drop: The gate: the most points of recall@10 (either way) and of zero-shot accuracy that may be lost.
        min_cosine: The gate: the least mean cosine between embeddings of the smaller graph and of the fp32 one.
        web_runtime: With --to web, a folder with the npm packages that it needs, instead of npm itself (docs/web.md).
        overwrite: Replace an exported folder.
        json: Print as JSON.
    """

    def make(folder: Path) -> dict[str, Any]:
        from clipling.deploy.export import Smaller, export_model

        smaller = Smaller(precision, data, labelled, max_drop / 100, min_cosine) if precision else None
        made = export_model(model, folder, overwrite=overwrite, smaller=smaller)
        warnings = [line for source in (data, labelled) if source for line in _trained_on(model, source)]
        return made | ({"warnings": warnings} if warnings else {})

    changed = {"--data": data, "--labelled": labelled, "--max-drop": max_drop != 1.0, "--min-cosine": min_cosine != 0.98}
    ignored = [name for name, value in changed.items() if value]
    if ignored and not precision:
        raise UserError(f"{' and '.join(ignored)} would be ignored: fp32 is exact. Add --precision int8, or leave it out")
    if to == "web":
        from clipling.deploy.web import export_web

        return export_web(model, out, make=make, precision=precision, runtime=web_runtime, overwrite=overwrite)
    if web_runtime is not None:
        raise UserError("--web-runtime is for --to web; leave it out, or say --to web")
    return make(out)


def _trained_on(model: str, source: str) -> list[str]:
    """A warning when the gate measured on pictures that the model was trained on: there its recall is higher than it is elsewhere."""
    from clipling.assess import seen_in_training
    from clipling.data.classes import is_labelled, open_labelled
    from clipling.data.source import open_pairs

    opened = open_labelled(source) if is_labelled(source) else open_pairs(source)
    return [f"{source}: {said} The gate's drops are of these pictures, too." for said in seen_in_training(model, opened)]
