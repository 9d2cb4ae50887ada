"""Mistakes with models, sizes and teachers: exit code 2, one clear message, and before anything that takes long or is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from clipling.compression import plan
from tests.teaching import batch_norm_config, teacher_folder
from tests.verbs.test_mistakes import refused

NOWHERE = "no-such-data"  # a mistake that is found as soon as data is read
START = {"compress": ["--to", "50%"], "distill": ["--student", "tiny_vit_32"], "finetune": []}


@pytest.fixture
def nothing_is_trained(monkeypatch):
    """Fails where a mistake is found only after the teacher's features were made, or a step."""

    def late(*_, **__):
        raise AssertionError("the mistake should have been found before this")

    monkeypatch.setattr("clipling.build.remember_sides", late)
    monkeypatch.setattr("clipling.run.Trainer", late)


pytestmark = pytest.mark.usefixtures("nothing_is_trained")


@pytest.mark.parametrize("verb", START)
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("nowhere/at/all", "nowhere/at/all does not exist"),
        ("ViT-B-23", "Did you mean 'ViT-B-32'"),
        ("ViT-B-32@opnai", "Did you mean 'openai'"),
        ("tiny_vit_32", "untrained student of the zoo"),
        (".", "holds no open_clip_config.json"),
    ],
)
def test_a_model_that_cannot_be_opened_is_said_before_data_is_read(verb, model, expected, tmp_path, capsys):
    message = refused(capsys, verb, model, *START[verb], "--data", NOWHERE, "--out", tmp_path / "run")
    assert expected in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", START)
def test_a_model_that_is_a_pickle_is_not_loaded(verb, teacher, tmp_path, capsys):
    shutil.copytree(teacher, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "model" / "open_clip_pytorch_model.bin").write_bytes(b"\x80\x04never read")
    message = refused(capsys, verb, tmp_path / "model", *START[verb], "--data", NOWHERE, "--out", tmp_path / "run")
    assert "is a pickle" in message
    assert "safetensors" in message


@pytest.mark.parametrize("verb", START)
def test_the_model_is_never_written_over(verb, teacher, pairs, tmp_path, capsys):
    shutil.copytree(teacher, tmp_path / "run" / "model")
    before = {p: p.read_bytes() for p in (tmp_path / "run" / "model").iterdir()}
    for model in (tmp_path / "run", tmp_path / "run" / "model"):
        message = refused(capsys, verb, model, *START[verb], "--data", pairs, "--out", tmp_path / "run", "--overwrite")
        assert "must not be written over" in message
    assert {p: p.read_bytes() for p in (tmp_path / "run" / "model").iterdir()} == before


COMPRESS = [
    (["--to", "200%"], "at most 100 %"),
    (["--to", "100%"], "--to 100%: the teacher has 509,121 parameters without token rows"),
    (["--to", "2M"], "--to 2M: the teacher has 509,121"),
    (["--to", "0%"], "above 0 %"),
    (["--to", "half"], "a share such as 50%"),
    (["--to", "1k"], "--to 1k: no student of about 1,000"),
    (["--to", "5%", "--stages", "2"], "--to 5% (stage 2 of 2)"),
    (["--to", "0.1%", "--method", "auto"], "--to 0.1%: masks cannot remove so much"),
    (["--to", "50%", "--stages", "0"], "--stages 0: expected at least 1"),
    (["--to", "50%", "--method", "auto", "--width", "magnitude"], "--width would be ignored"),
    (["--to", "50%", "--method", "auto", "--width", "position", "--depth", "first"], "--width and --depth would be ignored"),
    (["--to", "50%", "--method", "magic"], "manual"),
    (["--to", "50%", "--set", "optimiser.wieght_decay=1"], "weight_decay"),
    (["--to", "50%", "--set", "student.inherit.to=20%"], "--set student.inherit.to: a compression decides it"),
    (["--to", "50%", "--set", "student.init.model=x"], "--set student.init: a compression decides it"),
    (["--to", "50%", "--lr", "-1"], "learning_rate"),
    (["--to", "50%", "--epochs", "0"], "epochs"),
    ([], "--to"),
]


@pytest.mark.parametrize(("arguments", "expected"), COMPRESS)
def test_what_compress_cannot_do_is_said_before_data_is_read(arguments, expected, teacher, tmp_path, capsys):
    message = refused(capsys, "compress", teacher, "--data", NOWHERE, "--out", tmp_path / "run", *arguments)
    assert expected in " ".join(message.split())
    assert NOWHERE not in message
    assert not (tmp_path / "run").exists()


def test_masks_do_not_fit_a_convolutional_teacher(tmp_path, capsys):
    convolutional = teacher_folder(tmp_path / "teacher", batch_norm_config())
    message = refused(capsys, "compress", convolutional, "--to", "50%", "--method", "auto", "--data", NOWHERE, "--out", tmp_path / "run")
    assert "ViT" in message
    assert "--method manual" in message


