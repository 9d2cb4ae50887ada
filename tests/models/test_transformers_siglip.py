"""A transformers SigLIP opened as a student: the same embeddings as transformers' own, or one clear message."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")

from clipling.errors import UserError  # noqa: E402
from clipling.evals.suite.cost import image_flops  # noqa: E402
from clipling.models.hub import new_student, open_student, save_student  # noqa: E402
from clipling.models.siglip_towers import is_ours, tower_name  # noqa: E402
from clipling.models.transformers_siglip import _TEXT, _VISION  # noqa: E402
from tests.models.making import CAPTIONS, pictures  # noqa: E402
from tests.models.test_transformers_clip import image_features, rewrite, text_features  # noqa: E402

LENGTH = 24
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def spiece(folder: Path) -> Path:
    """A sentencepiece model with SigLIP's special tokens: pad 0, end 1, unknown 2."""
    text = folder / "text.txt"
    text.write_text("\n".join([*CAPTIONS * 3, LETTERS, " ".join(LETTERS)]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spiece"), vocab_size=100, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        character_coverage=1.0, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return folder / "spiece.model"


def make(folder: Path, text: dict | None = None, vision: dict | None = None, **top) -> transformers.SiglipModel:
    """A random SiglipModel, its towers of different shapes, saved as transformers saves it."""
    torch.manual_seed(0)
    small = {"num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.SiglipConfig(
        text_config={
            **{"hidden_size": 32, "intermediate_size": 72, "vocab_size": 128, "max_position_embeddings": LENGTH, "projection_size": 48},
            **{**small, **(text or {})},
        },
        vision_config={"hidden_size": 48, "intermediate_size": 101, "image_size": 32, "patch_size": 16, **small, **(vision or {})},
    )
    model = transformers.SiglipModel(config).eval()
    with torch.no_grad():  # biases and norms start at constants, which would hide a swap
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder, **top)
    side = config.vision_config.image_size
    transformers.SiglipImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    transformers.SiglipTokenizer(str(spiece(folder))).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    return make(folder), folder


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved[1], tmp_path / "copy"))


