"""Captions by models that look at pictures: CoCa of open_clip, image-to-text models of transformers. Their weights have to be there.

DataCompDR's captions come from CoCa (Yu et al., arXiv 2205.01917), by nucleus sampling; of what it says the first sentence is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipling.data.views import eval_pixels
from clipling.errors import UserError, missing_extra, near
from clipling.guides.captions import Item

SAMPLES = 5  # captions a picture, as in DataCompDR
BATCH = 16
TOP_P, LONGEST = 0.9, 30  # tokens of a caption
# Of a folder of transformers what decides its captions beside its weights; read as a whole, whatever it holds.
SETTINGS = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "image_processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json"),
)


def first_sentence(text: str) -> str:
    """What a CoCa said, without its marks, up to the first full stop."""
    return text.split("<end_of_text>")[0].replace("<start_of_text>", "").split(".")[0].strip()


def weights_digest(model: nn.Module, folder: Path | None = None) -> str:
    """12 hexadecimal digits of all tensors of a model by name, and of the `SETTINGS` in its folder: for the manifest, which would otherwise
    take two models for one that are called alike."""
    total = blake2b(digest_size=6)
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    for name in SETTINGS if folder else ():
        if (folder / name).is_file():
            total.update(name.encode() + (folder / name).read_bytes())
    return total.hexdigest()


def nucleus(logits: torch.Tensor, top_p: float, generators: Sequence[torch.Generator | None] | None = None) -> torch.Tensor:
    """[n, 1] ids drawn from rows of logits [n, V], among the fewest most probable ones that together have at least `top_p`.

    generators: one for each row (None: torch's own).
    """
    probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    allowed = probabilities.masked_fill(before >= top_p, 0.0)
    drawn = torch.cat([torch.multinomial(row[None], 1, generator=own) for row, own in zip(allowed, generators or [None] * len(allowed))])
    return order.gather(1, drawn)


class CoCa:
    """A CoCa of open_clip, `MODEL@TAG` or `MODEL@file.safetensors`: `SAMPLES` captions by nucleus sampling (p = 0.9)."""

    origin = "coca"

    def __init__(self, spec: str, model: Any = None) -> None:
        """model: one that is open already, instead of `spec`'s weights."""
        import open_clip

        name, _, tag = spec.partition("@")
        if name not in open_clip.list_models() or not name.startswith("coca"):
            raise UserError(
                f"--captions coca:{spec}: open_clip has no {name!r}. {near(name, [m for m in open_clip.list_models() if 'coca' in m])}"
            )
        if Path(tag).suffix in (".pt", ".bin", ".pth"):
            raise UserError(f"--captions coca:{spec}: {tag} is a pickle, which can run code. Save its state_dict as .safetensors first.")
        try:
            self.model = (model or open_clip.create_model(name, pretrained=tag, weights_only=True)).eval()
        except Exception as error:  # the hub's client raises many kinds
            raise UserError(f"the captioner {spec} cannot be opened: {error}. Give weights that are on this machine.") from error
        self.made_by = f"{name}@{Path(tag).name} ({weights_digest(self.model)}), nucleus sampling, p = {TOP_P}, seeds by pair"
        self.tokenizer = open_clip.get_tokenizer(name)

    @torch.no_grad()
    def captions(self, items: Sequence[Item]) -> list[list[str]]:
        made: list[list[str]] = [[] for _ in items]
        for start in range(0, len(items), BATCH):
            some = items[start : start + BATCH]
            pictures = torch.stack([self._pixels(item) for item in some])
            for sample in range(SAMPLES):
                # By pair and sample: the pairs that are asked beside it decide nothing but the last bits of its logits.
                generators = [torch.Generator().manual_seed(SAMPLES * item.number + sample) for item in some]
                for row, text in enumerate(self._sampled(pictures, generators)):
                    made[start + row].append(first_sentence(self.tokenizer.decode(text.tolist())))
        return made

    def _sampled(self, pictures: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Token ids [n, L] by nucleus sampling (Holtzman et al., arXiv 1904.09751). open_clip's own `generate` needs parts of
        transformers that its version 5 no longer has."""
        latent, seen = self.model._encode_image(pictures)
        text = torch.full((len(pictures), 1), self.tokenizer.sot_token_id)
        for _ in range(LONGEST - 1):
            logits = self.model(pictures, text, image_latent=latent, image_embs=seen, output_labels=False)["logits"][:, -1]
            text = torch.cat([text, nucleus(logits, TOP_P, generators)], dim=1)
            if bool((text == self.tokenizer.eot_token_id).any(dim=1).all()):
                break
        return text

    def _pixels(self, item: Item) -> torch.Tensor:
        cfg = self.model.visual.preprocess_cfg
        pixels = torch.from_numpy(eval_pixels(item.image(), cfg).copy()).permute(2, 0, 1).float() / 255
        return (pixels - torch.tensor(cfg["mean"]).view(3, 1, 1)) / torch.tensor(cfg["std"]).view(3, 1, 1)


class ImageToText:
    """A captioning model of transformers (BLIP, GIT, ...), a folder or a name in the hub's cache on this machine: one caption a picture,
    greedily."""

    def __init__(self, spec: str) -> None:
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise missing_extra("the package transformers", "guides") from error
        self.origin = Path(spec).name
        try:
            self.processor = AutoProcessor.from_pretrained(spec, local_files_only=True)
            self.model = AutoModelForImageTextToText.from_pretrained(spec, use_safetensors=True, local_files_only=True).eval()
        except Exception as error:  # transformers and the hub raise many kinds
            raise UserError(
                f"the captioner {spec!r} cannot be opened ({type(error).__name__}). Nothing is downloaded: give a folder on this machine "
                "with safetensors, config and processor."
            ) from error
        folder = Path(spec) if Path(spec).is_dir() else None
        self.made_by = f"{self.origin} ({weights_digest(self.model, folder)}), greedy"

    @torch.no_grad()
    def captions(self, items: Sequence[Item]) -> list[list[str]]:
        made: list[list[str]] = []
        for start in range(0, len(items), BATCH):
            inputs = self.processor(images=[item.image() for item in items[start : start + BATCH]], return_tensors="pt")
            tokens = self.model.generate(**inputs, do_sample=False, max_new_tokens=60)
            made += [[first_sentence(text)] for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]
        return made
