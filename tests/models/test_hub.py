"""Opening and saving: round trips, and every mistake with one message."""

from __future__ import annotations

import json
import pickle

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from clipling.errors import UserError
from clipling.models.hub import CONFIG, WEIGHTS, new_student, open_student, save_student
from tests.models.making import CAPTIONS, pictures, small_conv, tiny


@pytest.fixture
def saved(tmp_path):
    student = new_student(tiny(), seed=1).eval()
    save_student(student, tmp_path / "run" / "model", card="# A model\n")
    return student, tmp_path / "run" / "model"


def same(a, b):
    images, ids = pictures(3, a.image_size), a.tokenise(CAPTIONS)
    with torch.no_grad():
        return torch.equal(a.encode_image(a.normalise(images)), b.encode_image(b.normalise(images))) and torch.equal(
            a.encode_text(ids), b.encode_text(ids)
        )


def test_round_trip_by_every_spelling(saved):
    student, folder = saved
    for spec in (folder, str(folder), f"local-dir:{folder}", folder.parent):
        opened = open_student(spec)
        assert not opened.training
        assert same(student, opened)
        assert opened.config == student.config
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", CONFIG, WEIGHTS]
    assert (folder / "README.md").read_text() == "# A model\n"


def test_opening_leaves_the_global_generator_alone(saved):
    before = torch.get_rng_state()
    open_student(saved[1])
    assert torch.equal(before, torch.get_rng_state())


def test_saving_over_a_model_of_another_shape(saved):
    _, folder = saved
    other = new_student(tiny(layers=1)).eval()
    save_student(other, folder)
    assert same(other, open_student(folder))


def test_saving_over_a_broken_config(saved):
    student, folder = saved
    (folder / CONFIG).write_text("{")
    save_student(student, folder)
    assert same(student, open_student(folder))


