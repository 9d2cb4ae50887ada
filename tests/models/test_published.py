"""Checkpoints in the layouts of TinyCLIP and MobileCLIP, made from models built here: the same embeddings, or one clear message."""

from __future__ import annotations

import argparse
import json
import re

import pytest
import torch
from safetensors.torch import save_file

from clipling.errors import UserError
from clipling.models.hub import new_student
from clipling.models.published import MOBILECLIP, open_published, published_config
from tests.models.making import CAPTIONS, pictures, tiny


def tinyclip_state(student, ddp: bool) -> dict[str, torch.Tensor]:
    """TinyCLIP's names: the image tower, the text tower (open_clip's old flat names) and the scale, each in a wrapper of its own."""
    wrapped = ".module" if ddp else ""
    made = {}
    for name, value in student.stock_state().items():
        tower = "_image_encoder" if name.startswith("visual.") else "_text_encoder"
        made[f"{tower}{wrapped}.{name.removeprefix('text.')}"] = value
    made[f"_logit_scale{wrapped}.logit_scale"] = made.pop(f"_text_encoder{wrapped}.logit_scale")
    return made


def mobileclip_config(tower: str, size: int) -> dict:
    config = tiny(no_causal_mask=True)
    config["model_cfg"]["vision_cfg"] = {"image_size": size, "timm_model_name": tower, "timm_pool": "avg", "timm_proj": None}
    if tower == "vit_base_mci_224":
        config["model_cfg"]["vision_cfg"]["timm_pool"] = "token"
    return config


def in_order(name: str, replaced: list[tuple[str, str]]) -> str:
    for pattern, new in replaced:
        name = re.sub(pattern, new, name)
    return name


def fastvit_names(names: list[str]) -> dict[str, str]:
    """Apple's name of each tensor of timm's FastViT: stages are one list, in which position encodings and downsampling have places."""
    place, number = {}, 0
    for stage in range(4):
        for part in ("downsample", "pos_emb", "blocks"):
            if any(name.startswith(f"stages.{stage}.{part}.") for name in names):
                place[stage, part], number = number, number + 1
    renamed = [
        (r"^stem", "patch_embed"), (r"conv_kxk", "rbr_conv"), (r"conv_scale", "rbr_scale"), (r"identity", "rbr_skip"),
        (r"final_conv", "conv_exp"), (r"large_conv", "lkb_origin"), (r"\.mlp\.", ".convffn."), (r"se\.fc1", "se.reduce"),
        (r"se\.fc2", "se.expand"), (r"(layer_scale(_[12])?)\.gamma", r"\1"), (r"^head\.fc\.weight$", "head.proj"),
        (r"^stages\.(\d)\.downsample\.proj", lambda m: f"network.{place[int(m[1]), 'downsample']}.proj"),
        (r"^stages\.(\d)\.pos_emb\.pos_enc", lambda m: f"network.{place[int(m[1]), 'pos_emb']}.pe"),
        (r"^stages\.(\d)\.blocks", lambda m: f"network.{place[int(m[1]), 'blocks']}"),
    ]  # fmt: skip
    return {name: in_order(name, renamed) for name in names}


VIT_NAMES = [
    (r"^patch_embed\.backbone\.(\d)\.conv", r"patch_emb.\1.block.conv"), (r"^patch_embed\.backbone\.(\d)\.bn", r"patch_emb.\1.block.norm"),
    (r"^norm\.", "post_transformer_norm."), (r"\.norm1\.", ".pre_norm_mha.0."), (r"\.attn\.qkv\.", ".pre_norm_mha.1.qkv_proj."),
    (r"\.attn\.proj\.", ".pre_norm_mha.1.out_proj."), (r"\.norm2\.", ".pre_norm_ffn.0."), (r"\.mlp\.fc1\.", ".pre_norm_ffn.1."),
    (r"\.mlp\.fc2\.", ".pre_norm_ffn.4."), (r"^blocks\.", "transformer."), (r"^pos_embed$", "pos_embed.pos_embed.pos_embed"),
    (r"^head\.weight$", "classifier.proj"),
]  # fmt: skip
TEXT_NAMES = [
    (r"^text_projection", "projection_layer"), (r"^token_embedding", "embedding_layer"),
    (r"^positional_embedding", "positional_embedding.pos_embed.pos_embed"), (r"^ln_final", "final_layer_norm"),
    (r"\.resblocks", ""), (r"\.ln_1\.", ".pre_norm_mha.0."), (r"\.attn\.in_proj_", ".pre_norm_mha.1.qkv_proj."),
    (r"\.attn\.", ".pre_norm_mha.1."), (r"\.ln_2\.", ".pre_norm_ffn.0."), (r"\.mlp\.c_fc\.", ".pre_norm_ffn.1."),
    (r"\.mlp\.c_proj\.", ".pre_norm_ffn.4."),
]  # fmt: skip


def mobileclip_state(student) -> dict[str, torch.Tensor]:
    """Apple's names. Its image projection has no bias, so neither has the model that is written."""
    state = student.stock_state()
    trunk = {name.removeprefix("visual.trunk."): value for name, value in state.items() if name.startswith("visual.")}
    fastvit = "stem.0.conv_kxk.0.conv.weight" in trunk
    names = fastvit_names(list(trunk)) if fastvit else {name: in_order(name, VIT_NAMES) for name in trunk}
    made = {"logit_scale": state["logit_scale"]}
    for name, value in trunk.items():
        if name not in ("head.fc.bias", "head.bias"):
            value = value.T.contiguous() if name in ("head.fc.weight", "head.weight") else value
            made["image_encoder.model." + names[name]] = value[None] if name == "pos_embed" and not fastvit else value
    for name, value in state.items():
        if name.startswith("text."):
            value = value[None, None] if name == "text.positional_embedding" else value
            made["text_encoder." + in_order(name.removeprefix("text."), TEXT_NAMES)] = value
    return made


