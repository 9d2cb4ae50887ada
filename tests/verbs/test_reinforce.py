"""`clipling reinforce` as a user calls it: from pairs and models to a source that trains, and mistakes in one line."""

from __future__ import annotations

import json
import re
import shutil
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
    assert "(or mobileclip2)" in said
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
    assert "| stored teacher | `one`, embeddings of 48, learned scale 14.29 |" in card
    assert "| stored teacher | `two`, embeddings of 64, learned scale 14.29 |" in card
    assert "| stored augmentations | 2 a picture: crops with RandAugment's operations; embeddings stored as int8 |" in card
    own, rules, others = map(
        int, re.search(r"captions \| (\d+) of the pairs; synthetic by origin: (\d+) rules, (\d+) others", card).groups()
    )
    pairs = json.loads((folder / "run" / "summary.json").read_text())["train_pairs"]
    assert others == own - pairs, "all captions of a pair but the first"
    assert own < rules <= 5 * pairs
    assert "Models that taught this one" in card
    assert str(folder) not in card


def test_a_check_that_finds_nothing_says_so(folder, capsys):
    flags = ["--captions", "rules", "others", "--augmentations", "2", "--gate", "off", "--storage", "int8", "--check"]
    assert main(call(folder, *flags)) == 0
    assert "checked: every tar that was there is as it was written" in capsys.readouterr().out
    tar = folder / "out" / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    assert main(call(folder, *flags)) == 0
    said = capsys.readouterr().out
    assert "damaged, and made anew: 00001.tar" in said
    assert "as it was written" not in said


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("field:typo", "none of the 24 pairs of"),
        ("field:lang.fr", "There is: label, lang.de"),
        ("field:lang", "There is: label, lang.de"),
        ("template:lang", "There is: label"),
        ("template:labels", "There is: label"),
    ],
)
def test_captions_that_are_not_there_are_a_mistake(folder, tmp_path, capsys, kind, message):
    source = table(folder, tmp_path)
    teachers = ["--teacher", str(folder / "one"), "--gate", "off", "--out", str(tmp_path / "new")]
    assert main(["reinforce", source, *teachers, "--captions", kind, "rules"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_captions_that_some_pairs_lack_are_counted_before_the_teacher_is_asked(folder, tmp_path, capsys):
    flags = ["--teacher", str(folder / "one"), "--gate", "off", "--out", str(tmp_path / "new"), "--augmentations", "1", "--threads", "1"]
    assert main(["reinforce", table(folder, tmp_path), *flags, "--captions", "field:lang.de", "template:label"]) == 0
    out, err = capsys.readouterr()
    assert "warning: 16 of 24 pairs have no captions of 'lang.de'" in err
    assert err.index("warning") < err.index("teachers' knowledge")
    assert "'template'" not in err
    assert "8 lang.de, 120 template" in out


def test_others_and_rules_of_one_caption_in_another_language(folder, tmp_path, capsys):
    rows = [{"image": str(folder / "photos" / f"{i:03d}.{'jpg' if i % 2 else 'png'}"), "caption": f"绿色 {i}"} for i in range(24)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--teacher", str(folder / "one"), "--gate", "off", "--out", str(tmp_path / "new")]
    for kind, message in (("others", "have one caption each"), ("rules", "no caption of the 24 pairs was rewritten")):
        assert main(["reinforce", str(tmp_path / "pairs.jsonl"), *flags, "--captions", kind]) == 2
        assert message in capsys.readouterr().err


def test_ctrl_c_says_what_stays_and_how_to_go_on(folder, tmp_path, capsys, monkeypatch):
    from clipling.guides.reinforce_shard import Maker

    write = Maker.write

    def interrupted(self, out, number):
        if number == 1:
            raise KeyboardInterrupt
        write(self, out, number)

    monkeypatch.setattr(Maker, "write", interrupted)
    flags = ["--gate", "off", "--augmentations", "1", "--out", str(tmp_path / "new")]
    assert main(call(folder, *flags)) == 130
    assert f"stopped. 1 of 3 tars are finished and stay in {tmp_path / 'new'}: the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(Maker, "write", write)
    assert main(call(folder, *flags)) == 0
    assert "24 pairs in 3 of 3 tars, 2 of them made now" in capsys.readouterr().out


def table(folder, tmp_path) -> str:
    """The photos with a label, and with a German caption for every third."""
    rows = []
    for i in range(24):
        lang = {"lang": {"de": [f"Bild Nummer {i}"]}} if i % 3 == 0 else {}
        image = str(folder / "photos" / f"{i:03d}.{'jpg' if i % 2 else 'png'}")
        rows.append({"image": image, "caption": f"a thing number {i}", "label": f"thing_{i % 4}", **lang})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "pairs.jsonl")


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


def test_packing_says_that_stored_knowledge_stays_behind(folder, tmp_path, capsys):
    assert main(["data", "pack", str(folder / "out"), str(tmp_path / "packed")]) == 0
    assert "is not packed: its crops fit the pictures as they are" in capsys.readouterr().err
    assert main(["data", "pack", str(folder / "photos"), str(tmp_path / "other")]) == 0
    assert "is not packed" not in capsys.readouterr().err


def test_a_half_made_source_is_told_of_before_the_batch(folder, tmp_path, capsys):
    """Too few pairs for the recipe's batch are then no riddle."""
    half = tmp_path / "half"
    shutil.copytree(folder / "out", half)
    (half / "00002.tar").unlink()
    train = ["train", "mobileclip", "--data", str(half), "--out", str(tmp_path / "run")]
    assert main([*train, "--epochs", "1"]) == 2
    said = capsys.readouterr().err
    assert 0 < said.index("half has 18 of the 24 pairs") < said.index("optimiser.batch = ")
    assert main([*train, "--smoke"]) == 0
    said = capsys.readouterr().err
    assert said.count("half has 18 of the 24 pairs") == 1
    assert said.startswith("note     half has 18")


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
    said = capsys.readouterr().err
    assert "begun with other settings: --captions" in said
    assert "; --augmentations 2 (now 5); --storage int8 (now fp16). Give the same" in said


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_no_process_of_a_launch_begins_what_the_gate_refuses(folder, tmp_path):
    """All stop, with one message and nothing made: otherwise the others make tars, and the next start takes the gate for passed."""
    ended = launch(tmp_path / "said", 2, lambda: main([*call(folder), "--out", str(tmp_path / "new")]))
    assert [one.code for one in ended] == [2, 2]
    said = {one.said.strip().splitlines()[-1] for one in ended}
    assert len(said) == 1
    assert "has nothing to teach about" in next(iter(said)).lower()
    assert "finetune" not in next(iter(said))
    assert "--gate off" in next(iter(said))
    assert not (tmp_path / "new").exists()


def test_half_a_launcher_is_refused(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert main([*call(folder, "--gate", "off"), "--out", str(tmp_path / "new")]) == 2
    assert "RANK=1 is set in the environment, WORLD_SIZE is not" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
