"""What a model card says of a student's making, and on what each number was measured."""

from __future__ import annotations

import copy

import pytest

from clipling.card import model_card
from clipling.card_rows import architecture, last_parts
from clipling.models.catalogue import zoo_config
from clipling.models.siglip_towers import tower_name
from clipling.recipe import load_recipe, with_settings

SUMMARY = {
    **{"name": "x", "seed": 0, "train_pairs": 190, "val_pairs": 10, "samples_seen": 640, "seconds": 1.5},
    "parameters": {"total": 400, "total_without_token_rows": 300},
    "val": {"i2t_recall@1": 0.5},
    "untrained": {"i2t_recall@1": 0.25},
}


def card(recipe: str, settings: dict, about: dict, **summary) -> str:
    made = with_settings(load_recipe(recipe), {"data.source": "/home/me/photos", **settings})
    return model_card({**SUMMARY, **summary, "about": about}, made, {}, config=zoo_config("tiny_vit_32"))


def test_a_compressed_student_names_its_teacher_and_where_its_weights_are_from():
    settings = {"teachers.teacher.model": "/home/me/runs/teacher", "student.inherit.to": "50%"}
    said = card("tinyclip_manual", settings, {"before": "start", "teachers": {"teacher": 600}})
    assert "| teacher | `teacher` (600 parameters without token rows; the student has 50 % of them) |" in said
    assert "| weights inherited from | `teacher`, asked to have 50% of its size |" in said
    assert "| student | ViT of 3 layers, 128 wide, at 32 px; transformer of 2 layers, 64 wide; embeddings of 64 |" in said
    assert "| i2t_recall@1 on 10 pairs held out | 50.0 % (at the start: 25.0 %) |" in said
    assert "/home" not in said
    later = card("tinyclip_manual", {**settings, "student.inherit.source": "/home/me/half/stage-1", "student.inherit.to": "300"}, {})
    assert "| weights inherited from | `half/stage-1`, asked to have 300 parameters without token rows |" in later
    masked = card("tinyclip_auto", {"teachers.teacher.model": "/home/me/runs/teacher"}, {})
    assert "| started from | `teacher`, then pruned by learned masks |" in masked


def test_a_distilled_student_names_its_texts_and_text_tower():
    settings = {"teachers.teacher.model": "ViT-B-32@laion2b", "data.texts": "/home/me/list.txt", "student.text": "60%"}
    texts = {"count": 20, "held_out": True, "trained_on": 1380}
    val = {"val": {"text_match@1": 0.5, "text_choice@1": 0.25, "image_match@1": 0.75}}
    said = card("distill", settings, {"before": "start", "unit": "photos", "texts": texts}, **val)
    assert "| teacher | `ViT-B-32@laion2b` |" in said
    assert "| text tower | the teacher's, cut to 60%, frozen |" in said
    assert "| texts | 1,380 that belong to no photo, of `list.txt` |" in said
    assert "| text_match@1 on 20 held-out texts | 50.0 %" in said
    assert "| text_choice@1 on 10 photos held out among 20 held-out texts |" in said
    assert "| image_match@1 on 10 photos held out |" in said
    assert "20 training texts" in card("distill", settings, {"unit": "photos", "texts": {**texts, "held_out": False}}, **val)
    kept = card("distill", {**settings, "student.text": "teacher"}, {})
    assert "| text tower | the teacher's, frozen |" in kept


@pytest.mark.parametrize(("share", "weights"), [(0.3, "30 % new, 70 % start"), (0.0, "those of the start, unchanged")])
def test_a_tuned_student_names_its_start_its_share_and_what_was_watched(share, weights):
    watch = {"cifar10": {"pictures": 10000, "classes": 10}, "flickr": {"pairs": 1000}}
    val = {"i2t_recall@1": 0.5, "watch/cifar10/acc1": 0.25, "watch/flickr/i2t_recall@1": 0.125}
    settings = {"student.init": {"model": "/home/me/runs/start"}}
    said = card("finetune", settings, {"before": "start", "watch": watch}, val=val, interpolation={"share": share})
    assert "| started from | `start` |" in said
    assert f"| weights | {weights} (WiSE-FT's share {share:g}) |" in said
    assert "| acc1 on `cifar10` (10,000 pictures of 10 classes, watched only) | 25.0 %" in said
    assert "| i2t_recall@1 on `flickr` (1,000 pairs, watched only) | 12.5 %" in said
    assert "| i2t_recall@1 on 10 pairs held out | 50.0 %" in said
    assert "chosen on the held-out pairs" in said


def test_a_student_from_scratch_borrows_nothing():
    said = card("clip", {"student.config": "tiny_vit_32", "evaluation.best": "last"}, {})
    assert "| student | `tiny_vit_32`: ViT of 3 layers" in said
    assert "(untrained: 25.0 %)" in said
    assert "teacher" not in said
    assert "started from" not in said
    assert "slightly optimistic" not in said


def test_how_each_tower_of_timm_is_opened():
    tower = tower_name(width=96, layers=2, heads=4, units=384, patch=16, size=224, activation="tanh")
    made = with_settings(load_recipe("clip"), {"data.source": "photos"})
    for name, expected in ((tower, f'register("{tower}")'), ("mobilenetv3_small_025", "import clipling.models.lite"), ("resnet18", "")):
        said = model_card({**SUMMARY, "about": {}}, made, {}, config={"model_cfg": {"vision_cfg": {"timm_model_name": name}}})
        assert expected in said
        assert ("clipling.models" in said) is bool(expected)
        assert "open_clip.create_model_and_transforms" in said


def test_layouts_in_words():
    config = copy.deepcopy(zoo_config("tiny_vit_32"))
    config["pruned"] = {"image": {}}
    assert architecture(config).startswith("ViT of 3 layers, 128 wide before pruning, at 32 px; transformer of 2 layers, 64 wide;")
    config["model_cfg"]["vision_cfg"] = {"image_size": 64, "layers": [1, 2, 1, 1]}
    assert architecture({"model_cfg": config["model_cfg"]}).startswith("ResNet of 1-2-1-1 blocks, at 64 px")
    assert architecture(zoo_config("mobilenetv3_small_64")).startswith("mobilenetv3_small")
    assert architecture({}) == ""


def test_paths_are_named_by_what_tells_them_apart():
    names = {
        "/a/b/run": "run",
        "/a/run/model": "run/model",
        "/a/half/stage-2/": "half/stage-2",
        "C:\\x\\run": "run",
        "ViT-B-32@x": "ViT-B-32@x",
    }
    assert {path: last_parts(path) for path in names} == names
