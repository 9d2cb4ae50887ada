"""What a run says before it trains, and which of its metrics a line of progress shows."""

from __future__ import annotations

import pytest

from clipling.announce import few_steps, half_made, notes_on, shown_while_training, student_named
from clipling.data.photos import open_photos, with_texts
from clipling.data.shard_files import ShardFile, write_shard_file
from clipling.data.source import open_pairs
from clipling.recipe import load_recipe, with_settings
from tests.toy import toy_folder

RECALLS = [f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]


@pytest.mark.parametrize(("pairs", "k"), [(100, 10), (30, 5), (9, 1), (2, 1)])
def test_the_recall_that_is_not_at_chance_is_shown(pairs, k):
    tells = shown_while_training(pairs, {"few": {"pairs": 9}, "many": {"pairs": 1000}, "cifar10": {"pictures": 50, "classes": 10}})
    assert [name for name in RECALLS if tells(name)] == [f"i2t_recall@{k}", f"t2i_recall@{k}"]
    assert [n for n in RECALLS if tells(f"watch/few/{n}")] == ["i2t_recall@1", "t2i_recall@1"]
    assert [n for n in RECALLS if tells(f"watch/many/{n}")] == ["i2t_recall@10", "t2i_recall@10"]
    assert tells("watch/cifar10/acc1")
    assert not tells("watch/cifar10/mean_per_class_recall")
    assert all(map(tells, ("teacher_cosine", "image_match@1", "neighbour_match@1", "text_choice@1")))


def test_what_weakens_the_numbers_is_said_at_the_start(tmp_path):
    pairs = open_pairs(str(toy_folder(tmp_path / "pairs", count=60)))
    assert notes_on(pairs, pairs) == []
    (said,) = notes_on(pairs, pairs.subset(range(9)))
    assert said.endswith("judge by recall@1.")
    photos = open_photos(str(tmp_path / "pairs"))
    assert notes_on(photos, photos) == []
    some, others = with_texts(photos, ["a", "b"]), with_texts(photos, ["c"])
    assert notes_on(some, others) == []
    (said,) = notes_on(some, some)
    assert "measured on the training texts" in said


@pytest.mark.parametrize(
    ("batch", "epochs", "per_epoch", "said"),
    [
        (256, 3, 1, "1 step an epoch, 3 in all, are few to learn from: use --batch 16 or lower, or more epochs"),
        (256, 3, 3, "use --batch 64 or lower, or more epochs"),
        (256, 40, 5, "5 steps an epoch, 200 in all, are few to learn from: use --batch 64 or lower"),
        (64, 5, 15, "15 steps an epoch, 75 in all, are few to learn from: use more epochs"),
        (256, 20, 22, None),
        (8, 40, 4, None),
    ],
)
def test_few_steps_are_said_before_they_are_taken(batch, epochs, per_epoch, said):
    recipe = with_settings(load_recipe("clip"), {"optimiser.batch": batch, "stages.0.epochs": epochs})
    found = few_steps(recipe, epochs * per_epoch, per_epoch)
    assert found == [] if said is None else found[0].endswith(said)
    assert few_steps(with_settings(recipe, {"max_steps": 1}), 1, per_epoch) == []


def test_students_are_not_called_by_words_of_the_recipe():
    teacher = {"teachers.teacher.model": "runs/big"}
    assert student_named(load_recipe("clip")) == "mobilenetv3_small_64"
    assert student_named(with_settings(load_recipe("tinyclip_manual"), teacher)) == "cut out of big"
    assert student_named(with_settings(load_recipe("tinyclip_auto"), teacher)) == "as big"
    assert student_named(with_settings(load_recipe("finetune"), {"student.init": {"model": "runs/start/model"}})) == "as start/model"


def test_a_half_made_reinforced_source_is_said(tmp_path):
    assert half_made(str(tmp_path), 3) == []
    (tmp_path / "reinforced.json").write_text('{"pairs": 300}')
    assert half_made(str(tmp_path), 300) == []
    assert "has 100 of the 300 pairs" in half_made(str(tmp_path), 100)[0]


def test_pictures_that_were_left_out_are_not_missing(tmp_path):
    """The command would not make more of them."""
    (tmp_path / "reinforced.json").write_text('{"pairs": 300}')
    (tmp_path / "00000.tar").write_bytes(b"")
    write_shard_file(tmp_path / "00000.tar", ShardFile("", 0, 298, left_out=[["a", "broken"], ["b", "broken"]]))
    assert half_made(str(tmp_path), 298) == []
    assert "has 297 of the 300 pairs" in half_made(str(tmp_path), 297)[0]
