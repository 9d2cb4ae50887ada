"""One model on one dataset: pictures that it was trained on are counted, options that would be ignored are refused."""

from __future__ import annotations

import shutil

import pytest

from clipling.assess import assess, seen_in_training
from clipling.data.source import open_pairs
from clipling.errors import UserError
from clipling.models.hub import new_student
from clipling.recipe import load_recipe, to_yaml, with_settings
from clipling.run import open_data
from tests.evals.folders import make_run
from tests.toy import toy_folder


@pytest.fixture
def trained(tmp_path):
    """A run on a toy folder that has been opened before, as training does."""
    source = toy_folder(tmp_path / "pairs", count=24)
    run = make_run(tmp_path / "run", student=new_student("tiny_vit_32", seed=0), source=str(source))
    recipe = with_settings(load_recipe("clip"), {"data.source": str(source)})
    (run / "recipe.yaml").write_text(to_yaml(recipe))
    return run, source, open_data(recipe.data)


def test_pictures_of_the_training_are_counted(trained, tmp_path):
    run, source, opened = trained
    (warning,) = assess(str(run), str(source))["warnings"]
    count = sum(h in set(opened.train.hashes) for h in opened.source.hashes)
    assert 0 < count < 24
    assert warning.startswith(f"{count} of the 24 pictures here were trained on")
    assert seen_in_training(str(run), opened.val) == []
    other = toy_folder(tmp_path / "other", count=3)
    first = opened.train.locations[0].path
    shutil.copy(first, other / f"copy{first[first.rindex('.') :]}")
    (other / "copy.txt").write_text("a copy under another name")
    fresh = open_pairs(str(other))
    assert seen_in_training(str(run), fresh)[0].startswith(f"{sum(h in set(opened.train.hashes) for h in fresh.hashes)} of the 4 ")


def test_a_source_that_cannot_be_had_warns_of_nothing(trained, monkeypatch):
    run, source, opened = trained
    assert seen_in_training(str(run), opened.source)
    for path in source.iterdir():
        path.touch()  # its index no longer holds: opening it would look at every picture
    monkeypatch.setattr("clipling.run.open_data", lambda _: pytest.fail("opened without an index"))
    assert seen_in_training(str(run), opened.source) == []
    shutil.rmtree(source)
    assert seen_in_training(str(run), opened.source) == []
    (run / "recipe.yaml").write_text("nonsense: [")
    assert seen_in_training(str(run), opened.source) == []
    (run / "recipe.yaml").unlink()
    assert seen_in_training(str(run), opened.source) == []


def test_columns_for_zero_shot_are_refused(tmp_path):
    with pytest.raises(UserError, match="--caption-column and --group would be ignored"):
        assess("m", "d", "zeroshot", columns={"image_column": None, "caption_column": "y", "group": "x"})
