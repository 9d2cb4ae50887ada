"""A transformers CLIP opened as a student: the same embeddings as transformers' own, or one clear message."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")

from clipling.data.views import eval_pixels  # noqa: E402
from clipling.errors import UserError  # noqa: E402
from clipling.models.hub import new_student, open_student, save_student  # noqa: E402
from clipling.models.irregular_config import mlp_ratio  # noqa: E402
from clipling.models.transformers_clip import _TEXT, _VISION, clip_config  # noqa: E402
from tests.models.making import CAPTIONS, pictures  # noqa: E402

SMALL = {"intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4}
EDGE = {"size": {"shortest_edge": 32}, "crop_size": 32}


def make(folder: Path, text: dict | None = None, vision: dict | None = None, **top) -> transformers.CLIPModel:
    """A random CLIPModel, its towers of different shapes, saved as transformers saves it."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={"hidden_size": 32, **SMALL, **(text or {})},
        vision_config={"hidden_size": 48, "image_size": 32, "patch_size": 16, **SMALL, "num_hidden_layers": 3, **(vision or {})},
        projection_dim=24,
        logit_scale_init_value=3.1,
    )
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():  # biases and norms start at constants, which would hide a swap
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder, safe_serialization=True, **top)
    transformers.CLIPImageProcessor(**EDGE).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return make(folder), folder


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved[1], tmp_path / "copy"))


def rewrite(path: Path, **changes) -> None:
    content = json.loads(path.read_text())
    for key, value in changes.items():
        target, *rest = key.split("__")
        place = content
        if rest:
            place, target = content[target], rest[0]
        place[target] = value
    path.write_text(json.dumps(content))


@cache
def hf_tokenizer():
    """transformers' own tokenizer over CLIP's merges."""
    stock = SimpleTokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {special.get(token, token): number for token, number in stock.encoder.items()}
    return transformers.CLIPTokenizer(vocab=vocab, merges=list(stock.bpe_ranks))


def image_features(model, pixels):
    with torch.no_grad():
        return F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)


def text_features(model, **tokens):
    with torch.no_grad():
        return F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)


def assert_same(student, model) -> None:
    assert not student.training
    images = student.normalise(pictures(5, 32))
    with torch.no_grad():
        torch.testing.assert_close(student.encode_image(images), image_features(model, images), atol=1e-5, rtol=0)
        ours = student.encode_text(student.tokenise(CAPTIONS))
    padded = hf_tokenizer()(CAPTIONS, padding="max_length", max_length=student.context_length, truncation=True, return_tensors="pt")
    torch.testing.assert_close(ours, text_features(model, **padded), atol=1e-5, rtol=0)
    assert student.logit_scale.item() == pytest.approx(model.logit_scale.item())


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("eos", [49407, 2])
def test_embeddings_equal_those_of_transformers(tmp_path, act, eos):
    model = make(tmp_path, text={"hidden_act": act, "eos_token_id": eos}, vision={"hidden_act": act})
    student = open_student(tmp_path)
    assert_same(student, model)
    assert student.config["model_cfg"]["quick_gelu"] is (act == "quick_gelu")
    assert student.embed_dim == 24


@pytest.mark.parametrize("padding", ["none", "zeros", "end"])
def test_padding_plays_no_part(saved, padding):
    """Ids as transformers' tokenizer pads them (end tokens), as open_clip's does (zeros), and not padded at all."""
    model, folder = saved
    student = open_student(folder)
    for caption in CAPTIONS:
        ids = hf_tokenizer()(caption, return_tensors="pt").input_ids
        wanted = text_features(model, input_ids=ids)
        more = 0 if padding == "none" else 77 - ids.shape[1]
        ours = F.pad(ids, (0, more), value=0 if padding == "zeros" else 49407)
        with torch.no_grad():
            torch.testing.assert_close(student.encode_text(ours), wanted, atol=1e-5, rtol=0)


def test_other_shapes_and_settings(tmp_path):
    """A short context, other norm constants, an inner width whose ratio cannot be written exactly, 8 heads of 4."""
    text = {"max_position_embeddings": 20, "layer_norm_eps": 1e-3, "intermediate_size": 97, "num_attention_heads": 8}
    model = make(tmp_path, text=text, vision={"layer_norm_eps": 1e-2, "hidden_size": 44, "intermediate_size": 101})
    assert_same(open_student(tmp_path), model)


