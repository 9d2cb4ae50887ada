"""Manual inheritance of BERT text towers, and configs of smaller ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import open_clip
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from clipling.errors import UserError
from clipling.models.dual import Student
from clipling.models.hub import open_student, save_student
from clipling.surgery.inherit import inherit
from clipling.surgery.inherit_bert import smaller_bert
from clipling.surgery.inherit_targets import target_of, target_sizes
from tests.surgery.small import VOCABULARY, config, images, source

TEXTS = ["w7 w8 w9", "w50", "w3 w4 w60 w61 w62 w2 w2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A BERT of 4 layers, 4 heads of 8, MLP 64, with a tokenizer of 64 words."""
    path = tmp_path_factory.mktemp("bert")
    made = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    made |= {"vocab_size": VOCABULARY, "max_position_embeddings": 20, "type_vocab_size": 2, "pad_token_id": 0, "hidden_act": "gelu"}
    (path / "config.json").write_text(json.dumps({**made, "architectures": ["BertModel"]}))
    vocabulary = {"[PAD]": 0, "[UNK]": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path)
    return path


def bert(folder: Path, **text) -> dict:
    made = config()
    made["model_cfg"]["text_cfg"] = {
        "context_length": 16, "hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_proj_type": "linear",
        "hf_pooler_type": "mean_pooler", **text,
    }  # fmt: skip
    return made


@pytest.fixture(scope="module")
def teacher(folder) -> Student:
    return source(bert(folder))


@torch.no_grad()
def text_embeddings(student: Student):
    student.eval()
    return student.encode_text(student.tokenise(TEXTS))


def test_the_same_shape_is_the_source(teacher, folder):
    student, _ = inherit(teacher, bert(folder))
    assert torch.equal(text_embeddings(student), text_embeddings(teacher))


@pytest.mark.parametrize("width", ["position", "magnitude"])
def test_fewer_layers_and_mlp_units_equal_silenced_ones(teacher, tmp_path, width):
    target = bert(smaller_bert(teacher, layers=2, hidden=32, intermediate=24, folder=tmp_path))
    student, report = inherit(teacher, target, depth="uniform", width=width)
    silenced = copy.deepcopy(teacher)
    encoder = silenced.model.text.transformer.encoder
    encoder.layer = torch.nn.ModuleList([encoder.layer[0], encoder.layer[3]])
    with torch.no_grad():
        for i, layer in enumerate(encoder.layer):
            kept = report.text.units[f"transformer.encoder.layer.{i}.mlp"]
            dropped = [u for u in range(64) if u not in kept]
            layer.output.dense.weight[:, dropped] = 0
    assert report.text.layers == [[0, 3]]
    assert len(kept) == 24
    assert (kept.tolist() == list(range(24))) == (width == "position")
    torch.testing.assert_close(text_embeddings(student), text_embeddings(silenced), rtol=1e-4, atol=1e-6)


def test_heads_and_channels(teacher, tmp_path):
    target = bert(smaller_bert(teacher, layers=1, hidden=16, intermediate=64, folder=tmp_path))
    student, report = inherit(teacher, target, width="magnitude")
    ours, theirs = (s.model.text.transformer for s in (student, teacher))
    hidden, heads = report.text.units["hidden"], report.text.units["transformer.encoder.layer.0.heads"]
    rows = torch.cat([torch.arange(8 * h, 8 * h + 8) for h in heads.tolist()])
    new, old = ours.encoder.layer[0], theirs.encoder.layer[0]
    for name in ("query", "key", "value"):
        assert torch.equal(getattr(new.attention.self, name).weight, getattr(old.attention.self, name).weight[rows][:, hidden])
        assert torch.equal(getattr(new.attention.self, name).bias, getattr(old.attention.self, name).bias[rows])
    assert torch.equal(new.attention.output.dense.weight, old.attention.output.dense.weight[hidden][:, rows])
    assert torch.equal(new.output.LayerNorm.weight, old.output.LayerNorm.weight[hidden])
    assert torch.equal(ours.embeddings.word_embeddings.weight, theirs.embeddings.word_embeddings.weight[:, hidden])
    assert torch.equal(student.model.text.proj.weight, teacher.model.text.proj.weight[:, hidden])
    assert new.attention.self.num_attention_heads == 2


def test_saved_students_need_the_folder_no_more(teacher, tmp_path):
    target = bert(smaller_bert(teacher, layers=2, hidden=16, intermediate=32, folder=tmp_path / "bert"))
    student, _ = inherit(teacher, target)
    save_student(student, tmp_path / "saved")
    for file in (tmp_path / "bert").iterdir():
        file.unlink()
    again = open_student(tmp_path / "saved")
    config = tmp_path / "saved" / "open_clip_config.json"
    assert str(tmp_path) not in config.read_text()  # no path of this machine is published
    named = json.loads(config.read_text())
    named["model_cfg"]["text_cfg"]["hf_model_name"] = str(tmp_path / "saved")  # stock open_clip wants to be told where it lies
    config.write_text(json.dumps(named))
    stock = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}").eval()
    tokens = again.tokenise(TEXTS)
    assert tokens.tolist() == teacher.tokenise(TEXTS).tolist()
    student.eval()
    with torch.no_grad():
        text, image = student.encode_text(tokens), student.encode_image(images())
        assert torch.equal(again.encode_text(tokens), text)
        torch.testing.assert_close(stock.encode_text(tokens, normalize=True), text, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(stock.encode_image(images(), normalize=True), image, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share", [0.75, 0.5, 0.25])
def test_targets_reach_their_wish(teacher, share, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPLING_CACHE", str(tmp_path))
    target = target_of(teacher, share)
    wish = share * teacher.sizes()["total_without_token_rows"]
    assert target_sizes(target)["total_without_token_rows"] == pytest.approx(wish, rel=0.1)
    student, _ = inherit(teacher, target)
    assert text_embeddings(student).shape == (3, 24)
    made = Path(target["model_cfg"]["text_cfg"]["hf_model_name"])
    assert made.is_relative_to(tmp_path)
    assert Path(target_of(teacher, share)["model_cfg"]["text_cfg"]["hf_model_name"]) == made


def test_without_a_projection_the_channels_are_the_shared_space(folder, tmp_path):
    plain = bert(folder, hf_proj_type=None)
    plain["model_cfg"]["embed_dim"] = 32
    teacher = source(plain)
    narrow = bert(smaller_bert(teacher, layers=2, hidden=16, intermediate=32, folder=tmp_path), hf_proj_type=None)
    narrow["model_cfg"]["embed_dim"] = 16
    student, report = inherit(teacher, narrow, cut_embed=True, width="magnitude")
    kept = report.image.units["embed"]
    assert torch.equal(report.text.units["embed"], kept)
    assert torch.equal(student.model.visual.proj[:, 0], teacher.model.visual.proj[:, kept[0]])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 5, "hidden": 32, "intermediate": 64}, "layers is 5, but must be 1 to 4"),
        ({"layers": 2, "hidden": 20, "intermediate": 64}, "multiple of the source's head width 8"),
        ({"layers": 2, "hidden": 32, "intermediate": 0}, "intermediate is 0"),
    ],
)
def test_smaller_berts_that_cannot_be(teacher, sizes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        smaller_bert(teacher, **sizes, folder=tmp_path)


def test_smaller_bert_needs_a_bert(tmp_path):
    with pytest.raises(UserError, match="BERT text tower"):
        smaller_bert(source(config()), layers=1, hidden=8, intermediate=8, folder=tmp_path)
