"""MobileCLIP's architectures as open_clip has them: sizes against the published tables, preprocessing, what padding does to their texts."""

from __future__ import annotations

import pytest
import torch

from clipling.models.catalogue import MOBILECLIP, zoo_config, zoo_names
from clipling.models.dual import Student
from clipling.models.hub import new_student

# Millions of parameters of both towers as the authors' README counts them (training form), where it agrees with the released config.
PUBLISHED = {
    "MobileCLIP-S1": (21.5, 63.4), "MobileCLIP-S2": (35.7, 63.4), "MobileCLIP-B": (86.3, 63.4), "MobileCLIP2-S0": (11.4, 63.4),
    "MobileCLIP2-S2": (35.7, 63.4), "MobileCLIP2-B": (86.3, 63.4), "MobileCLIP2-S3": (125.1, 123.6), "MobileCLIP2-S4": (321.6, 123.6),
    "MobileCLIP2-L-14": (304.3, 123.6),
}  # fmt: skip
SMALLEST = "MobileCLIP2-S0"


def test_they_are_in_the_zoo():
    assert set(PUBLISHED) == set(MOBILECLIP) <= set(zoo_names())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    image, text, rows = MOBILECLIP[name]
    assert image / 1e6 == pytest.approx(PUBLISHED[name][0], abs=0.4)
    assert (text + rows) / 1e6 == pytest.approx(PUBLISHED[name][1], abs=0.1)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == SMALLEST else pytest.mark.slow) for n in PUBLISHED])
def test_sizes_as_built(name):
    with torch.device("meta"):
        sizes = Student(zoo_config(name)).sizes()
    assert (sizes["image"], sizes["text"], sizes["token_rows"]) == MOBILECLIP[name]
    assert sizes["total"] == sum(MOBILECLIP[name]) + 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_preprocessing(name):
    config = zoo_config(name)
    assert config["preprocess_cfg"]["size"] == (224 if name.endswith(("B", "14")) else 256)
    plain = name.startswith("MobileCLIP-") or name.endswith(("S0", "S2", "B"))
    assert (tuple(config["preprocess_cfg"]["mean"]) == (0.0, 0.0, 0.0)) == plain
    assert config["model_cfg"]["text_cfg"]["no_causal_mask"] == (not name.endswith("-B"))


def test_padding_changes_a_text_that_is_not_causal_and_no_other():
    """No padding mask: texts have to be padded to 77 with zeros, as in training, so these towers are not cut."""
    texts = ["a dog", "two children in the snow"]
    for causal in (False, True):
        config = zoo_config("MobileCLIP-B")
        config["model_cfg"]["text_cfg"] |= {"no_causal_mask": not causal, "layers": 2, "width": 64, "heads": 2}
        config["model_cfg"]["vision_cfg"] = zoo_config("tiny_vit_32")["model_cfg"]["vision_cfg"]
        student = new_student(config).eval()
        ids = student.tokenise(texts)
        other = ids.clone()
        other[:, -1] = 5
        with torch.no_grad():
            apart = (student.encode_text(ids) - student.encode_text(other)).abs().max()
        assert (apart > 1e-4) == (not causal)
