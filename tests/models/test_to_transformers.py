"""A student saved as a transformers CLIP: bit-equal weights on the way back, and the same function in transformers itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

transformers = pytest.importorskip("transformers")

from clipling.data.views import eval_pixels  # noqa: E402
from clipling.errors import UserError  # noqa: E402
from clipling.models.catalogue import MOBILECLIP  # noqa: E402
from clipling.models.clip_tokenizer import tokenizer_json  # noqa: E402
from clipling.models.dual import Student  # noqa: E402
from clipling.models.hub import new_student, open_student, save_student, zoo_config, zoo_names  # noqa: E402
from clipling.models.to_transformers import save_transformers, transformers_config, why_not  # noqa: E402
from tests.models.making import CAPTIONS, ODD, pictures, small_conv, tiny  # noqa: E402
from tests.models.test_transformers_clip import hf_tokenizer, image_features, make, text_features  # noqa: E402

CUT = ["word " * 100, "supercalifragilistic " * 30]
ENTITIES, SPECIAL, CONTROL = ODD[3], ODD[5], ODD[8]  # what open_clip cleans before the tokenizer, or reads as its own special token
SIZES = [(60, 45), (33, 91), (32, 32), (200, 301), (31, 47)]


def student_of(config: dict, seed: int = 1):
    """Random, with biases and norms that are no constants."""
    student = new_student(config, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return student


def shaped(resize_mode: str = "squash", interpolation: str = "bicubic", quick_gelu: bool = False) -> dict:
    """Other norm constants, an MLP whose ratio cannot be written exactly, another head width, mean and deviation of its own."""
    config = tiny(width=44, heads=4, mlp_ratio=97.5 / 44, context_length=20, norm_kwargs={"eps": 1e-3})
    config["model_cfg"]["quick_gelu"] = quick_gelu
    config["model_cfg"]["vision_cfg"] |= {"width": 48, "head_width": 16, "layers": 2, "norm_kwargs": {"eps": 1e-2}}
    config["preprocess_cfg"] |= {
        "resize_mode": resize_mode,
        "interpolation": interpolation,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.3, 0.2, 0.25],
    }
    return config


def photos() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    found = [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES[:-1]]
    smooth = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize(SIZES[-1], Image.Resampling.BICUBIC)
    return [*found, smooth]


def seen(student, images) -> torch.Tensor:
    arrays = [eval_pixels(image, student.preprocess_cfg).copy() for image in images]
    return student.normalise(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2))


@pytest.fixture(scope="module", params=["tiny", "squash", "shortest"])
def saved(request, tmp_path_factory):
    configs = {
        "tiny": tiny(),
        "squash": shaped("squash", "bilinear"),
        "shortest": shaped("shortest", quick_gelu=True),
    }
    folder = tmp_path_factory.mktemp(request.param)
    student = student_of(configs[request.param])
    save_transformers(student, folder)
    return student, folder


def assert_equal(one, two) -> None:
    ours, theirs = one.stock_state(), two.stock_state()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    images = one.normalise(pictures(4, one.image_size))
    with torch.no_grad():
        torch.testing.assert_close(two.encode_image(images), one.encode_image(images), atol=1e-6, rtol=0)
        ids = one.tokenise(CAPTIONS + ODD + CUT)
        assert torch.equal(two.tokenise(CAPTIONS + ODD + CUT), ids)
        torch.testing.assert_close(two.encode_text(ids), one.encode_text(ids), atol=1e-6, rtol=0)
    for key in ("size", "mean", "std", "interpolation", "resize_mode"):
        assert one.preprocess_cfg[key] == two.preprocess_cfg[key]


def test_ours_to_transformers_to_ours(saved):
    student, folder = saved
    again = open_student(folder)
    assert_equal(student, again)
    assert transformers_config(again) == transformers_config(student)


def test_ours_to_stock_open_clip_to_ours(saved, tmp_path):
    """Through open_clip's own model and its own state dict, saved by hand."""
    student, _ = saved
    save_student(student, tmp_path / "ours")
    stock, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'ours'}")
    images = student.normalise(pictures(4, student.image_size))
    with torch.no_grad():
        wanted = stock.eval().encode_image(images, normalize=True)
        torch.testing.assert_close(student.encode_image(images), wanted, atol=1e-6, rtol=0)
    save_file(stock.state_dict(), tmp_path / "again.safetensors")
    back = Path(shutil.copytree(tmp_path / "ours", tmp_path / "back"))
    (tmp_path / "again.safetensors").replace(back / "open_clip_model.safetensors")
    assert_equal(student, open_student(back))
    torch.testing.assert_close(preprocess(photos()[0]), seen(student, photos()[:1])[0], atol=1e-6, rtol=0)


