"""TinyCLIP's regular models: parameters against the published names and the counts of the reference's modules."""

from __future__ import annotations

import pytest

from clipling.models.catalogue import zoo_config, zoo_names, zoo_sizes

# name: millions of parameters (image tower, text tower without token rows, token rows, all), counted in the reference's own
# modules; the names give the first two without decimals.
TABLE = {
    "TinyCLIP-ViT-61M-32-Text-29M": (61.41, 28.67, 25.30, 115.38),
    "TinyCLIP-ViT-40M-32-Text-19M": (39.69, 19.22, 25.30, 84.21),
    "TinyCLIP-ViT-39M-16-Text-19M": (38.59, 19.22, 25.30, 83.10),
    "TinyCLIP-ViT-8M-16-Text-3M": (8.28, 2.52, 12.65, 23.45),
    "TinyCLIP-ResNet-30M-Text-29M": (29.58, 28.94, 25.30, 83.82),
    "TinyCLIP-ResNet-19M-Text-19M": (18.60, 19.48, 25.30, 63.37),
}


def test_every_regular_tinyclip_is_there():
    assert {name for name in zoo_names() if name.startswith("TinyCLIP")} == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_numbers_of_parameters(name):
    sizes = zoo_sizes(name)
    found = tuple(round(sizes[key] / 1e6, 2) for key in ("image", "text", "token_rows", "total"))
    assert found == TABLE[name]
    image, text = name.split("-")[2], name.split("-")[-1]
    assert (f"{found[0]:.0f}M", f"{found[1]:.0f}M") == (image, text)


@pytest.mark.parametrize("name", TABLE)
def test_heads_are_64_wide(name):
    model = zoo_config(name)["model_cfg"]
    assert model["text_cfg"]["width"] == 64 * model["text_cfg"]["heads"]
    assert model["vision_cfg"].get("head_width", 64) == 64
