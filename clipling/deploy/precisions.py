"""int8 and fp16 graphs beside the fp32 ones of an exported folder. They are written when all of them passed the gate, or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from clipling.deploy import quantise
from clipling.deploy.fp16 import halved
from clipling.deploy.gate import Finding, Thresholds, judge, refusal
from clipling.deploy.layers import Layer, convolutional, layers
from clipling.deploy.quality import Embedded, cosine, drops, embed
from clipling.deploy.samples import Samples
from clipling.deploy.sensitivity import sensitivity
from clipling.runtime.manifest import Manifest, read_manifest
from clipling.runtime.model import TEXTS
from clipling.runtime.pictures import BATCH
from clipling.runtime.sessions import open_session
from clipling.runtime.tokens import Tokens
from clipling.store import atomic_write, read_json, write_json

GATE = "gate.json"
MOST_KEPT = 0.5  # of the multiply-adds may stay in fp32: beyond that int8 is not worth its files
SHOWN = 8  # layers whose sensitivity is written down
PARTS = {"image": ("pixels", "images", "pictures"), "text": ("texts", "captions", "classes")}

Say = Callable[[str], Any]


def add_precisions(
    folder: Path, precisions: tuple[str, ...], samples: Samples, thresholds: Thresholds | None = None, say: Say = lambda line: None
) -> list[Finding]:
    """Adds the graphs of `precisions` (int8, fp16) to an exported folder and what was measured of them to its gate.json.

    Raises UserError with the numbers when one does not pass; the folder then is as it was.
    """
    trial = Trial(folder, read_manifest(folder), samples, thresholds or Thresholds(), say)
    made: list[tuple[str, str, bytes, Finding]] = []
    for precision in precisions:
        trial.begin()
        for side in PARTS:
            made.append((side, precision, *trial.accept(side, precision)))
    manifest, found = trial.manifest, read_json(folder / GATE) if (folder / GATE).is_file() else {}
    for side, precision, content, finding in made:
        atomic_write(folder / finding.file, content)
        manifest, found[finding.file] = manifest.with_file(side, precision, finding.file), finding.content()
    write_json(folder / GATE, found)
    manifest.write(folder)  # last: what it does not name is not there for the runtime
    return [finding for *_, finding in made]


@dataclass
class Trial:
    """Graphs of one folder, tried on the same samples."""

    folder: Path
    manifest: Manifest
    samples: Samples
    thresholds: Thresholds
    say: Say
    reference: dict[str, np.ndarray] = field(default_factory=dict)
    accepted: dict[str, np.ndarray] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens = Tokens(self.folder, self.manifest.text)
        for side in PARTS:
            self.reference |= self.embedded(side, self.folder / self.fp32(side))

    def fp32(self, side: str) -> str:
        return getattr(self.manifest, side).files["fp32"]

    def begin(self) -> None:
        """A new precision: both towers start from fp32."""
        self.accepted, self.files = dict(self.reference), {side: self.fp32(side) for side in PARTS}

    def accept(self, side: str, precision: str) -> tuple[bytes, Finding]:
        """The first attempt that passes, beside the graph of the other tower that was accepted before it. Raises UserError."""
        attempts = self.int8(side) if precision == "int8" else self.fp16(side)
        file = Path(self.fp32(side)).stem + f".{precision}.onnx"
        number, before = 0, b""
        for model, settings in attempts:
            content = model.SerializeToString(deterministic=True)
            if content == before:
                continue  # a graph without sums and products is the same without them
            number, before = number + 1, content
            found, finding = self.tried(side, file, content, settings | {"bytes": len(content)})
            self.say(f"{file}, attempt {number}{_how(settings)}: {'passed' if finding.passed else '; '.join(finding.failed)}")
            if finding.passed:
                self.accepted |= found
                self.files[side] = file
                return content, finding
        raise refusal(finding, number)

    def tried(self, side: str, file: str, content: bytes, settings: dict[str, Any]) -> tuple[dict[str, np.ndarray], Finding]:
        """One attempt: the embeddings and what was found. What is far off already on the calibration rows is measured no further."""
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / file
            path.write_bytes(content)
            found = self.embedded(side, path, only=PARTS[side][0])
            finding = self.finding(side, file, found, settings, measured=False)
            if finding.passed and (self.samples.retrieval or self.samples.labelled):
                found = self.embedded(side, path)
                finding = self.finding(side, file, found, settings, measured=True)
        return found, finding

    def finding(self, side: str, file: str, found: dict[str, np.ndarray], settings: dict[str, Any], measured: bool) -> Finding:
        """Cosine over all rows that were embedded, and, where `measured`, the drops with the other tower's accepted graph."""
        here = np.concatenate([found[part] for part in PARTS[side] if part in found])
        there = np.concatenate([self.reference[part] for part in PARTS[side] if part in found])
        lost = {}
        if measured:
            lost = drops(self.samples, Embedded(**(self.accepted | found)), Embedded(**self.reference), self.thresholds.k)
        close = cosine(here, there)
        other = self.files["text" if side == "image" else "image"]
        blind = self.thresholds.blind(lost) if measured else not (self.samples.retrieval or self.samples.labelled)
        failed = judge(close, lost, self.thresholds, blind)
        return Finding(file, self.fp32(side), other, self.samples.origin, close, lost, self.thresholds, failed, settings)

    def int8(self, side: str) -> Iterator[tuple[onnx.ModelProto, dict[str, Any]]]:
        """All layers in int8; then with the most sensitive ones in fp32, more each time."""
        path, rows = self.folder / self.fp32(side), self.rows(side)
        plain = onnx.load(path)
        static = convolutional(layers(plain, {plain.graph.input[0].name: rows[:1]}))
        model = quantise.prepared(path, static)
        kinds = quantise.WEIGHTED if static else ("MatMul",)
        found = layers(model, {model.graph.input[0].name: rows[:1]})
        candidates = [layer for layer in found if layer.kind in kinds and layer.weight is not None]
        ranges = quantise.calibrate(model, rows) if static else None

        def made(keep: list[str], between: bool) -> onnx.ModelProto:
            return quantise.static(model, ranges, keep, between) if static else quantise.dynamic(model, keep)

        settings = {"method": "static" if static else "dynamic", "calibrated_on": len(rows) if static else 0}
        yield made([], True), settings | _kept([], found)
        if static:
            yield made([], False), settings | _kept([], found) | {"sums_and_products": "fp32"}
        self.say(f"{path.name}: looking for the layers that int8 harms, {len(candidates)} of them")
        errors = sensitivity(model, candidates, rows, quantise.plain_ranges(ranges) if static else None)
        worst, count = list(errors), 1
        shown = {"sensitivity": {name: errors[name] for name in worst[:SHOWN]}}
        while count <= len(worst) and (kept := _kept(worst[:count], found))["kept_share_of_macs"] <= MOST_KEPT:
            yield made(worst[:count], False), settings | kept | shown | ({"sums_and_products": "fp32"} if static else {})
            count *= 2

    def fp16(self, side: str) -> Iterator[tuple[onnx.ModelProto, dict[str, Any]]]:
        yield halved(onnx.load(self.folder / self.fp32(side))), {"method": "weights in fp16, arithmetic in fp32"}

    def rows(self, side: str) -> np.ndarray:
        """Calibration rows of a graph's input."""
        return self.samples.pixels if side == "image" else self.tokens(self.samples.texts)

    def embedded(self, side: str, path: Path, only: str | None = None) -> dict[str, np.ndarray]:
        """The parts of `Embedded` that a tower makes, or one of them, in batches as the runtime makes them."""
        session = open_session(path, threads=1)

        def image(pixels: np.ndarray) -> np.ndarray:
            parts = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
            return np.concatenate([session.run(["embedding"], {"pixels": part})[0] for part in parts])

        def text(texts: list[str]) -> np.ndarray:
            order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
            out = np.empty((len(texts), self.manifest.embed_dim), np.float32)
            for start in range(0, len(order), TEXTS):
                places = order[start : start + TEXTS]
                out[places] = session.run(["embedding"], {"tokens": self.tokens([texts[place] for place in places])})[0]
            return out

        return embed(self.samples, side, image, text, only)


def _how(settings: Mapping[str, Any]) -> str:
    """What an attempt is made of, in a few words: what sets it apart from the one before."""
    if "kept_fp32" not in settings:
        return ""
    kept = settings["kept_fp32"]
    layers = f"{len(kept)} layer{'s' * (len(kept) > 1)} in fp32" if kept else "all layers in int8"
    sums = ", sums and products in fp32" if settings.get("sums_and_products") == "fp32" else ""
    return f" ({layers}{sums})"


def _kept(names: list[str], found: list[Layer]) -> dict[str, Any]:
    """The layers in fp32, and their share of the arithmetic of all layers."""
    total = sum(layer.macs for layer in found)
    return {"kept_fp32": names, "kept_share_of_macs": sum(layer.macs for layer in found if layer.node in names) / max(total, 1)}