def test_transformers_gives_the_same_embeddings_of_texts(saved):
    student, folder = saved
    model, processor = transformers.CLIPModel.from_pretrained(folder).eval(), transformers.CLIPProcessor.from_pretrained(folder)
    texts = [text for text in CAPTIONS + ODD + CUT if text not in (ENTITIES, SPECIAL, CONTROL)]
    ids = processor(text=texts, padding=True, truncation=True, return_tensors="pt")
    assert ids.input_ids.shape[1] == student.context_length
    with torch.no_grad():
        ours = student.encode_text(student.tokenise(texts))
    torch.testing.assert_close(ours, text_features(model, **ids), atol=1e-5, rtol=0)
    assert model.logit_scale.item() == student.logit_scale.item()


def test_texts_that_its_processor_cannot_express(saved):
    """Not the same ids: HTML entities, control characters, and open_clip's own names of its special tokens."""
    student, folder = saved
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    for text in (ENTITIES, SPECIAL, CONTROL):
        ids = processor(text=[text], padding="max_length", truncation=True, return_tensors="pt").input_ids
        ids[0, ids[0].argmax() + 1 :] = 0
        assert not torch.equal(ids, student.tokenise([text]))


def test_transformers_gives_the_same_embeddings_of_pictures(saved):
    """By its Pillow backend, exactly."""
    student, folder = saved
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    ours = seen(student, photos())
    theirs = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")(photos(), return_tensors="pt").pixel_values
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(student.encode_image(ours), image_features(model, theirs), atol=1e-5, rtol=0)


def test_its_default_backend_rounds_otherwise_where_it_resizes(saved):
    """torchvision's: a level of 255 in a smooth picture, up to 12 in noise, nothing in one that has the size."""
    student, folder = saved
    ours = seen(student, photos())
    default = transformers.CLIPProcessor.from_pretrained(folder)(images=photos(), return_tensors="pt").pixel_values
    levels = ((default - ours) * 255 * torch.tensor(student.preprocess_cfg["std"]).view(1, 3, 1, 1)).abs().amax((1, 2, 3))
    assert levels.max() < 12.5
    assert levels[SIZES.index((31, 47))] < 1.5
    assert levels[SIZES.index((32, 32))] < 1e-3


