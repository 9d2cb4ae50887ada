"""A model's hash is of all that decides what it says; a start belongs to its model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from clipling.errors import UserError
from clipling.files import predict
from clipling.models.hub import new_student, open_student, save_student
from clipling.subjects import model_hash, start_of, subject_of
from tests.toy import toy_folder


@pytest.fixture
def tiny(tmp_path, fresh_cache):
    save_student(new_student("tiny_vit_32", seed=0), tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize("change", ["heads", "quick_gelu", "mean", "weights"])
def test_every_part_of_a_model_is_in_its_hash(tiny, change):
    before = subject_of(str(tiny))
    path = tiny / "open_clip_config.json"
    config = json.loads(path.read_text())
    if change == "heads":
        heads = config["model_cfg"]["text_cfg"]["heads"]
        config["model_cfg"]["text_cfg"]["heads"] = 2 * heads
    elif change == "quick_gelu":
        config["model_cfg"]["quick_gelu"] = not config["model_cfg"].get("quick_gelu", False)
    elif change == "mean":
        config["preprocess_cfg"]["mean"] = [0.1, 0.2, 0.3]
    else:
        save_student(new_student("tiny_vit_32", seed=1), tiny)
    if change != "weights":
        path.write_text(json.dumps(config))
    after = subject_of(str(tiny))
    assert after.model_hash != before.model_hash
    assert after.pretrained != before.pretrained, "the label tells them apart"


def test_the_hash_does_not_depend_on_the_place(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "elsewhere" / "tiny")
    assert subject_of(str(tmp_path / "elsewhere" / "tiny")).model_hash == subject_of(str(tiny)).model_hash


def test_tokenizer_files_are_in_the_hash(tiny, tmp_path):
    student = open_student(tiny)
    student.text_folder = tmp_path / "tokenizer"
    student.text_folder.mkdir()
    (student.text_folder / "tokenizer.json").write_text("{}")
    before = model_hash(student)
    (student.text_folder / "tokenizer.json").write_text('{"other": 1}')
    assert model_hash(student) != before


def test_starts_of_other_weights_are_others(tiny):
    assert start_of(str(tiny), open_student(tiny)).model_hash != subject_of(str(tiny)).model_hash


@pytest.mark.parametrize("part", ["scale NaN", "scale inf", "tokens"])
def test_a_damaged_model_is_named_and_predicts_nothing(tiny, tmp_path, part):
    toy_folder(tmp_path / "photos", count=3)
    student = open_student(tiny)
    with torch.no_grad():
        if part == "tokens":
            student.model.text.token_embedding.weight.fill_(float("nan"))
        else:
            student.logit_scale.fill_(float(part.split()[1]))
    save_student(student, tiny)
    with pytest.raises(UserError, match=r"tiny gives .* not finite"):
        predict(str(tiny), str(tmp_path / "photos"), "cat,dog", out=tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
