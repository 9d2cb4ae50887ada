"""A live teacher: a frozen CLIP that sees the student's own crops and captions, each prepared in its own way.

TinyCLIP (ICCV 2023), CLIP-KD (CVPR 2024). Features are computed only for the sides that a term asks for, and once where the input does
not vary: captions always, pictures when they are not cropped or mirrored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from clipling.data.loader import HostBatch
from clipling.data.pairs import Pairs
from clipling.data.pixels import Pixels
from clipling.data.views import Augment
from clipling.errors import UserError
from clipling.guides.progress import Progress
from clipling.guides.remembered import Remembered, remember
from clipling.models.dual import Student
from clipling.store import cache_dir

GATE_PAIRS = 256
PROBE = "the quick brown fox jumps over 13 lazy dogs; Übergröße, naïve, 東京"
FEWEST_PAIRS = 8
GATE_CHANCE = 1e-4  # how rarely pure chance may pass the gate


class Teacher:
    """A frozen CLIP as a guide.

    name: the recipe's. model: any opened student. pairs: the training pairs, whose captions its own tokenizer cuts into tokens, to its
    own context length. sides: what terms need, of "image" and "text". scale: what its similarities are multiplied by; None: the
    scale it learned. images, texts: features of all pictures or captions that were computed before (see `remember_sides`);
    without them they are computed at every step. autocast: `none` or `bf16`.
    """

    def __init__(
        self,
        name: str,
        model: Student,
        pairs: Pairs,
        sides: frozenset[str],
        scale: float | None = None,
        images: Remembered | None = None,
        texts: Remembered | None = None,
        device: torch.device | str = "cpu",
        autocast: str = "none",
    ) -> None:
        self.name, self.sides, self.autocast, self.images, self.texts = name, sides, autocast, images, texts
        self.model = model.eval().requires_grad_(False).to(device)
        self.scale = float(model.logit_scale.detach().exp()) if scale is None else scale
        self.tokens = model.tokenise(pairs.captions) if "text" in sides and texts is None else None

    @property
    def dims(self) -> dict[str, int]:
        """Size of its embeddings, under the key that terms read."""
        return {f"teacher.{self.name}": self.model.embed_dim}

    @property
    def sees(self) -> int | None:
        """Pixels at which it wants the crops of a batch; None when it wants none."""
        return self.model.image_size if "image" in self.sides and self.images is None else None

    @torch.no_grad()
    def image(self, host: HostBatch, device: torch.device) -> Tensor | None:
        """Unit features fp32 [n, d_t] of the local rows' crops."""
        if "image" not in self.sides:
            return None
        if self.images is not None:
            return torch.from_numpy(self.images[host.pair]).to(device)
        pictures = host.at_size[self.model.image_size].to(device, non_blocking=True)
        with self._precision(device):
            return self.model.encode_image(self.model.normalise(pictures)).float()

    @torch.no_grad()
    def text(self, host: HostBatch, device: torch.device) -> Tensor | None:
        """Unit features fp32 [n, d_t] of the local rows' captions."""
        if "text" not in self.sides:
            return None
        first = host.rank * len(host.pair)
        rows = host.caption_all[first : first + len(host.pair)]
        if self.texts is not None:
            return torch.from_numpy(self.texts[rows]).to(device)
        with self._precision(device):
            return self.model.encode_text(self.tokens[torch.from_numpy(rows)].long().to(device, non_blocking=True)).float()

    def more_texts(self, host: HostBatch, device: torch.device) -> dict[str, Tensor]:
        """None: a live teacher sees the pairs' own captions."""
        return {}

    def _precision(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.autocast == "bf16")


def remember_sides(
    model: Student, pairs: Pairs, augment: Augment, sides: frozenset[str], epochs: float, progress: Progress | None = None
) -> dict[str, Remembered]:
    """Features of what never varies, made once and kept in the cache: `texts` of all captions, `images` where pictures are neither cropped
    nor mirrored. A side that training would ask for less often than it has rows is left to be computed at each step."""
    found = {}
    folder = cache_dir() / "teachers" / _name(model, pairs, "text" in sides)
    if "text" in sides and epochs * len(pairs) >= len(pairs.captions):
        found["texts"] = remember(folder / "texts", len(pairs.captions), _text_encoder(model, pairs), "teacher's captions", progress)
    if "image" in sides and not augment.crops and augment.flip == 0:
        found["images"] = remember(folder / "images", len(pairs), _image_encoder(model, pairs), "teacher's pictures", progress)
    return found