def test_the_centre_crop_may_be_a_pixel_beside_ours(tmp_path):
    """What its processor cannot express: half a pixel is rounded to an even place in open_clip, down in transformers."""
    student = student_of(shaped("shortest"))
    save_transformers(student, tmp_path)
    picture = photos()[0].resize((33, 32 + 55))  # 32 x 84 once resized: 26 pixels above in both
    off = photos()[0].resize((32, 32 + 55))  # 27.5 pixels above: 28 here, 27 there
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")([picture, off], return_tensors="pt").pixel_values
    ours = seen(student, [picture, off])
    torch.testing.assert_close(theirs[0], ours[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs[1, :, 1:], ours[1, :, :-1], atol=1e-5, rtol=0)


def test_a_transformers_clip_converted_and_back(tmp_path):
    model = make(tmp_path / "theirs")
    student = open_student(tmp_path / "theirs")
    save_transformers(student, tmp_path / "back")
    again = transformers.CLIPModel.from_pretrained(tmp_path / "back").eval()
    ours, theirs = again.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_tokenizer_is_what_transformers_saves(tmp_path):
    hf_tokenizer().save_pretrained(tmp_path)
    theirs = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    theirs |= {"padding": None, "truncation": None}  # of its last call
    assert tokenizer_json() == theirs


@pytest.mark.parametrize("gone", ["tokenizer.json", "vocab.json"])
def test_either_kind_of_tokenizer_files_is_enough(saved, tmp_path, gone):
    student, folder = saved
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / gone).unlink()
    found = transformers.CLIPTokenizer.from_pretrained(tmp_path / "copy")
    ids = found(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    for row, wanted in zip(ids, student.tokenise(CAPTIONS), strict=True):
        end = int(wanted.argmax())
        assert torch.equal(row[: end + 1], wanted[: end + 1])
    open_student(tmp_path / "copy")


def test_a_restricted_vocabulary_is_filled_up(tmp_path):
    student = new_student(tiny(), seed=0, vocabulary=CAPTIONS).eval()
    save_transformers(student, tmp_path)
    again = open_student(tmp_path)
    texts = [*CAPTIONS, "an unseen zebra"]
    with torch.no_grad():
        wanted = student.encode_text(student.tokenise(texts))
        torch.testing.assert_close(again.encode_text(again.tokenise(texts)), wanted, atol=1e-6, rtol=0)


def changed(where: str, **values) -> dict:
    config = tiny()
    part = config if where == "preprocess_cfg" else config["model_cfg"]
    part = part if where == "model_cfg" else part[where]
    part.update(values)
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (small_conv(), "its image tower is 'mobilenetv3_small_050' of timm"),
        (zoo_config("TinyCLIP-ResNet-19M-Text-19M"), "its image tower is a ResNet"),
        (changed("model_cfg", init_logit_bias=-10), "it has a logit_bias"),
        (changed("vision_cfg", no_ln_pre=True), "vision_cfg.no_ln_pre is True"),
        (changed("vision_cfg", pool_type="avg"), "vision_cfg.pool_type is 'avg'"),
        (changed("vision_cfg", attentional_pool=True, attn_pooler_heads=4), "vision_cfg.attentional_pool is True"),
        (changed("vision_cfg", act_kwargs={"approximate": "tanh"}), "vision_cfg.act_kwargs is"),
        (changed("vision_cfg", ls_init_value=0.1), "vision_cfg.ls_init_value is 0.1"),
        (changed("text_cfg", no_causal_mask=True), "text_cfg.no_causal_mask is True"),
        (changed("text_cfg", proj_bias=True), "text_cfg.proj_bias is True"),
        (changed("text_cfg", pool_type="last"), "text_cfg.pool_type is 'last'"),
        (changed("text_cfg", embed_cls=True), "text_cfg.embed_cls is True"),
        (changed("text_cfg", qk_norm=True), "text_cfg.qk_norm is True"),
        (changed("text_cfg", vocab_size=50000), "text_cfg.vocab_size is 50000"),
        (changed("text_cfg", tokenizer_kwargs={"clean": "canonicalize"}), "text_cfg.tokenizer_kwargs is"),
        (changed("preprocess_cfg", resize_mode="longest"), "resize_mode is 'longest'"),
        (changed("preprocess_cfg", interpolation="random"), "interpolation is 'random'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_named(config, message, tmp_path):
    student = new_student(config, seed=0)
    with pytest.raises(UserError, match=f"transformers' CLIP cannot be this model: .*{message}"):
        save_transformers(student, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_irregular_layers_do_not_fit(tmp_path):
    pruned = {"text": {"width": 64, "heads": [2, 1], "mlp": [128, 64]}}
    with pytest.raises(UserError, match="the layers of its text tower differ in their numbers of heads"):
        save_transformers(new_student({**tiny(), "pruned": pruned}, seed=0), tmp_path)


def test_which_students_of_the_zoo_fit():
    fit = set()
    for name in zoo_names():
        config = zoo_config(name)
        if "hf_model_name" not in config["model_cfg"]["text_cfg"] and name not in MOBILECLIP:  # towers of timm, slow to build
            with torch.device("meta"):
                fit |= {name} if why_not(Student(config)) is None else set()
    assert fit == {
        "TinyCLIP-ViT-39M-16-Text-19M", "TinyCLIP-ViT-40M-32-Text-19M", "TinyCLIP-ViT-61M-32-Text-29M", "TinyCLIP-ViT-8M-16-Text-3M",
        "tiny_vit_32", "vit_m_32", "vit_s_16", "vit_xs_16",
    }  # fmt: skip