def test_a_folder_that_cannot_be_written(saved, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        save_student(saved[0], tmp_path / "file" / "model")


def test_a_kill_between_the_files_leaves_no_mixture(saved, monkeypatch):
    _, folder = saved
    other = new_student(tiny(layers=1)).eval()
    monkeypatch.setattr("clipling.models.hub.atomic_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_student(other, folder)
    with pytest.raises(UserError, match=r"holds no open_clip_config\.json"):
        open_student(folder)


def test_a_model_that_stock_open_clip_made(tmp_path):
    """One tower's names at the root, `custom_text` absent: CLIP's own layout."""
    model = {key: value for key, value in tiny()["model_cfg"].items() if key != "custom_text"}
    torch.manual_seed(0)
    stock = open_clip.CLIP(**model).eval()
    save_file(stock.state_dict(), tmp_path / "open_clip_pytorch_model.safetensors")
    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3}}))
    opened = open_student(tmp_path)
    ids = opened.tokenise(CAPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(opened.encode_text(ids), stock.encode_text(ids, normalize=True), atol=1e-6, rtol=0)
        x = opened.normalise(pictures(2, 32))
        torch.testing.assert_close(opened.encode_image(x), stock.encode_image(x, normalize=True), atol=1e-6, rtol=0)
    assert opened.preprocess_cfg["mean"] == [0.5] * 3
    assert opened.config["model_cfg"]["custom_text"] is True


def test_pretrained_names_of_open_clip(tmp_path, monkeypatch):
    """`NAME@TAG`, with the download replaced by a file of the right shapes; a QuickGELU tag gets QuickGELU."""
    model = {"embed_dim": 64, "vision_cfg": tiny()["model_cfg"]["vision_cfg"], "text_cfg": tiny()["model_cfg"]["text_cfg"]}
    config = tmp_path / "ViT-B-32.json"
    config.write_text(json.dumps(model))
    torch.manual_seed(0)
    stock = open_clip.CLIP(**model, quick_gelu=True).eval()
    save_file(stock.state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", model)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *a, **k: str(tmp_path / "weights.safetensors"))
    opened = open_student("ViT-B-32@openai")
    ids = opened.tokenise(CAPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(opened.encode_text(ids), stock.encode_text(ids, normalize=True), atol=1e-6, rtol=0)
    assert opened.config["model_cfg"]["quick_gelu"] is True
    save_student(opened, tmp_path / "copy")
    assert same(opened, open_student(tmp_path / "copy"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tiny_vit_32", "untrained student of the zoo: use new_student"),
        ("tiny_vit_23", "neither a folder here nor a model. Did you mean 'tiny_vit_32'"),
        ("ViT-B-32", "Add the weights, for example ViT-B-32@"),
        ("ViT-B-23@openai", "Did you mean 'ViT-B-32'"),
        ("ViT-B-32@opnai", "Did you mean 'openai'"),
        ("no/such/folder", "no/such/folder does not exist"),
    ],
)
def test_unknown_models(spec, message):
    with pytest.raises(UserError, match=message):
        open_student(spec)


def test_download_failures_are_explained(monkeypatch):
    def fail(*_, **__):
        raise OSError("no connection")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", fail)
    with pytest.raises(UserError, match=r"cannot provide ViT-B-32@openai: .*no connection"):
        open_student("ViT-B-32@openai")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a foreign pickle was loaded",))


def test_pickles_are_refused(saved):
    _, folder = saved
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match="holds no weights"):
        open_student(folder)
    (folder / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="is a pickle"):
        open_student(folder)
    (folder / WEIGHTS).write_bytes(pickle.dumps(Bomb()))  # a pickle under a safetensors name
    with pytest.raises(UserError, match="not a whole safetensors file"):
        open_student(folder)


def test_cut_weights(saved):
    _, folder = saved
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        open_student(folder)


def test_weights_that_do_not_fit(saved):
    _, folder = saved
    state = load_file(folder / WEIGHTS)
    state["visual.proj"] = torch.zeros(128, 32)
    state["extra"] = state.pop("text.ln_final.bias")
    save_file(state, folder / WEIGHTS)
    with pytest.raises(UserError) as raised:
        open_student(folder)
    message = str(raised.value)
    assert "3 of" in message
    for part in ("visual.proj is [128, 32] instead of [128, 64]", "text.ln_final.bias is missing", "extra is not part of this model"):
        assert part in message


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_cfg": {"embed_dim": 4}}'])
def test_configs_that_are_none(saved, content):
    _, folder = saved
    (folder / CONFIG).write_text(content)
    with pytest.raises(UserError):
        open_student(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model_cfg"].update(vison_cfg={}), "unknown key 'vison_cfg' in model_cfg .*Did you mean 'vision_cfg'"),
        (lambda c: c["model_cfg"]["text_cfg"].update(widht=4), "unknown key 'widht' in model_cfg.text_cfg .*'width'"),
        (lambda c: c["model_cfg"].update(multimodal_cfg={}), "unknown key 'multimodal_cfg'"),
        (lambda c: c["preprocess_cfg"].update(resize="squash"), "unknown key 'resize' in preprocess_cfg"),
        (lambda c: c["model_cfg"]["vision_cfg"].update(image_size=[32, 64]), "must be one number"),
        (lambda c: c["model_cfg"]["vision_cfg"].update(timm_model_name="mobilenet_v9", timm_proj=None), "cannot build.*mobilenet_v9"),
        (lambda c: c["model_cfg"]["text_cfg"].update(heads=7), "cannot build"),
        (lambda c: c["model_cfg"]["text_cfg"].update(hf_model_name="no/such-text-model"), "needs its config.json"),
        (lambda c: c["model_cfg"].pop("text_cfg"), "lacks model_cfg.text_cfg"),
    ],
)
def test_mistakes_in_a_config(change, message):
    config = tiny()
    change(config)
    with pytest.raises(UserError, match=message):
        new_student(config)


def test_a_config_file(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(tiny(layers=1)))
    by_file, by_content = (new_student(given, seed=2).state_dict() for given in (tmp_path / "mine.json", tiny(layers=1)))
    assert all(torch.equal(by_file[name], by_content[name]) for name in by_content)
    assert torch.equal(new_student(str(tmp_path / "mine.json"), seed=2).state_dict()["model.visual.proj"], by_content["model.visual.proj"])
    with pytest.raises(UserError, match="does not exist"):
        new_student(tmp_path / "other.json")


def test_the_given_config_is_not_changed():
    config = small_conv()
    before = json.dumps(config)
    new_student(config, init=None).preprocess_cfg["mean"][0] = 7.0
    assert json.dumps(config) == before
