"""`clipling export`: an exported folder, made step by step; nothing is left behind that did not pass its check."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clipling
from clipling.deploy import parity
from clipling.deploy.folder import check_place, made_whole
from clipling.deploy.gate import Thresholds
from clipling.deploy.kit import write_kit
from clipling.deploy.onnx import IMAGE, TEXT, export_towers
from clipling.deploy.precisions import add_precisions
from clipling.deploy.readme import find_card, readme
from clipling.deploy.samples import take
from clipling.deploy.tokens import export_tokens
from clipling.errors import UserError
from clipling.models.dual import Student
from clipling.models.hub import open_student
from clipling.runtime.manifest import ImageSide, Manifest, TextSide, read_manifest
from clipling.store import atomic_write, write_json

TOKENIZER = "tokenizer.json"
GATE = "gate.json"
KIT = "kit"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Smaller:
    """What is asked for beside fp32: precisions (int8, fp16), the sources they are measured on, and what they may lose."""

    precisions: tuple[str, ...]
    data: str | None = None
    labelled: str | None = None
    drop: float = 0.01
    mean_cosine: float = 0.98

    def add(self, folder: Path) -> list[dict[str, Any]]:
        """Adds the graphs to an exported folder and returns what was measured; UserError when one does not pass its gate."""
        thresholds = Thresholds(drop=self.drop, mean_cosine=self.mean_cosine)
        samples = take(read_manifest(folder).image, self.data, self.labelled)
        found = add_precisions(folder, self.precisions, samples, thresholds, say=say)
        return [finding.content() for finding in found]


def export_model(model: str, out: Path, *, overwrite: bool = False, smaller: Smaller | None = None) -> dict[str, Any]:
    """`export` of what `model` names; `out` is checked before anything is opened.

    smaller: graphs that are added then. When they do not pass, UserError is raised and the fp32 export stays.
    """
    check_place(out, overwrite)
    say("exporting both towers to ONNX and comparing them with torch: about half a minute of one core")
    made = export(open_student(model), out, name=model_name(model), overwrite=overwrite, card=find_card(model))
    if smaller is None:
        return made
    try:
        gate = smaller.add(out)
    except UserError as error:
        raise UserError(f"{error}. The fp32 export stays in {out}") from error
    return made | {
        "gate": gate,
        "files": {path.name: path.stat().st_size for path in sorted(out.iterdir()) if path.is_file()},
    }


def export(student: Student, out: Path, *, name: str, overwrite: bool = False, card: str | None = None) -> dict[str, Any]:
    """Makes the exported folder `out` of a student, whole or not at all. Returns sizes and agreement, JSON-able.

    card: the model's own README, which the folder's begins with.

    Each step below adds files to a folder that takes the place of `out` at the end; a step that refuses raises UserError.
    """
    with made_whole(out, overwrite) as folder, student.evaluating():
        manifest = export_fp32(student, folder, name, {"weights": weights_hash(student)})
        measured = {"fp32": parity.check(student, folder)}
        write_json(folder / GATE, measured)
        write_kit(student, manifest, folder / KIT)
        atomic_write(folder / "README.md", readme(manifest, card))
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    return {"name": name, "out": str(out), "files": files, "agreement": measured}


def model_name(model: str) -> str:
    """What an exported model is called: its folder, where that is just `model` or an export the one above, or its open_clip name."""
    parts = [part for part in Path(model.removeprefix("local-dir:").rstrip("/")).parts if part not in (".", "..", "/")]
    while len(parts) > 1 and parts[-1] == "model":
        parts.pop()
    return parts[-1] if parts else "model"


def weights_hash(student: Student) -> str:
    """sha256 of the stock weights: names, kinds and numbers."""
    found = hashlib.sha256()
    for name, value in sorted(student.stock_state().items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.numpy().tobytes())
    return found.hexdigest()


def export_fp32(student: Student, folder: Path, name: str, source: dict[str, Any] | None = None) -> Manifest:
    """The folder that `clipling.load` opens: both graphs, the tokenizer and the manifest, which is written last."""
    tokens = export_tokens(student)
    towers = export_towers(student, folder)
    atomic_write(folder / TOKENIZER, tokens.content)
    cfg = student.preprocess_cfg
    image = ImageSide(
        size=student.image_size,
        mean=[float(v) for v in cfg["mean"]],
        std=[float(v) for v in cfg["std"]],
        interpolation="bicubic" if cfg["interpolation"] == "random" else cfg["interpolation"],
        resize_mode=cfg["resize_mode"],
        fill_color=int(cfg.get("fill_color") or 0),
        files={"fp32": IMAGE},
    )
    text = TextSide(
        context_length=student.context_length,
        tokenizer=TOKENIZER,
        clean=tokens.clean,
        start=tokens.start,
        end=tokens.end,
        pad=tokens.pad,
        fixed_length=towers.fixed_length,
        files={"fp32": TEXT},
    )
    bias = student.logit_bias
    manifest = Manifest(
        name=name,
        embed_dim=student.embed_dim,
        logit_scale=float(student.logit_scale.detach().exp()),
        logit_bias=None if bias is None else float(bias.detach()),
        image=image,
        text=text,
        source={"clipling": clipling.__version__, **(source or {})},
    )
    manifest.write(folder)
    return manifest
