"""`clipling convert`: both ways with equal weights, the card and licences travel along, mistakes are named before anything is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
import yaml

import clipling
from clipling.errors import UserError
from clipling.models.hub import new_student, open_student, save_student
from tests.models.making import CAPTIONS, pictures, small_conv, tiny
from tests.models.test_published import tinyclip_state
from tests.verbs.test_mistakes import call, refused

CARD = """\
---
library_name: open_clip
license: cc-by-nc-4.0
---
# mine: a small CLIP model

It was trained on photos.

## Open it

    some old lines

## Limits

It knows little.
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "mine"
    save_student(new_student(tiny(), seed=3).eval(), folder, CARD)
    (folder / "LICENSE").write_text("do no harm")
    return folder


def same(one, two) -> bool:
    ours, theirs = open_student(one).stock_state(), open_student(two).stock_state()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def front_matter(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_there_and_back(model, tmp_path, capsys):
    code, out, _ = call(capsys, "convert", model, "--to", "transformers", "--out", tmp_path / "there")
    assert code == 0
    assert "equal to the source's bit by bit" in out
    assert same(model, tmp_path / "there")
    code, out, _ = call(capsys, "convert", tmp_path / "there", "--to", "open_clip", "--out", tmp_path / "back", "--json")
    assert code == 0
    assert json.loads(out)["to"] == "open_clip"
    assert same(model, tmp_path / "back")
    stock, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'back'}")
    student = open_student(model)
    images = student.normalise(pictures(3, 32))
    with torch.no_grad():
        torch.testing.assert_close(stock.eval().encode_image(images, normalize=True), student.encode_image(images), atol=1e-6, rtol=0)