def _text_encoder(model: Student, pairs: Pairs) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: model.encode_texts_in_batches([pairs.captions[i] for i in rows.tolist()])


def _image_encoder(model: Student, pairs: Pairs) -> Callable[[np.ndarray], np.ndarray]:
    pixels = Pixels.open(pairs, model.image_size, "squash")
    return lambda rows: model.encode_images_in_batches(_Rows(pixels, rows))


class _Rows:
    """Some rows of `Pixels` as an array of their own."""

    def __init__(self, pixels: Pixels, rows: np.ndarray) -> None:
        self.pixels, self.rows = pixels, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        return self.pixels[self.rows[places]]


def _name(model: Student, pairs: Pairs, texts: bool) -> str:
    """By everything that decides the features, those of captions included where `texts`."""
    about = json.dumps([model.config, pairs.fingerprint, torch.__version__], sort_keys=True, default=str)
    total = hashlib.blake2b(about.encode(), digest_size=16)
    if texts:  # another tokenizer under the same weights gives other tokens
        total.update(model.tokenise([PROBE, *pairs.captions[:64]]).numpy().tobytes())
    for name, value in sorted(model.stock_state().items()):
        total.update(name.encode())
        total.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def gate(name: str, model: Student, pairs: Pairs, spec: str) -> dict[str, float]:
    """Refuses a teacher that cannot tell the training pairs apart: top-1 accuracy within up to 256 different pairs, both ways.

    TinyCLIP's users trained for days under a teacher that knew nothing (microsoft/Cream issues 215, 250). A teacher passes when pure
    chance would do as well less than once in ten thousand times; fewer than 8 different pairs say nothing. name: the recipe's; spec:
    what was opened as `model`. Returns `image_to_text`, `text_to_image`, `chance` and
    `pairs`, how many were asked about.
    """
    subset = pairs.subset(_different(pairs))
    count = len(subset)
    images = torch.from_numpy(model.encode_images_in_batches(Pixels.open(subset, model.image_size, model.preprocess_cfg)))
    texts = torch.from_numpy(model.encode_texts_in_batches([subset.captions[i] for i in subset.offsets[:-1]]))
    if not bool(torch.isfinite(images).all() and torch.isfinite(texts).all()):
        raise UserError(f"the teacher {spec} gives features that are not finite. Its weights are damaged, or it needs another precision.")
    found = {"image_to_text": _top1(images @ texts.T), "text_to_image": _top1(texts @ images.T)}
    enough = int(binom.isf(GATE_CHANCE, count, 1 / count)) + 1
    if count >= FEWEST_PAIRS and round(min(found.values()) * count) < enough:
        raise UserError(
            f"the teacher {spec} finds the right caption for {100 * found['image_to_text']:.1f} % and the right picture for "
            f"{100 * found['text_to_image']:.1f} % of {count} training pairs; chance is {100 / count:.1f} %. It has nothing to teach about "
            "these pairs. Choose a better teacher, or train one on pairs like these first (`clipling train`), or learn from it anyway: "
            f"--set teachers.{name}.gate=false"
        )
    return {**found, "chance": 1 / count, "pairs": count}


def _different(pairs: Pairs) -> np.ndarray:
    """Up to 256 pairs from all over, no two with the same caption, picture or group: of those a teacher could not tell which is which."""
    links, taken, rows = pairs.links(), set(), []
    for i in np.random.default_rng(0).permutation(len(pairs))[: 64 * GATE_PAIRS].tolist():
        if taken.isdisjoint(links[i]):
            taken.update(links[i])
            rows.append(i)
            if len(rows) == GATE_PAIRS:
                break
    return np.sort(np.array(rows, dtype=np.int64))


def _top1(similarity: Tensor) -> float:
    """Share of rows whose own column is the largest; a tie with another column does not count."""
    own = similarity.diagonal()
    better = (similarity >= own[:, None]).sum(dim=1)
    return float((better == 1).float().mean())