def assert_same(student, model, tokenizer: Path) -> None:
    assert not student.training
    images = student.normalise(pictures(5, student.image_size))
    theirs = transformers.AutoTokenizer.from_pretrained(tokenizer)
    ids = theirs(CAPTIONS, padding="max_length", max_length=student.context_length, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(student.tokenise(CAPTIONS), ids)
    assert len(ids.unique()) > 20
    with torch.no_grad():
        torch.testing.assert_close(student.encode_image(images), image_features(model, images), atol=1e-5, rtol=0)
        torch.testing.assert_close(student.encode_text(ids), text_features(model, input_ids=ids), atol=1e-5, rtol=0)
        pairs = student.logit_scale.exp() * student.encode_image(images) @ student.encode_text(ids).T + student.logit_bias
        wanted = model(input_ids=ids, pixel_values=images).logits_per_image
    torch.testing.assert_close(pairs, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("act", ["gelu_pytorch_tanh", "gelu"])
def test_embeddings_equal_those_of_transformers(tmp_path, act):
    model = make(tmp_path, text={"hidden_act": act}, vision={"hidden_act": act})
    student = open_student(tmp_path)
    assert_same(student, model, tmp_path)
    assert student.embed_dim == 48
    assert student.logit_bias.item() == pytest.approx(model.logit_bias.item())


def test_the_activation_matters(tmp_path):
    """The exact GELU and its tanh form differ by more than the tolerance above: the towers are not taken for one another."""
    model = make(tmp_path)
    rewrite(tmp_path / "config.json", vision_config__hidden_act="gelu")
    student = open_student(tmp_path)
    images = student.normalise(pictures(5, 32))
    with torch.no_grad():
        assert (student.encode_image(images) - image_features(model, images)).abs().max() > 1e-5


def test_other_shapes_and_settings(tmp_path):
    """Pictures that the patches do not fill, text features of the text's own width, another norm constant of texts."""
    model = make(
        tmp_path, text={"hidden_size": 44, "layer_norm_eps": 1e-3, "projection_size": None}, vision={"hidden_size": 44, "image_size": 38}
    )
    assert_same(open_student(tmp_path), model, tmp_path)


def test_saved_and_opened_again(saved, tmp_path):
    model, folder = saved
    save_student(open_student(folder), tmp_path / "copy")
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == [
        "open_clip_config.json", "open_clip_model.safetensors", "spiece.model", "tokenizer_config.json",
    ]  # fmt: skip
    assert str(folder) not in (tmp_path / "copy" / "open_clip_config.json").read_text()
    again = open_student(tmp_path / "copy")
    assert_same(again, model, folder)
    odd = [*CAPTIONS, "A, dog! &amp; more"]
    assert torch.equal(open_clip.get_tokenizer(f"local-dir:{tmp_path / 'copy'}")(odd), again.tokenise(odd))
    assert_same(new_student(again.local_config, init={"model": str(folder)}).eval(), model, folder)


def test_another_process_knows_the_tower_by_its_name_alone(saved, tmp_path):
    """Neither transformers nor the model's first folder is there any more; stock open_clip opens it after `register`."""
    student = open_student(saved[1])
    save_student(student, tmp_path / "copy")
    images = student.normalise(pictures(2, 32))
    with torch.no_grad():
        torch.save({"images": images, "wanted": student.encode_image(images)}, tmp_path / "pictures.pt")
    name = student.config["model_cfg"]["vision_cfg"]["timm_model_name"]
    code = (
        "import sys, torch, open_clip\n"
        "from clipling.models.hub import open_student\n"
        f"found = torch.load({str(tmp_path / 'pictures.pt')!r}, weights_only=True)\n"
        f"student = open_student({str(tmp_path / 'copy')!r})\n"
        "with torch.no_grad():\n"
        "    assert torch.allclose(student.encode_image(found['images']), found['wanted'], atol=1e-6)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    stock = (
        "import torch, open_clip\n"
        "from clipling.models.siglip_towers import register\n"
        f"register({name!r})\n"
        f"found = torch.load({str(tmp_path / 'pictures.pt')!r}, weights_only=True)\n"
        f"model, _, _ = open_clip.create_model_and_transforms({'local-dir:' + str(tmp_path / 'copy')!r})\n"
        "with torch.no_grad():\n"
        "    assert torch.allclose(model.eval().encode_image(found['images'], normalize=True), found['wanted'], atol=1e-6)\n"
    )
    subprocess.run([sys.executable, "-c", stock], check=True, timeout=120)


def test_an_image_tower_from_a_file_of_its_own(saved, tmp_path):
    """As for any tower of timm: `init: {image: FILE}`."""
    student = open_student(saved[1])
    state = {f"visual.{name}": value.contiguous() for name, value in student.model.visual.state_dict().items()}
    save_file(state, tmp_path / "image.safetensors")
    save_file({name.removeprefix("visual.trunk."): value for name, value in state.items()}, tmp_path / "trunk.safetensors")
    for file in ("image.safetensors", "trunk.safetensors"):
        other = new_student(student.local_config, seed=5, init={"image": str(tmp_path / file)}).eval()
        images = student.normalise(pictures(2, 32))
        with torch.no_grad():
            torch.testing.assert_close(other.encode_image(images), student.encode_image(images), atol=1e-6, rtol=0)


def test_names_of_towers():
    name = tower_name(width=96, layers=2, heads=4, units=384, patch=16, size=224, activation="tanh")
    assert name == "clipling_siglip_w96_d2_h4_m384_p16_i224_tanh"
    assert is_ours(name)
    assert not is_ours("vit_base_patch16_siglip_224")
    assert not is_ours(None)


def test_texts_are_cleaned_as_open_clip_does(saved):
    student = open_student(saved[1])
    rows = student.tokenise(["A black-dog, runs!", "a blackdog runs", "A black&amp;dog runs"])
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[1], rows[2])


def test_defaults_are_those_of_transformers():
    config = transformers.SiglipConfig()
    for ours, theirs in ((_TEXT, config.text_config), (_VISION, config.vision_config)):
        for name, value in ours.items():
            assert value == getattr(theirs, name) or (name == "projection_size" and theirs.projection_size == theirs.hidden_size)


def test_preprocessing(copy):
    got = open_student(copy).preprocess_cfg
    assert (got["mean"], got["std"], got["interpolation"], got["resize_mode"]) == ([0.5] * 3, [0.5] * 3, "bicubic", "squash")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (copy / name).unlink(missing_ok=True)
    assert open_student(copy).preprocess_cfg == got


def test_a_gemma_tokenizer_as_siglip_2_has(copy, saved):
    """The fixed-resolution models of SigLIP 2 are `SiglipModel`s with Gemma's tokenizer, trained on lower case."""
    for name in ("spiece.model", "tokenizer_config.json"):
        (copy / name).unlink()
    vocab = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"▁", *LETTERS, *".,A"]
    tokenizer = transformers.GemmaTokenizer(
        vocab={token: i for i, token in enumerate(vocab)}, merges=[], add_bos_token=False, add_eos_token=True, padding_side="right"
    )
    tokenizer.save_pretrained(copy)
    student = open_student(copy)
    wanted = tokenizer(["a dog, a cat."], padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    assert torch.equal(student.tokenise(["A Dog, a CAT."]), wanted)
    with torch.no_grad():
        torch.testing.assert_close(student.encode_text(wanted), text_features(saved[0], input_ids=wanted), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "siglip2"}, r"of model_type 'siglip2'.*only CLIP \('clip'\) and SigLIP \('siglip'\)"),
        ({"text_config__hidden_act": "quick_gelu"}, "text_config.hidden_act is 'quick_gelu'"),
        ({"vision_config__hidden_act": "relu"}, "vision_config.hidden_act is 'relu'"),
        ({"vision_config__layer_norm_eps": 1e-5}, "vision_config.layer_norm_eps is 1e-05"),
        ({"vision_config__vision_use_head": False}, "vision_use_head is False"),
        ({"vision_config__num_channels": 1}, "num_channels is 1"),
        ({"vision_config__image_size": [32, 48]}, r"vision_config.image_size is \[32, 48\]"),
        ({"vision_config__num_attention_heads": 5}, "hidden_size 48 is not a multiple of its 5 heads"),
        ({"text_config__projection_size": 24}, "text embeddings have 24 dimensions .* and those of pictures 48"),
        ({"text_config__projection_size": None}, "text embeddings have 32 dimensions"),
        ({"text_config": [1]}, r"text_config must be a mapping, not \[1\]"),
        ({"vision_config__num_hidden_layers": 1}, "is not part of this model"),
        ({"text_config__vocab_size": 99}, r"text.token_embedding.weight is \[128, 32\] instead of \[99, 32\]"),
    ],
)
def test_configs_that_cannot_be_opened(copy, changes, message):
    rewrite(copy / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        open_student(copy)


def test_tokenizers_that_cannot_be_had(copy):
    rewrite(copy / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    with pytest.raises(UserError, match="tokenizer_class is 'BertTokenizer'; a SigLIP has one of SiglipTokenizer"):
        open_student(copy)
    (copy / "spiece.model").unlink()
    with pytest.raises(UserError, match=r"lacks its tokenizer: expected tokenizer_config\.json and tokenizer\.json or spiece\.model"):
        open_student(copy)


def test_a_tokenizer_whose_package_is_missing(copy, monkeypatch):
    def absent(*_, **__):
        raise ImportError("SiglipTokenizer requires the SentencePiece library but it was not found")

    student = open_student(copy)
    monkeypatch.setattr("clipling.models.tokens.HFTokenizer", absent)
    with pytest.raises(UserError, match=r"requires the SentencePiece library.*pip install 'clipling\[guides\]'"):
        student.tokenise(["a"])


def test_preprocessing_that_cannot_be_had(copy):
    path = next(copy / name for name in ("preprocessor_config.json", "processor_config.json") if (copy / name).is_file())
    content = json.loads(path.read_text())
    place = content.get("image_processor", content)
    place["size"] = {"height": 40, "width": 40}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="pictures are resized to"):
        open_student(copy)


def test_pickles_are_refused_and_weights_must_be_whole(copy):
    state = load_file(copy / "model.safetensors")
    save_file({**state, "classifier.weight": torch.zeros(2)}, copy / "model.safetensors")
    with pytest.raises(UserError, match=r"classifier\.weight is not a tensor of a SiglipModel"):
        open_student(copy)
    for key, message in (
        ("vision_model.encoder.layers.1.self_attn.k_proj.bias", r"attn\.qkv\.bias lacks its self_attn\.k_proj"),
        ("logit_bias", "logit_bias is missing"),
        ("vision_model.head.probe", r"attn_pool\.latent is missing"),
    ):
        save_file({name: value for name, value in state.items() if name != key}, copy / "model.safetensors")
        with pytest.raises(UserError, match=message):
            open_student(copy)
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle"):
        open_student(copy)


def test_its_cost_is_counted(saved):
    """Multiplications by hand: 4 patches of 16 x 16, two layers, and a pooling whose query is one latent token."""
    n, w, units = 4, 48, 101
    layer = n * (4 * w * w + 2 * w * units) + 2 * n * n * w
    pool = 2 * w * w + 2 * n * w * w + 2 * n * w + 2 * w * units
    assert image_flops(open_student(saved[1])) == 2 * (n * w * 3 * 16 * 16 + 2 * layer + pool)


def test_unit_rows_and_gradients(saved):
    student = open_student(saved[1]).train()
    images = student.encode_image(student.normalise(pictures(2, 32)))
    texts = student.encode_text(student.tokenise(CAPTIONS[:2]))
    torch.testing.assert_close(F.normalize(images, dim=-1), images)
    (images * texts).sum().backward()
    assert all(p.grad is not None for name, p in student.model.named_parameters() if name not in ("logit_scale", "logit_bias"))
