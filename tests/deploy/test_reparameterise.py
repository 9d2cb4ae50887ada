"""MobileCLIP's image towers at export: branches of training become one convolution each, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from clipling.deploy.graphs import ImageGraph
from clipling.deploy.onnx import image_model
from clipling.models.catalogue import zoo_config
from clipling.models.dual import Student
from clipling.models.hub import new_student
from tests.deploy.test_onnx import image_error
from tests.models.making import pictures


def used(name: str, size: int = 64) -> Student:
    """The image tower beside a small text tower, with statistics of batches as after training: fresh ones would hide a wrong fold."""
    config = copy.deepcopy(zoo_config(name))
    config["model_cfg"]["text_cfg"] = copy.deepcopy(zoo_config("tiny_vit_32")["model_cfg"]["text_cfg"])
    config["model_cfg"]["vision_cfg"]["image_size"] = config["preprocess_cfg"]["size"] = size
    student = new_student(config, seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 0.9
                module.weight.uniform_(0.5, 1.5, generator=draw)
                module.bias.normal_(0, 0.2, generator=draw)
            if hasattr(module, "gamma") and isinstance(module.gamma, nn.Parameter):
                module.gamma.uniform_(0.2, 0.6, generator=draw)  # layer scale: 1e-5 would hide whole branches
        for seed in range(2):
            student.train().encode_image(student.normalise(pictures(6, size, seed=seed)))
    return student.eval()


def convolutions(module: nn.Module) -> int:
    return sum(isinstance(part, nn.Conv2d) for part in module.modules())


def branches(module: nn.Module) -> int:
    return sum(len(getattr(part, "conv_kxk", None) or []) for part in module.modules())


@pytest.mark.parametrize(
    "name", ["MobileCLIP2-S0", *(pytest.param(n, marks=pytest.mark.slow) for n in ("MobileCLIP-S1", "MobileCLIP-S2", "MobileCLIP2-S3"))]
)
def test_one_convolution_for_all_branches(name):
    student = used(name)
    graph = ImageGraph(student)
    assert branches(student.model.visual) > 0
    assert branches(graph.tower) == 0
    assert convolutions(graph.tower) < convolutions(student.model.visual)
    fewer = sum(p.numel() for p in graph.tower.parameters())
    assert fewer < sum(p.numel() for p in student.model.visual.parameters())
    if name == "MobileCLIP2-S0":
        assert fewer / 1e6 == pytest.approx(11.36, abs=0.02)  # core.md, section 3.4
    images = student.normalise(pictures(3, student.image_size))
    with torch.no_grad():
        expected = student.encode_image(images)
        torch.testing.assert_close(graph(images), expected, atol=1e-5, rtol=0)
        # the student itself stays as it is trained
        torch.testing.assert_close(student.encode_image(images), expected, atol=0, rtol=0)
    assert float((expected[0] - expected[1]).abs().max()) > 1e-3, "pictures that are alike would show nothing"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileCLIP2-S0", "MobileCLIP-B"])
def test_the_exported_graph(name):
    student = used(name, 224 if name.endswith("B") else 64)
    assert image_error(student, image_model(student)) < 2e-4
