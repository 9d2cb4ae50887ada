"""Captioners: what each kind gives, that origins are kept, and mistakes named."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipling.errors import UserError
from clipling.guides.captions import Captions, Item, captioner
from clipling.guides.rewrite import rewrites


def item(*captions: str, number: int = 0, **extras) -> Item:
    return Item(number, captions, extras, lambda: Image.new("RGB", (64, 48), (200, 30, 30)))


def of(spec: str, *items: Item) -> list[list[str]]:
    (made,) = Captions([captioner(spec)]).captioners
    return [found[made.origin] for found in Captions([made]).of(items)]


def test_captions_that_are_there():
    assert of("others", item("a dog", "a black dog", "a dog"), item("one")) == [["a black dog", "a dog"], []]
    german = item("a dog", lang={"de": ["ein Hund", " "], "fr": "un chien"})
    assert of("field:lang.de", german, item("a cat")) == [["ein Hund"], []]
    assert of("field:lang.fr", german) == [["un chien"]]


def test_templates_around_labels():
    (found, none) = of("template:cls", item("x", cls="traffic_light"), item("y"))
    assert found[0] == "a photo of a traffic light."
    assert len(found) == 5
    assert none == []


def test_rules():
    assert rewrites("A black dog runs through the snow .") == [
        "A black canine races through the snow",
        "through the snow, a black dog runs",
        "in this picture, a black dog runs through the snow",
    ]
    assert rewrites("a dog") == []
    found = of("rules", item("A man is running on the beach", "a boat near a rock"))[0]
    assert len(found) == 5
    assert found[:2] == ["A guy is racing on the beach", "a vessel close to a stone"]  # of every caption before the second of any


@given(st.text(max_size=80))
def test_any_text_can_be_rewritten(text):
    found = rewrites(text)
    assert found == rewrites(text)
    assert len(found) == len(set(found)) <= 3
    assert text.strip().rstrip(" .!") not in found


MINE = """
def shout(text):
    return text.upper()
def many(text):
    return [text + " here", "x", text]
def broken(text):
    return text[1000]
def number(text):
    return 3
word = 5
"""


def test_a_function_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    assert of(f"{path}:shout", item("a dog")) == [["A DOG"]]
    assert of(f"{path}:many", item("a dog")) == [["a dog here"]]  # not one word, and not the caption itself
    one, other = captioner(f"{path}:shout"), captioner(f"{path}:many")
    assert (one.origin, other.origin) == ("shout", "many")
    assert one.made_by.startswith("mine.py:shout (")
    path.write_text(MINE + "\n# changed")
    assert captioner(f"{path}:shout").made_by != one.made_by  # so the generator knows that the captions are others
    for name, message in (
        ("broken", "failed on 'a dog': IndexError"),
        ("number", "returned 3"),
        ("shoot", "Did you mean"),
        ("word", "no function"),
    ):
        with pytest.raises(UserError, match=message):
            of(f"{path}:{name}", item("a dog"))


def test_origins_are_kept_apart(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    found = Captions([captioner("others"), captioner(f"{path}:shout")]).of([item("a dog", "a pup")])
    assert found == [{"others": ["a pup"], "shout": ["A DOG", "A PUP"]}]
    with pytest.raises(UserError, match="both be called 'rules'"):
        Captions([captioner("rules"), captioner("rules")])


@pytest.mark.parametrize(
    "spec", ["rule", "field:", "template", "coca:ViT-B-32@openai", "coca:coca_ViT-B-32@file.pt", "transformers:/nowhere"]
)
def test_mistakes(spec):
    with pytest.raises(UserError, match=r"captions|captioner"):
        captioner(spec)


def test_coca_writes_the_same_sentences_again():
    """An untrained CoCa: nonsense, but the same nonsense for the same picture."""
    import open_clip

    from clipling.guides.captioners import SAMPLES, CoCa, first_sentence, nucleus

    config = open_clip.get_model_config("coca_ViT-B-32")
    config["embed_dim"] = 64
    config["vision_cfg"] |= {"layers": 1, "width": 64, "image_size": 32, "patch_size": 16}
    config["text_cfg"] |= {"layers": 1, "width": 64, "heads": 2}
    config["multimodal_cfg"] |= {"layers": 1, "width": 64, "heads": 2}
    model = open_clip.CoCa(**{k: v for k, v in config.items() if k != "custom_text"})
    torch.manual_seed(0)
    for parameter in model.parameters():  # some of open_clip's are memory as it was found, until weights are loaded
        torch.nn.init.normal_(parameter, std=0.05)
    model.visual.preprocess_cfg = {"size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    made = CoCa("coca_ViT-B-32@none", model)
    one, two = made.captions([item(number=3), item(number=4)]), made.captions([item(number=3), item(number=4)])
    assert one == two
    assert [len(texts) for texts in one] == [SAMPLES, SAMPLES]
    logits = torch.tensor([[3.0, 0.0, 2.9, -9.0]] * 500).log_softmax(1)
    assert set(nucleus(logits, 0.9).flatten().tolist()) == {0, 2}
    assert set(nucleus(logits, 0.4).flatten().tolist()) == {0}
    assert set(nucleus(logits, 0.99).flatten().tolist()) == {0, 1, 2}
    assert first_sentence("<start_of_text>a dog runs . more<end_of_text>x") == "a dog runs"