def shaken(config: dict):
    """Every weight moved, and the biases that Apple's projection does not have at zero."""
    student = new_student(config, seed=1).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in student.model.named_parameters():
            value.add_(torch.randn(value.shape, generator=generator) * 0.02)
            if name in ("visual.trunk.head.fc.bias", "visual.trunk.head.bias"):
                value.zero_()
    return student


def assert_same(one, two) -> None:
    ours, theirs = one.stock_state(), two.stock_state()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    images = one.normalise(pictures(2, one.image_size))
    with torch.no_grad():
        assert torch.equal(two.encode_image(images), one.encode_image(images))
        assert torch.equal(two.encode_text(two.tokenise(CAPTIONS)), one.encode_text(one.tokenise(CAPTIONS)))


@pytest.fixture
def config(tmp_path):
    """`tiny_vit_32` is of the zoo, and needs no file."""
    return "tiny_vit_32"


@pytest.mark.parametrize("ddp", [True, False])
def test_tinyclip(tmp_path, config, ddp):
    student = shaken(tiny())
    state = tinyclip_state(student, ddp)
    masks = {f"_image_encoder.module.l0_module.{name}": torch.zeros(3) for name in ("hidden_loga", "lambda_1")}
    torch.save({"epoch": 3, "name": "x", "state_dict": {**state, **masks}}, tmp_path / "tiny.pt")
    found, said = open_published(tmp_path / "tiny.pt", config)
    assert said == {"layout": "tinyclip", "ignored_masks": 2}
    assert not found.training
    assert_same(student, found)


def test_open_clips_own_layout_and_wrappers(tmp_path, config):
    student = shaken(tiny())
    state = {f"module.{name}": value for name, value in student.stock_state().items()}
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    save_file(student.stock_state(), tmp_path / "a.safetensors")
    for file in ("a.pt", "a.safetensors"):
        found, said = open_published(tmp_path / file, config)
        assert said == {"layout": "open_clip"}
        assert_same(student, found)


@pytest.mark.parametrize(("tower", "size"), [("fastvit_mci0", 64), pytest.param("vit_base_mci_224", 224, marks=pytest.mark.slow)])
def test_mobileclip(tmp_path, tower, size):
    config = mobileclip_config(tower, size)
    student = shaken(config)
    state = mobileclip_state(student)
    assert any(name in state for name in MOBILECLIP)
    torch.save(state, tmp_path / "mobileclip.pt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    found, said = open_published(tmp_path / "mobileclip.pt", str(tmp_path / "config.json"))
    assert said == {"layout": "mobileclip"}
    assert_same(student, found)


def test_half_precision(tmp_path, config):
    student = shaken(tiny())
    torch.save({name: value.half() for name, value in tinyclip_state(student, True).items()}, tmp_path / "tiny.pt")
    found, _ = open_published(tmp_path / "tiny.pt", config)
    assert next(found.parameters()).dtype == torch.float32
    images = student.normalise(pictures(2, 32))
    with torch.no_grad():
        torch.testing.assert_close(found.encode_image(images), student.encode_image(images), atol=5e-3, rtol=0)


def test_configs_by_name():
    known = published_config("MobileCLIP-S2")
    assert known["model_cfg"]["vision_cfg"]["timm_model_name"] == "fastvit_mci2"
    assert known["preprocess_cfg"] == {
        "size": 256,
        "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
        "interpolation": "bilinear",
        "resize_mode": "shortest",
    }
    assert published_config("TinyCLIP-ViT-8M-16-Text-3M")["model_cfg"]["text_cfg"]["layers"] == 3
    with pytest.raises(UserError, match=r"no model of the zoo or of open_clip\. Did you mean 'MobileCLIP-S2'"):
        published_config("MobileCLIP-S22")


class Evil:
    def __reduce__(self):
        return (open, ("/nowhere/at/all", "w"))


@pytest.mark.parametrize("more", [Evil(), argparse.Namespace(lr=1)], ids=["code", "settings"])
def test_a_pickle_with_more_than_tensors_is_never_loaded(tmp_path, config, more):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": more}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="is not a checkpoint of tensors alone"):
        open_published(tmp_path / "x.pt", config)


def test_files_that_are_no_checkpoints(tmp_path, config):
    (tmp_path / "a.pt").write_bytes(b"not at all")
    with pytest.raises(UserError, match="is not a checkpoint of tensors alone, or not whole"):
        open_published(tmp_path / "a.pt", config)
    for content in ({"epoch": 1}, [1, 2], {}, {"state_dict": {"a": 1}}):
        torch.save(content, tmp_path / "b.pt")
        with pytest.raises(UserError, match="holds no state dict"):
            open_published(tmp_path / "b.pt", config)
    torch.save(tinyclip_state(shaken(tiny(layers=1)), True), tmp_path / "c.pt")
    with pytest.raises(UserError, match="does not fit the student's config"):
        open_published(tmp_path / "c.pt", config)


def test_two_different_copies_of_a_tensor(tmp_path, config):
    state = tinyclip_state(shaken(tiny()), True)
    state["image_encoder_without_ddp.visual.proj"] = state["_image_encoder.module.visual.proj"].clone()
    torch.save(state, tmp_path / "a.pt")
    open_published(tmp_path / "a.pt", config)
    state["image_encoder_without_ddp.visual.proj"] += 1
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"both visual\.proj, and they differ"):
        open_published(tmp_path / "a.pt", config)
