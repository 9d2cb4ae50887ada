"""An exported model, run by onnxruntime: no torch, no open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipling.errors import UserError, near
from clipling.runtime.manifest import PRECISIONS, Manifest, read_manifest
from clipling.runtime.pictures import as_sequence, batches
from clipling.runtime.sessions import open_session
from clipling.runtime.tokens import Tokens, checked_texts

TEXTS = 64  # rows that the text graph sees at once
TEMPLATES = ("a photo of a {c}.",)


def load(folder: Path | str, precision: str | None = None, threads: int | None = None, deterministic: bool = False) -> Runtime:
    """Opens a folder that `clipling export` made.

    precision: fp32, int8 or fp16; None takes int8 where the folder has it for a tower, else fp32. threads: of onnxruntime
    (None: all cores). deterministic: the same bits on every call. UserError for a folder, a precision or a graph that will not do.
    """
    return Runtime(folder, precision, threads, deterministic)


class Runtime:
    """Both towers of an exported model. `precisions` says which graph each tower runs."""

    def __init__(self, folder: Path | str, precision: str | None = None, threads: int | None = None, deterministic: bool = False) -> None:
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        self.tokens = Tokens(self.folder, self.manifest.text)
        self.precisions: dict[str, str] = {}
        self._sessions: dict[str, Any] = {}
        for side in ("image", "text"):
            files = getattr(self.manifest, side).files
            self.precisions[side] = _chosen(precision, files, side, self.folder)
            self._sessions[side] = _fitting(open_session(self.folder / files[self.precisions[side]], threads, deterministic), self, side)

    @property
    def embed_dim(self) -> int:
        return self.manifest.embed_dim

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by."""
        return self.manifest.logit_scale

    def encode_image(self, images: Any) -> np.ndarray:
        """Unit rows float32 [n, embed_dim].

        images: one or a sequence of paths, bytes, PIL pictures or arrays uint8 [h, w, 3], of any sizes. UserError names the
        picture that cannot be read.
        """
        images = as_sequence(images)
        out = np.empty((len(images), self.embed_dim), np.float32)
        for places, pixels in batches(images):
            out[places] = self._run("image", "pixels", pixels)
        return out

    def encode_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """Unit rows float32 [n, embed_dim] of one text or several."""
        texts = checked_texts(texts)
        out = np.empty((len(texts), self.embed_dim), np.float32)
        # Rows of a batch are padded to the longest: batches of similar lengths waste little.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), TEXTS):
            places = order[start : start + TEXTS]
            out[places] = self._run("text", "tokens", self.tokens([texts[place] for place in places]))
        return out

    def predict(
        self, images: Any, classes: Sequence[str], templates: Sequence[str] = TEMPLATES, top: int = 3
    ) -> list[list[tuple[str, float]]]:
        """The `top` most probable classes of every picture, as (name, probability): zero-shot classification.

        Probabilities are the softmax over the classes of logit_scale times cosine. Of several templates ({c} is where the name
        goes) a class's embeddings are averaged. With more `top` than classes, all classes.
        """
        names = _checked_classes(classes)
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise UserError(f"top is {top!r}; expected a number of 1 or more")
        rows = self.encode_image(images) @ self.class_features(names, templates).T * self.logit_scale
        rows = np.exp((rows - rows.max(axis=1, keepdims=True)).astype(np.float64))
        rows /= rows.sum(axis=1, keepdims=True)
        best = np.argsort(-rows, axis=1, kind="stable")[:, :top]
        return [[(names[c], float(row[c])) for c in places] for row, places in zip(rows, best)]

    def class_features(self, classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> np.ndarray:
        """Unit rows float32 [classes, embed_dim]: the mean over the templates of each class's embeddings."""
        templates = checked_texts(templates)
        for template in templates:
            if "{c}" not in template:
                raise UserError(f"the template {template!r} lacks {{c}}, the place of the class name")
        if not templates:
            raise UserError("there is no template; leave it out for the default")
        texts = [template.replace("{c}", name) for name in classes for template in templates]
        mean = self.encode_text(texts).reshape(len(classes), len(templates), self.embed_dim).mean(axis=1)
        return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)

    def _run(self, side: str, name: str, values: np.ndarray) -> np.ndarray:
        try:
            rows = self._sessions[side].run(["embedding"], {name: values})[0]
        except Exception as error:  # onnxruntime's errors share no other parent
            raise UserError(f"the {side} graph of {self.folder} cannot be run: {str(error).strip().splitlines()[0]}") from error
        if not np.isfinite(rows).all():
            raise UserError(
                f"the {side} graph of {self.folder} gives embeddings that are not finite: it is damaged. Export the model again"
            )
        return rows


def _fitting(session: Any, model: Runtime, side: str) -> Any:
    """The session, where its graph reads and gives what the manifest says. UserError otherwise."""
    reads, gives = {"image": "pixels", "text": "tokens"}[side], session.get_outputs()
    names = [one.name for one in session.get_inputs()]
    if names != [reads] or [one.name for one in gives] != ["embedding"]:
        raise UserError(f"the {side} graph of {model.folder} reads {', '.join(names)}; expected {reads}. Export the model again")
    width = gives[0].shape[-1]
    if isinstance(width, int) and width != model.embed_dim:
        raise UserError(f"the {side} graph of {model.folder} gives {width} numbers; clipling.json says {model.embed_dim}. Export it again")
    return session


def _checked_classes(classes: Sequence[str]) -> list[str]:
    if isinstance(classes, str):
        raise UserError(f"classes is one text, {classes!r}; expected a sequence of names")
    names = checked_texts(classes)
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError("predict needs at least two classes with different names")
    return names


def _chosen(precision: str | None, files: dict[str, str], side: str, folder: Path) -> str:
    if precision is not None and precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}. {near(str(precision), PRECISIONS)}")
    wanted = ("int8", "fp32", "fp16") if precision is None else (precision,)
    found = next((name for name in wanted if name in files), None)
    if found is None:
        there = ", ".join(files) or "none"
        raise UserError(f"{folder} has no {' or '.join(wanted)} graph of the {side} tower (it has: {there}). Export it with that precision")
    return found