def test_compress_under_torchrun(teacher, pairs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "torchrun" in refused(capsys, "compress", teacher, "--to", "50%", "--data", pairs, "--out", tmp_path / "run")


@pytest.mark.parametrize("verb", START)
def test_a_batch_larger_than_the_data(verb, teacher, pairs, val, tmp_path, capsys):
    message = refused(capsys, verb, teacher, *START[verb], "--data", pairs, "--val", val, "--out", tmp_path / "run", "--batch", "999")
    assert "larger than the 48 training pairs. Use --batch 8 (6 steps an epoch) or give more pairs." in message


@pytest.mark.parametrize("verb", ["compress", "distill", "train"])
def test_a_useless_teacher_is_refused_before_its_features_are_made(verb, useless, pairs, val, tmp_path, capsys):
    head = ["train", "clip_kd", "--teacher", useless, "--student", "tiny_vit_32"] if verb == "train" else [verb, useless, *START[verb]]
    message = refused(capsys, *head, "--data", pairs, "--val", val, "--out", tmp_path / "run", "--batch", "16", "--set", "data.workers=0")
    assert f"the teacher {useless} finds the right caption for" in message
    assert "chance is 2.1 %" in message
    assert "--set teachers.teacher.gate=false" in message
    assert "inherits" not in message  # nothing was cut out of it before


DISTILL = [
    (["--text", "prune"], "cannot be trained without texts"),
    (["--text", "distill"], "cannot be trained without texts"),
    (["--captions", "use"], "no captions"),
    (["--caption-column", "words"], "--caption-column"),
    (["--captions", "ignore", "--caption-column", "words"], "--caption-column words would be ignored"),
    (["--image-column", "picture"], "--image-column"),
    (["--text-size", "50%"], "--text-size 50% is for --text prune"),
    (["--texts", "none.txt"], "none.txt is not a file"),
    (["--student", "tiny_vit_23"], "Did you mean 'tiny_vit_32'"),
    (["--set", "optimiser.wieght_decay=1"], "weight_decay"),
    (["--set", "objective.affinity.weight=2"], "affinity"),  # there are no texts to compare with
    (["--val", "no-such-val"], "no-such-val"),
]


@pytest.mark.parametrize(("arguments", "expected"), DISTILL)
def test_what_distill_cannot_do_with_photos(arguments, expected, teacher, photos, tmp_path, capsys):
    assert expected in refused(capsys, "distill", teacher, "--data", photos, "--out", tmp_path / "run", *arguments)


@pytest.mark.parametrize(
    ("size", "expected"), [("20M", "--text-size 20M: expected a share"), ("1%", "--text-size 1%: no text tower"), ("0%", "above 0")]
)
def test_a_text_tower_of_no_size_is_said_before_data_is_read(size, expected, teacher, texts, tmp_path, capsys):
    arguments = ["--texts", texts, "--text", "prune", "--text-size", size, "--data", NOWHERE, "--out", tmp_path / "run"]
    assert expected in refused(capsys, "distill", teacher, *arguments)


def test_texts_beside_captions_and_texts_that_are_none(teacher, pairs, photos, texts, tmp_path, capsys):
    message = refused(capsys, "distill", teacher, "--data", pairs, "--out", tmp_path / "run", "--texts", texts)
    assert "--texts would be ignored: the source has captions" in message
    (tmp_path / "empty.txt").write_text("\n  \n")
    assert "holds no text" in refused(
        capsys, "distill", teacher, "--data", NOWHERE, "--out", tmp_path / "run", "--texts", tmp_path / "empty.txt"
    )


def test_data_that_does_not_exist_is_not_taken_for_photos(teacher, tmp_path, capsys):
    assert "no-such-data does not exist" in refused(
        capsys, "distill", teacher, "--data", NOWHERE, "--out", tmp_path / "r", "--text", "prune"
    )


FINETUNE = [
    (["--layer-decay", "0"], "--layer-decay 0.0: expected a number above 0"),
    (["--layer-decay", "1.5"], "--layer-decay"),
    (["--patience", "0"], "patience"),
    (["--threads", "0"], "--threads is 0; expected at least 1"),
    (["--threads", "-2"], "--threads is -2"),
    (["--lr", "0"], "learning_rate"),
    (["--freeze", "img"], "image"),
    (["--set", "evaluation.intrpolate=[]"], "interpolate"),
]


@pytest.mark.parametrize(("arguments", "expected"), FINETUNE)
def test_what_finetune_cannot_do_is_said_before_data_is_read(arguments, expected, teacher, tmp_path, capsys):
    message = refused(capsys, "finetune", teacher, "--data", NOWHERE, "--out", tmp_path / "run", *arguments)
    assert expected in message
    assert NOWHERE not in message


def test_a_watched_source_that_does_not_exist(teacher, pairs, tmp_path, capsys):
    message = refused(capsys, "finetune", teacher, "--data", pairs, "--out", tmp_path / "run", "--batch", "16", "--watch", "no-such-set")
    assert "no-such-set does not exist" in message


TRAIN = [
    (["clip", "--teacher", "TEACHER"], "no term of the objective uses the teacher 'teacher'"),
    (["finetune", "--teacher", "TEACHER"], "clipling finetune MODEL"),
    (["finetune"], "clipling finetune MODEL"),
    (["clip_kd"], "give --teacher MODEL"),
    (["tinyclip_manual"], "give --teacher MODEL"),
    (["tinyclip_auto"], "give --teacher MODEL"),
    (["tinyclip_ping"], "give --teacher MODEL"),
    (["distill"], "give --teacher MODEL"),
    (["tinyclip_manual", "--teacher", "nowhere/at/all"], "nowhere/at/all does not exist"),
    (["tinyclip_auto", "--teacher", "TEACHER", "--epochs", "3"], "--set stages.0.epochs"),
    (["tinyclip_manual", "--teacher", "TEACHER", "--student", "tiny_vit_32"], "student.inherit.to"),
]


@pytest.mark.parametrize(("arguments", "expected"), TRAIN)
def test_recipes_and_teachers_that_do_not_fit(arguments, expected, teacher, tmp_path, capsys):
    arguments = [teacher if a == "TEACHER" else a for a in arguments]
    message = refused(capsys, "train", *arguments, "--data", NOWHERE, "--out", tmp_path / "run")
    assert expected in message
    assert "no-such-data" not in message


# The folder of a compression


def begun(folder: Path, plan: dict) -> Path:
    """A compression whose first stage has a checkpoint."""
    (folder / "stage-1" / "checkpoints").mkdir(parents=True)
    (folder / "stage-1" / "checkpoints" / "best.pt").write_bytes(b"x")
    (folder / "compress.json").write_text(json.dumps(plan))
    return folder


@pytest.mark.parametrize("how", [[], ["--resume"], ["--overwrite"]])
def test_a_folder_of_other_things_is_left_alone(how, teacher, pairs, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    message = refused(capsys, "compress", teacher, "--to", "50%", "--data", pairs, "--out", tmp_path, *how)
    assert "holds other files (notes.txt)" in message
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    message = refused(capsys, "compress", teacher, "--to", "50%", "--data", pairs, "--out", tmp_path / "notes.txt", *how)
    assert "is a file" in message


def test_a_begun_compression_is_gone_on_with_by_its_own_plan_only(teacher, pairs, tmp_path, capsys):
    common = ["compress", teacher, "--to", "50%", "--data", pairs, "--out", tmp_path / "out", "--batch", "16"]
    made = vars(plan(teacher, "50%", "manual", 1, {"data.source": str(pairs), "optimiser.batch": 12}))
    out = begun(tmp_path / "out", made)
    message = refused(capsys, *common)
    assert "--resume" in message
    assert "--overwrite" in message
    message = refused(capsys, *common, "--resume")
    assert "was begun with optimiser.batch = 12, now it is 16" in message
    assert "contradict" in refused(capsys, *common, "--resume", "--overwrite")
    assert "was begun with stages.0.epochs = its default, now it is 2.0" in refused(capsys, *common[:-1], "12", "--resume", "--epochs", "2")
    (out / "compress.json").write_text(json.dumps({**made, "teacher_weights": "0"}))
    assert f"the weights of the teacher {teacher} are not those that began" in refused(capsys, *common[:-1], "12", "--resume")
    (out / "compress.json").write_text(json.dumps({**made, "teacher": "another"}))
    assert f"was begun with teacher = another, now it is {teacher}" in refused(capsys, *common[:-1], "12", "--resume")
    assert (out / "stage-1" / "checkpoints" / "best.pt").is_file()


def test_overwriting_loses_nothing_when_the_new_compression_is_refused(teacher, useless, pairs, val, tmp_path, capsys):
    out = begun(tmp_path / "out", {"method": "manual"})
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    common = ["--to", "50%", "--out", out, "--overwrite", "--data"]
    for arguments, expected in (
        ([teacher, *common, NOWHERE], "does not exist"),
        ([teacher, *common, pairs, "--batch", "999"], "larger"),
        ([useless, *common, pairs, "--val", val, "--batch", "16"], "nothing to teach"),
        ([teacher, *common, pairs, "--batch", "16", "--val", "no-such-val"], "no-such-val"),
    ):
        assert expected in refused(capsys, "compress", *arguments)
        assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_a_compression_that_was_refused_can_be_started_again(teacher, pairs, tmp_path, capsys):
    common = ["compress", teacher, "--to", "50%", "--out", tmp_path / "out", "--data", pairs, "--batch"]
    assert "999" in refused(capsys, *common, "999")
    assert (tmp_path / "out" / "compress.json").is_file()
    assert "998" in refused(capsys, *common, "998")  # and not: the folder already holds a compression
    assert json.loads((tmp_path / "out" / "compress.json").read_text())["settings"]["optimiser.batch"] == 998


def test_the_file_of_weights_is_no_model(teacher, tmp_path, capsys):
    file = Path(teacher) / "open_clip_model.safetensors"
    assert "is a file; expected" in refused(capsys, "finetune", file, "--data", NOWHERE, "--out", tmp_path / "run")
