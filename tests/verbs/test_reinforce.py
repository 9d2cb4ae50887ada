"""`clipling reinforce` as a user calls it: from pairs and models to a source that trains, and mistakes in one line."""

from __future__ import annotations

import json
import sys

import pytest

from clipling.cli import main
from tests.distributed.launching import launch
from tests.reinforcing import in_json, pictures, repacked
from tests.teaching import teacher_config, teacher_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verb")
    pictures(folder / "photos", 24)
    teacher_folder(folder / "one", teacher_config())
    teacher_folder(folder / "two", teacher_config(32, 24, 64))
    return folder


def call(folder, *flags: str) -> list[str]:
    teachers = ["--teacher", str(folder / "one"), str(folder / "two")]
    return ["reinforce", str(folder / "photos"), *teachers, "--out", str(folder / "out"), "--threads", "1", "--shard", "9", *flags]


def test_from_pairs_to_a_trained_student(folder, capsys):
    flags = ["--captions", "rules", "others", "--augmentations", "2", "--gate", "off", "--storage", "int8"]
    assert main(call(folder, *flags)) == 0
    said = capsys.readouterr().out
    assert "24 pairs in 3 of 3 tars, 3 of them made now" in said
    assert "others" in said
    assert "clipling train mobileclip --data" in said
    assert main(call(folder, *flags, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["made"], found["pairs"], found["captions"]["others"]) == (0, 24, 24)
    assert 0.99999 > found["errors"]["image"]["lowest_cosine"] > 0.999
    train = ["train", "mobileclip", "--smoke", "--data", str(folder / "out"), "--out", str(folder / "run"), "--json"]
    assert main(train) == 0
    said = json.loads((folder / "run" / "knowledge.json").read_text())
    assert said["storage"] == "int8"
    assert said["licences"].keys() == {"one", "two"}
    card = (folder / "run" / "model" / "README.md").read_text()
    assert "`one`: not stated" in card
    assert "| teachers | 2, whose answers are stored beside the pairs |" in card
    assert "Models that taught this one" in card


def test_what_cannot_be_checked_is_said_before_training(folder, tmp_path, capsys):
    """Of tars as clipling wrote them before: a line, and no refusal."""
    repacked(
        folder / "out", tmp_path / "old.tar", lambda name, data: (name, in_json(data, texts={}) if name.endswith("paug.json") else data)
    )
    assert main(["train", "mobileclip", "--smoke", "--data", str(tmp_path / "old.tar"), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "does not say whether captions are those that the teachers read (all): that could not be checked" in said
    assert main(["train", "mobileclip", "--smoke", "--data", str(folder / "out"), "--out", str(tmp_path / "other")]) == 0
    assert "could not be checked" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--captions", "rule"], "--captions 'rule' is not understood"),
        (["--augmentations", "0"], "--augmentations 0"),
        (["--crop", "0", "1"], "augment.scale"),
        ([], "--gate off"),  # an untrained teacher knows nothing
    ],
)
def test_mistakes(folder, tmp_path, capsys, flags, message):
    assert main([*call(folder, *flags), "--out", str(tmp_path / "new")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_other_flags_for_a_source_that_was_begun(folder, capsys):
    assert main(call(folder, "--augmentations", "5", "--gate", "off")) == 2
    assert "begun with other" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_no_process_of_a_launch_begins_what_the_gate_refuses(folder, tmp_path):
    """All stop, with one message and nothing made: otherwise the others make tars, and the next start takes the gate for passed."""
    ended = launch(tmp_path / "said", 2, lambda: main([*call(folder), "--out", str(tmp_path / "new")]))
    assert [one.code for one in ended] == [2, 2]
    said = {one.said.strip().splitlines()[-1] for one in ended}
    assert len(said) == 1
    assert "has nothing to teach about" in next(iter(said)).lower()
    assert "--gate off" in next(iter(said))
    assert not (tmp_path / "new").exists()


def test_half_a_launcher_is_refused(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert main([*call(folder, "--gate", "off"), "--out", str(tmp_path / "new")]) == 2
    assert "RANK=1 is set in the environment, WORLD_SIZE is not" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
