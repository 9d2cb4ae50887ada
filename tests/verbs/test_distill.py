"""`clipling distill` from the command line: with bare photos, with texts, with captions, and with every kind of text tower."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
import yaml

from clipling.cli import main
from clipling.data.source import open_pairs
from clipling.evals.evaluators import Retrieval
from clipling.models.catalogue import zoo_config
from clipling.models.hub import open_student
from tests.verbs.test_mistakes import call, table

NO_GATE = "teachers.teacher.gate=false"
AGREEMENT = ["teacher_cosine", "image_match@1", "neighbour_match@1"]


def distil(teacher, data, val, out, *more, settings=()) -> list[str]:
    common = ["distill", teacher, "--data", data, "--val", val, "--out", out, "--student", "tiny_vit_32", "--batch", "16", "--threads", "1"]
    return [str(a) for a in [*common, "--epochs", "3", *more, "--set", "data.workers=0", *settings]]


def summary_of(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def recipe_of(out: Path) -> dict:
    return yaml.safe_load((out / "recipe.yaml").read_text())


def same_text(out: Path, teacher: str) -> bool:
    own, theirs = (open_student(model).model.text.state_dict() for model in (out, teacher))
    return own.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in own.items())


def test_bare_photos_bring_the_image_tower_into_the_teachers_space(teacher, photos, val, tmp_path, capsys):
    code, out, err = call(capsys, *distil(teacher, photos, val, tmp_path / "run"))
    assert code == 0
    assert "captions none: photos alone are learned from" in err
    assert "teacher_cosine" in err  # progress tells how it goes
    for said in ("48 photos,", "on 20 photos held out, %", "teacher_cosine and text_cosine", "image_match@1"):
        assert said in out
    assert "pairs held out" not in out
    row = next(line for line in out.splitlines() if line.startswith("image_match@1"))
    assert row.split()[1] == "5.0"  # chance: 1 of 20
    summary, recipe = summary_of(tmp_path / "run"), recipe_of(tmp_path / "run")
    assert summary["val"].keys() == set(AGREEMENT)
    assert [name for line in out.splitlines() for name in AGREEMENT if line.startswith(f"{name}  ")] == AGREEMENT
    assert summary["val"]["teacher_cosine"] > summary["untrained"]["teacher_cosine"] + 0.2
    assert list(recipe["objective"]) == ["fd"]
    assert same_text(tmp_path / "run", teacher)
    student = open_student(tmp_path / "run")
    assert not torch.equal(student.model.visual.conv1.weight, open_student(teacher).model.visual.conv1.weight)
    assert torch.equal(student.logit_scale, open_student(teacher).logit_scale)
    # Captions were never read, and still the student's pictures find the teacher's captions.
    untold = dict(Retrieval(open_pairs(str(val)))(student))
    assert untold["i2t_recall@10"] + untold["t2i_recall@10"] > 1.2
    stock, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'run' / 'model'}")
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(stock.eval().encode_image(pictures, normalize=True), student.encode_image(pictures), atol=1e-5)


def test_texts_are_learned_from_beside_photos(teacher, photos, texts, val, tmp_path, capsys):
    code, out, _ = call(capsys, *distil(teacher, photos, val, tmp_path / "run", "--texts", texts, "--json"))
    assert code == 0
    assert json.loads(out)["val"].keys() == {*AGREEMENT, "text_cosine", "text_match@1", "text_choice@1"}
    assert list(recipe_of(tmp_path / "run")["objective"]) == ["fd", "affinity"]
    assert same_text(tmp_path / "run", teacher)
    step = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    assert step["kind"] == "train"
    assert any(name.startswith("affinity") for name in step["terms"])


def test_a_text_tower_is_pruned(teacher, photos, texts, val, tmp_path):
    more = ["--texts", texts, "--text", "prune", "--text-size", "60%"]
    assert main(distil(teacher, photos, val, tmp_path / "run", *more)) == 0
    own, whole = open_student(tmp_path / "run").sizes(), open_student(teacher).sizes()
    assert own["text"] / whole["text"] == pytest.approx(0.6, abs=0.06)
    assert own["image"] == whole["image"]  # the same tiny_vit_32
    assert summary_of(tmp_path / "run")["val"]["text_cosine"] > summary_of(tmp_path / "run")["untrained"]["text_cosine"]


def test_a_text_tower_is_distilled_into_the_teachers_space(teacher, photos, texts, val, tmp_path):
    config = copy.deepcopy(zoo_config("tiny_vit_32"))
    config["model_cfg"]["embed_dim"] = 32  # the teacher has 64
    config["model_cfg"]["text_cfg"] |= {"layers": 1, "context_length": 16}
    (tmp_path / "student.json").write_text(json.dumps(config))
    more = ["--texts", texts, "--text", "distill", "--student", tmp_path / "student.json"]
    assert main(distil(teacher, photos, val, tmp_path / "run", *more)) == 0
    student, summary = open_student(tmp_path / "run"), summary_of(tmp_path / "run")
    assert (student.embed_dim, student.context_length) == (64, 16)
    assert len(student.model.text.transformer.resblocks) == 1
    assert summary["val"]["text_cosine"] > summary["untrained"]["text_cosine"]


def test_captions_are_used_where_there_are_some(teacher, pairs, val, tmp_path, capsys):
    code, out, err = call(capsys, *distil(teacher, pairs, val, tmp_path / "run"))
    assert code == 0
    assert "captions used (--captions ignore leaves them out)" in err
    assert "on 20 pairs held out, %" in out
    assert summary_of(tmp_path / "run")["val"]["t2i_recall@10"] > 0
    recipe = recipe_of(tmp_path / "run")
    assert list(recipe["objective"]) == ["fd", "affinity"]
    assert recipe["evaluation"]["best"] == "mean_recall"
    assert not recipe["data"]["bare"]
    assert same_text(tmp_path / "run", teacher)


def test_captions_of_a_few_photos_are_not_used(teacher, pairs, val, tmp_path, capsys):
    some = tmp_path / "some"
    shutil.copytree(pairs, some)
    for i in range(30):
        (some / f"{i:04d}.txt").unlink()
    code, _, err = call(capsys, *distil(teacher, some, val, tmp_path / "run", "--smoke"))
    assert code == 0
    assert "captions not used: only 38 % of the photos have some" in err
    assert recipe_of(tmp_path / "run")["data"]["bare"]


def test_columns_are_named_as_everywhere(teacher, pairs, tmp_path, capsys):
    source = table(tmp_path / "a.csv", ["picture", "words", "place"], pairs)
    plain = ["distill", teacher, "--data", source, "--out", tmp_path / "run", "--smoke"]
    assert "--image-column" in call(capsys, *plain)[2]
    code, _, err = call(capsys, *plain, "--image-column", "picture", "--group", "place")
    assert code == 0, err
    assert recipe_of(tmp_path / "run")["data"]["bare"]
    assert recipe_of(tmp_path / "run")["data"]["group"] == "place"
    code, _, err = call(capsys, *plain, "--image-column", "picture", "--caption-column", "words", "--overwrite", "--set", NO_GATE)
    assert code == 0, err
    assert not recipe_of(tmp_path / "run")["data"]["bare"]


def test_a_teacher_of_another_shape_gives_its_space_and_text_tower(other_teacher, pairs, val, tmp_path):
    assert main(distil(other_teacher, pairs, val, tmp_path / "run")) == 0
    student = open_student(tmp_path / "run")
    assert (student.embed_dim, student.context_length, student.image_size) == (48, 24, 32)
    assert same_text(tmp_path / "run", other_teacher)


def test_an_ensemble_and_another_space_through_train(teacher, other_teacher, pairs, val, tmp_path):
    """Teachers of different embedding sizes and contexts, beside a student of a third size: features are projected."""
    out = tmp_path / "run"
    common = ["--data", pairs, "--val", val, "--out", out, "--batch", "16", "--epochs", "1", "--threads", "1"]
    settings = ["--set", "student.config=tiny_vit_32", "data.workers=0"]
    kd = ["train", "clip_kd", "--teacher", other_teacher, *common, *settings]
    assert main([str(a) for a in kd]) == 0
    (tmp_path / "both.yaml").write_text("base: clip\nobjective: {affinity: {use: 'clipling.objectives.affinity:Affinity'}}\n")
    both = ["train", tmp_path / "both.yaml", "--teacher", teacher, other_teacher, *common, "--overwrite", *settings]
    assert main([str(a) for a in both]) == 0
    assert list(recipe_of(out)["teachers"]) == ["teacher", "teacher2"]


def test_teachers_given_replace_those_of_a_recipe_by_their_order():
    from clipling.errors import UserError
    from clipling.recipe import TeacherSpec
    from clipling.verbs.train import taught_by

    known = {"big": TeacherSpec(model="a", scale=20.0), "teacher": TeacherSpec(model="b")}
    made = taught_by(("x", "y", "z"), known)
    assert {name: spec["model"] for name, spec in made.items()} == {"big": "x", "teacher": "y", "teacher2": "z"}
    assert made["big"]["scale"] == 20.0
    with pytest.raises(UserError, match="big, teacher"):
        taught_by(("x",), known)