def test_every_inner_width_is_built():
    """open_clip builds int(width * ratio): the ratio must never round down."""
    for width in (32, 44, 49, 96, 768):
        for inner in range(1, 5 * width):
            assert int(width * mlp_ratio(width, inner)) == inner


def test_shards_give_the_same_as_one_file(saved, tmp_path):
    model, _ = saved
    model.save_pretrained(tmp_path, max_shard_size="2MB")
    assert not (tmp_path / "model.safetensors").exists()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    student = open_student(tmp_path)
    assert_same(student, model)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(UserError, match=r"model-00002-of-\d+\.safetensors does not exist"):
        open_student(tmp_path)


def test_half_precision_and_old_files(copy, saved):
    """Weights in fp16 with the `position_ids` that old versions stored, and the settings in `text_config_dict`."""
    model, _ = saved
    state = {name: value.half() for name, value in load_file(copy / "model.safetensors").items()}
    save_file({**state, "text_model.embeddings.position_ids": torch.arange(77)[None]}, copy / "model.safetensors")
    content = json.loads((copy / "config.json").read_text())
    content["text_config_dict"], content["text_config"] = content["text_config"], {"hidden_size": 1}
    (copy / "config.json").write_text(json.dumps(content))
    student = open_student(copy)
    assert next(student.parameters()).dtype == torch.float32
    images = student.normalise(pictures(3, 32))
    with torch.no_grad():
        torch.testing.assert_close(student.encode_image(images), image_features(model, images), atol=5e-3, rtol=0)


def test_defaults_are_those_of_transformers():
    config = transformers.CLIPConfig()
    for ours, theirs in ((_TEXT, config.text_config), (_VISION, config.vision_config)):
        assert ours == {name: getattr(theirs, name) for name in ours}


def test_preprocessing_equals_that_of_transformers(saved):
    """One picture through transformers' own processor. Resizing differs by rounding of its backend: 2 of 255 levels."""
    folder = saved[1]
    student = open_student(folder)
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((60, 45), Image.Resampling.BICUBIC)
    theirs = transformers.CLIPImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
    ours = student.normalise(torch.from_numpy(eval_pixels(image, student.preprocess_cfg).copy()).permute(2, 0, 1)[None])
    assert ours.shape == theirs.shape == (1, 3, 32, 32)
    torch.testing.assert_close(ours, theirs, atol=2 / 255 / 0.26, rtol=0)


def test_preprocessing_settings(copy):
    path = copy / "preprocessor_config.json"
    rewrite(path, image_mean=[0.5, 0.4, 0.3], image_std=[0.1, 0.2, 0.3], resample=2)
    got = open_student(copy).preprocess_cfg
    assert (got["mean"], got["std"], got["interpolation"], got["size"]) == ([0.5, 0.4, 0.3], [0.1, 0.2, 0.3], "bilinear", 32)
    assert got["resize_mode"] == "shortest"
    rewrite(path, size={"height": 32, "width": 32}, do_center_crop=False)
    assert clip_config(copy)["preprocess_cfg"]["resize_mode"] == "squash"
    rewrite(path, size=32, crop_size=32, do_center_crop=True)  # as old versions wrote them
    assert clip_config(copy)["preprocess_cfg"]["resize_mode"] == "shortest"
    (copy / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(path.read_text())}))
    path.unlink()
    assert clip_config(copy)["preprocess_cfg"]["mean"] == [0.5, 0.4, 0.3]
    (copy / "processor_config.json").unlink()
    assert clip_config(copy)["preprocess_cfg"]["mean"] == pytest.approx(transformers.CLIPImageProcessor.image_mean)


def test_the_students_own_copy_opens_without_transformers_files(saved, tmp_path):
    model, folder = saved
    student = open_student(folder)
    save_student(student, tmp_path / "copy")
    assert_same(open_student(tmp_path / "copy"), model)
    assert_same(new_student(student.config, init={"model": str(folder)}).eval(), model)