def test_transformers_opens_what_is_written(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    clipling.convert(str(model), "transformers", tmp_path / "there")
    theirs = transformers.CLIPModel.from_pretrained(tmp_path / "there").eval()
    ids = transformers.CLIPProcessor.from_pretrained(tmp_path / "there")(text=CAPTIONS, padding=True, truncation=True, return_tensors="pt")
    student = open_student(model)
    with torch.no_grad():
        rows = torch.nn.functional.normalize(theirs.get_text_features(**ids).pooler_output, dim=-1)
        torch.testing.assert_close(student.encode_text(student.tokenise(CAPTIONS)), rows, atol=1e-5, rtol=0)


def test_the_card_and_the_licence_travel_along(model, tmp_path):
    clipling.convert(str(model), "transformers", tmp_path / "there")
    card = (tmp_path / "there" / "README.md").read_text()
    assert front_matter(tmp_path / "there") == {"library_name": "transformers", "license": "cc-by-nc-4.0"}
    assert "It was trained on photos." in card
    assert "It knows little." in card
    assert "some old lines" not in card
    assert card.count("## Open it") == 1
    assert "CLIPModel.from_pretrained" in card
    assert "Converted by clipling from `mine`: to the layout of transformers, the same weights." in card
    assert (tmp_path / "there" / "LICENSE").read_text() == "do no harm"
    clipling.convert(str(tmp_path / "there"), "open_clip", tmp_path / "back")
    card = (tmp_path / "back" / "README.md").read_text()
    assert front_matter(tmp_path / "back")["library_name"] == "open_clip"
    assert card.count("## Converted") == 1
    assert "CLIPModel" not in card
    assert "open_clip.create_model_and_transforms" in card
    assert str(tmp_path) not in card


def test_a_model_without_a_card_gets_one(tmp_path):
    save_student(new_student(tiny(), seed=3).eval(), tmp_path / "bare")
    clipling.convert(str(tmp_path / "bare"), "transformers", tmp_path / "there")
    assert front_matter(tmp_path / "there")["taught_by"] == {"bare": "not stated: find out before you share the model"}


def test_the_model_of_a_run(model, tmp_path):
    shutil.copytree(model, tmp_path / "run" / "model")
    clipling.convert(str(tmp_path / "run"), "transformers", tmp_path / "there")
    assert same(tmp_path / "run", tmp_path / "there")
    assert "It was trained on photos." in (tmp_path / "there" / "README.md").read_text()


def test_a_tower_of_timm_keeps_its_layout(tmp_path, capsys):
    save_student(new_student(small_conv(), seed=0).eval(), tmp_path / "conv")
    message = refused(capsys, "convert", tmp_path / "conv", "--to", "transformers", "--out", tmp_path / "out")
    assert "its image tower is 'mobilenetv3_small_050' of timm" in message
    assert "--to open_clip" in message
    assert not (tmp_path / "out").exists()
    clipling.convert(str(tmp_path / "conv"), "open_clip", tmp_path / "copy")
    assert same(tmp_path / "conv", tmp_path / "copy")


def test_irregular_layers_stay_in_our_own_layout(tmp_path, capsys):
    pruned = {"text": {"width": 64, "heads": [2, 1], "mlp": [128, 64]}}
    save_student(new_student({**tiny(), "pruned": pruned}, seed=0).eval(), tmp_path / "pruned")
    for to, expected in (("open_clip", "layers that differ in size"), ("transformers", "differ in their numbers of heads")):
        assert expected in refused(capsys, "convert", tmp_path / "pruned", "--to", to, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_published_checkpoint(tmp_path, capsys):
    student = new_student(tiny(), seed=3).eval()
    masks = {"_image_encoder.module.l0_module.lambda_1": torch.zeros(1)}
    torch.save({"state_dict": {**tinyclip_state(student, True), **masks}}, tmp_path / "TinyCLIP.pt")
    code, out, _ = call(
        capsys, "convert", tmp_path / "TinyCLIP.pt", "--config", "tiny_vit_32", "--to", "open_clip", "--out", tmp_path / "out"
    )
    assert code == 0
    assert "layout: tinyclip" in out
    assert "ignored masks: 1" in out
    found = open_student(tmp_path / "out")
    assert all(torch.equal(value, found.stock_state()[name]) for name, value in student.stock_state().items())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "from the layout tinyclip to the layout of open_clip, the same weights, without its 1 tensors of pruning masks" in card


def test_mistakes(model, tmp_path, capsys):
    out = tmp_path / "out"
    assert "does not exist" in refused(capsys, "convert", tmp_path / "nowhere", "--to", "open_clip", "--out", out)
    assert "invalid choice" in refused(capsys, "convert", model, "--to", "onnx", "--out", out)
    assert "has a config of its own" in refused(capsys, "convert", model, "--to", "open_clip", "--out", out, "--config", "tiny_vit_32")
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    assert "Give --config" in refused(capsys, "convert", tmp_path / "a.pt", "--to", "open_clip", "--out", out)
    message = refused(capsys, "convert", tmp_path / "a.pt", "--to", "open_clip", "--out", out, "--config", "tiny_vit_33")
    assert "Did you mean 'tiny_vit_32'" in message
    missing = tmp_path / "b.pt"
    message = refused(capsys, "convert", missing, "--to", "open_clip", "--out", out, "--config", "tiny_vit_32")
    assert f"{missing} does not exist" in message
    assert not out.exists()


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_the_model_is_never_written_over(model, tmp_path, capsys, more):
    run = tmp_path / "run"
    shutil.copytree(model, run / "model")
    before = {path.name: path.read_bytes() for path in (run / "model").iterdir()}
    for source, out in ((run / "model", run / "model"), (run, run / "model"), (run, run), (run / "model", run)):
        message = refused(capsys, "convert", source, "--to", "transformers", "--out", out, *more)
        assert "must not be written over" in message
    assert {path.name: path.read_bytes() for path in (run / "model").iterdir()} == before


def test_what_is_there_is_kept_unless_asked(model, tmp_path, capsys):
    out = tmp_path / "out"
    clipling.convert(str(model), "transformers", out)
    message = refused(capsys, "convert", model, "--to", "open_clip", "--out", out)
    assert "already exists and is not empty. Use --overwrite" in message
    clipling.convert(str(model), "open_clip", out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["LICENSE", "README.md", "open_clip_config.json", "open_clip_model.safetensors"]
    (out / "photo.jpg").write_bytes(b"x")
    message = refused(capsys, "convert", model, "--to", "transformers", "--out", out, "--overwrite")
    assert "holds files that no conversion made (photo.jpg)" in message
    assert same(model, out)
    (tmp_path / "file").write_text("x")
    assert "is a file; --out expects a folder" in refused(capsys, "convert", model, "--to", "open_clip", "--out", tmp_path / "file")


def test_a_model_that_does_not_fit_leaves_the_older_one(model, tmp_path, capsys):
    out = tmp_path / "out"
    clipling.convert(str(model), "transformers", out)
    save_student(new_student(small_conv(), seed=0).eval(), tmp_path / "conv")
    refused(capsys, "convert", tmp_path / "conv", "--to", "transformers", "--out", out, "--overwrite")
    assert same(model, out)


def test_a_conversion_that_fails_leaves_the_older_one(model, tmp_path, monkeypatch):
    """As on a full disk: what was there stays whole, and nothing is left beside it."""
    from clipling import conversion

    out = tmp_path / "out"
    clipling.convert(str(model), "open_clip", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion, "save_student", full)
    with pytest.raises(UserError, match="no space left on the disk"):
        clipling.convert(str(model), "open_clip", out, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []
