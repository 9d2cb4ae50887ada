"""Synthetic captions: one small protocol, and what needs no model behind it.

A captioner gets pairs and returns further captions for each, under the name of their origin, which stays with them in the shards and in
training. Models that look at pictures are in captioners.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from clipling.data.pairs import hash_bytes
from clipling.data.reading import clean_captions, field_of, text_of, texts_of
from clipling.errors import UserError, near
from clipling.guides.rewrite import VERSION, rewrites
from clipling.objectives.load import explain, load_object

KINDS = ("others", "field:NAME", "template:NAME", "rules", "./file.py:function", "coca:MODEL@TAG", "transformers:NAME")
# Of OpenAI's templates those that suit any picture.
TEMPLATES = ("a photo of a {}.", "a picture of one {}.", "a close-up photo of a {}.", "a photo of the {} in the scene.", "this is a {}.")


@dataclass(frozen=True)
class Item:
    """One pair as a captioner sees it. image: opens the picture, upright RGB. number: the pair's place in the source."""

    number: int
    captions: Sequence[str]
    extras: dict[str, Any]
    image: Callable[[], Image.Image]


class Captioner(Protocol):
    """origin: a short name that the captions carry. needs: what it is made of, for the manifest (a model, a function)."""

    origin: str
    made_by: str

    def captions(self, items: Sequence[Item]) -> list[list[str]]:
        """Further captions of each item, perhaps none; the same ones whenever it is asked about the same items."""
        ...


@dataclass
class Others:
    """Captions that a pair has beside its first one."""

    origin: str = "others"
    made_by: str = "the pairs' captions but the first"

    def captions(self, items: Sequence[Item]) -> list[list[str]]:
        return [list(item.captions[1:]) for item in items]


@dataclass
class Field:
    """Texts in a field of the pairs, such as captions in another language (`lang.de`)."""

    name: str
    origin: str = ""
    made_by: str = ""

    def __post_init__(self) -> None:
        self.origin, self.made_by = self.name, f"the field {self.name}"

    def captions(self, items: Sequence[Item]) -> list[list[str]]:
        return [texts_of(field_of(item.extras, self.name)) or [] for item in items]


@dataclass
class Template:
    """Sentences around the label in a field of the pairs."""

    name: str
    origin: str = "template"
    made_by: str = ""

    def __post_init__(self) -> None:
        self.made_by = f"{len(TEMPLATES)} templates around the field {self.name}"

    def captions(self, items: Sequence[Item]) -> list[list[str]]:
        found = [field_of(item.extras, self.name) for item in items]
        labels = [text_of(value) if isinstance(value, str | int | float) else "" for value in found]  # a list or mapping is no label
        return [[t.format(label.replace("_", " ")) for t in TEMPLATES] if label else [] for label in labels]


@dataclass
class Rewriter:
    """Rewrites of a pair's own captions by a function of one text that returns one or several (LaCLIP, Fan et al., arXiv 2305.20088).

    At most `most` a pair: the first of every caption before the second of any.
    """

    function: Callable[[str], str | Sequence[str]]
    origin: str
    made_by: str
    most: int = 5  # as many as DataCompDR has of each picture

    def captions(self, items: Sequence[Item]) -> list[list[str]]:
        return [self._of_one(item) for item in items]

    def _of_one(self, item: Item) -> list[str]:
        by_caption = [self._rewritten(caption) for caption in item.captions]
        in_turn = [texts[place] for place in range(max(map(len, by_caption), default=0)) for texts in by_caption if place < len(texts)]
        return list(dict.fromkeys(in_turn))[: self.most]

    def _rewritten(self, caption: str) -> list[str]:
        try:
            found = self.function(caption)
        except Exception as error:
            raise UserError(f"{self.made_by} failed on {caption!r}: {explain(error)}") from error
        texts = [found] if isinstance(found, str) else found
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{self.made_by} returned {found!r} for {caption!r}: expected a text or a list of texts")
        # As in LaCLIP's released code: what is hardly a text is not used.
        return [text for text in texts if len(text.split()) > 1]


@dataclass
class Captions:
    """Several captioners together."""

    captioners: Sequence[Captioner] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [one.origin for one in self.captioners]
        taken = sorted({"image", "text"} & set(names))
        if taken:  # embeddings are stored by origin beside those of pictures and real captions, which have these names
            raise UserError(
                f"--captions: a kind is called {taken[0]!r}, as what is stored of the pairs themselves. Rename the field or function."
            )
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"--captions: two kinds would both be called {twice[0]!r}. Leave one out, or give the function another name.")

    def of(self, items: Sequence[Item]) -> list[dict[str, list[str]]]:
        """Of each item the captions by origin, cleaned; a text that is one of the pair's own is left out."""
        made: list[dict[str, list[str]]] = [{} for _ in items]
        for captioner in self.captioners:
            found = captioner.captions(items)
            if len(found) != len(items):
                raise UserError(f"the captioner {captioner.made_by} returned {len(found)} lists of captions for {len(items)} pictures")
            for one, item, texts in zip(made, items, found, strict=True):
                own = set(item.captions) if captioner.origin != "others" else set()
                one[captioner.origin] = [text for text in clean_captions(texts) if text not in own]
        return made


def captioner(spec: str) -> Captioner:
    """The captioner that a spec names, one of `KINDS`. Raises UserError for a kind or model that is not there."""
    kind, _, rest = spec.partition(":")
    if spec == "others":
        return Others()
    if spec == "rules":
        return Rewriter(rewrites, "rules", f"clipling's rule-based rewriter, version {VERSION}")
    if kind in ("field", "template") and rest:
        return Field(rest) if kind == "field" else Template(rest)
    if kind == "coca" and "@" in rest:
        from clipling.guides.captioners import CoCa

        return CoCa(rest)
    if kind == "transformers" and rest:
        from clipling.guides.captioners import ImageToText

        return ImageToText(rest)
    if ".py:" in spec:
        function = load_object(spec)
        if not callable(function):
            raise UserError(f"--captions {spec}: it is no function of one text")
        file = Path(spec.rpartition(":")[0]).expanduser()
        content = hash_bytes(file.read_bytes())[:12]  # another content makes other captions
        return Rewriter(function, spec.rpartition(":")[2], f"{file.name}:{spec.rpartition(':')[2]} ({content})")
    raise UserError(f"--captions {spec!r} is not understood. {near(spec, KINDS)}")