def test_both_layouts_in_one_folder(copy, saved):
    """Hubs keep both; without a prefix it is open_clip's that counts."""
    student = open_student(copy)
    with torch.no_grad():
        student.logit_scale.fill_(1.5)
    save_student(student, copy)
    assert open_student(copy).logit_scale.item() == 1.5
    assert open_student(f"transformers:{copy}").logit_scale.item() == pytest.approx(saved[0].logit_scale.item())


def test_a_model_of_the_hub_that_is_kept_here(saved, tmp_path, monkeypatch):
    revision = "a" * 40
    snapshot = tmp_path / "models--me--tiny" / "snapshots" / revision
    shutil.copytree(saved[1], snapshot)
    (tmp_path / "models--me--tiny" / "refs").mkdir()
    (tmp_path / "models--me--tiny" / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_same(open_student("transformers:me/tiny"), saved[0])
    with pytest.raises(UserError, match=r"the model 'me/other' of transformers is not on this machine and cannot be downloaded"):
        open_student("transformers:me/other")
    with pytest.raises(UserError, match=r"the model 'not a/name/at all' of transformers"):
        open_student("transformers:not a/name/at all")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "blip"}, "of model_type 'blip'.*only CLIP"),
        ({"text_config__hidden_act": "gelu"}, "hidden_act is 'gelu' for text and 'quick_gelu' for pictures"),
        ({"text_config__hidden_act": "relu", "vision_config__hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"text_config__vocab_size": 49410}, "vocab_size is 49410; only CLIP's own 49408 tokens"),
        ({"text_config__eos_token_id": 7}, "eos_token_id is 7"),
        ({"text_config__eos_token_id": None}, "eos_token_id is None"),
        ({"vision_config__num_channels": 1}, "num_channels is 1"),
        ({"vision_config__image_size": [32, 48]}, r"vision_config.image_size is \[32, 48\]; expected a positive whole number"),
        ({"vision_config__num_attention_heads": 5}, "hidden_size 48 is not a multiple of its 5 heads"),
        ({"projection_dim": None}, "projection_dim is None"),
        ({"vision_config": [1]}, r"vision_config must be a mapping, not \[1\]"),
        ({"projection_dim": 25}, r"does not fit the student's config: 2 of \d+ tensors differ"),
        ({"vision_config__num_hidden_layers": 2}, "is not part of this model"),
        ({"vision_config__num_hidden_layers": 4}, "is missing"),
    ],
)
def test_configs_that_cannot_be_opened(copy, changes, message):
    rewrite(copy / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        open_student(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_normalize": False}, "do_normalize is False"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0"),
        ({"resample": 0}, "resample is 0"),
        ({"size": {"shortest_edge": 40}}, r"resized to \{'shortest_edge': 40\} and cut to"),
        ({"do_center_crop": False}, "not cut"),
    ],
)
def test_preprocessing_that_cannot_be_had(copy, changes, message):
    rewrite(copy / "preprocessor_config.json", **changes)
    with pytest.raises(UserError, match=message):
        open_student(copy)


def test_tokenizers(copy):
    tokenizer = hf_tokenizer()
    tokenizer.save_pretrained(copy)
    open_student(copy)  # the real one is recognised
    path = copy / "tokenizer.json"
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    vocab["dog</w>"], vocab["cat</w>"] = vocab["cat</w>"], vocab["dog</w>"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="tokenizer does not have CLIP's own tokens"):
        open_student(copy)


def test_pickles_are_refused_and_weights_must_be_whole(copy):
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no weights: expected model\.safetensors"):
        open_student(copy)
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle"):
        open_student(copy)
    save_file({**state, "classifier.weight": torch.zeros(2)}, copy / "model.safetensors")
    with pytest.raises(UserError, match=r"classifier\.weight is not a tensor of a CLIPModel"):
        open_student(copy)
    key = "text_model.encoder.layers.1.self_attn.k_proj.bias"
    save_file({name: value for name, value in state.items() if name != key}, copy / "model.safetensors")
    with pytest.raises(UserError, match=r"in_proj_bias lacks its self_attn\.k_proj"):
        open_student(copy)
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"logit_scale": "../elsewhere.safetensors"}}))
    with pytest.raises(UserError, match="does not say which tensor is in which file"):
        open_student(copy)
