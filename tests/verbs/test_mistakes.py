"""A user's mistakes through the command line: exit code 2, one clear message, no traceback; or counted and skipped."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from clipling.cli import _flags_known, main, verbs
from tests.toy import toy_folder

SMALL = ["--epochs", "1", "--batch", "16", "--threads", "1"]
SET = ["--set", "student.config=tiny_vit_32", "data.workers=0"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("toy") / "pairs", count=48)


def call(capsys, *arguments) -> tuple[int, str, str]:
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as end:  # tyro's own errors
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def refused(capsys, *arguments) -> str:
    code, _, err = call(capsys, *arguments)
    assert code == 2, err
    return err


def table(path: Path, header: list[str], toy: Path, delimiter: str = ",", count: int = 40) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        for i in range(count):
            writer.writerow([str(toy / f"{i:04d}.png"), f"a thing, number {i}", f"shelf {i % 7}"])
    return path


def tar_of(path: Path, toy: Path, count: int = 40, broken: int | None = None) -> Path:
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            data = (toy / f"{i:04d}.png").read_bytes()
            if i == broken:
                data = data[: len(data) // 2]
            for suffix, content in ((".png", data), (".txt", f"thing number {i}".encode())):
                info = tarfile.TarInfo(f"{i:04d}{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def test_wrong_column_names_name_the_header_and_the_flags(toy, tmp_path, capsys):
    path = table(tmp_path / "a.csv", ["picture", "words", "place"], toy)
    message = refused(capsys, "train", "clip", "--data", path, "--out", tmp_path / "run")
    assert "picture" in message
    assert "--image-column" in message
    code, out, _ = call(capsys, "data", "inspect", path, "--image-column", "picture", "--caption-column", "words", "--json")
    assert code == 0
    assert json.loads(out)["pairs"] == 40


@pytest.mark.parametrize(("delimiter", "suffix"), [("\t", ".csv"), (",", ".tsv"), (";", ".csv"), ("|", ".csv")])
def test_any_separator_under_any_name_is_read(toy, tmp_path, capsys, delimiter, suffix):
    path = table(tmp_path / f"a{suffix}", ["filepath", "caption", "place"], toy, delimiter)
    code, out, _ = call(capsys, "data", "inspect", path, "--json")
    assert code == 0
    assert json.loads(out)["pairs"] == 40


def test_missing_pictures_are_counted_or_stop_the_run(toy, tmp_path, capsys):
    folder = tmp_path / "pairs"
    shutil.copytree(toy, folder)
    path = tmp_path / "a.csv"
    rows = [f"pairs/{i:04d}.png,thing {i}" for i in range(48)] + ["pairs/gone.png,not there"]
    path.write_text("filepath,caption\n" + "\n".join(rows))
    code, _, err = call(capsys, "train", "clip", "--data", path, "--out", tmp_path / "run", *SMALL, *SET)
    assert code == 0, err
    assert "gone.png" in (tmp_path / "run" / "problems.tsv").read_text()
    path.write_text("filepath,caption\n" + "\n".join(f"pairs/no{i}.png,thing {i}" for i in range(48)))
    assert "48" in refused(capsys, "train", "clip", "--data", path, "--out", tmp_path / "other")


def test_a_folder_without_captions_says_what_can_be_done(toy, tmp_path, capsys):
    folder = tmp_path / "bare"
    folder.mkdir()
    for i in range(5):
        shutil.copy(toy / f"{i:04d}.png", folder)
    message = refused(capsys, "train", "clip", "--data", folder, "--out", tmp_path / "run")
    assert "caption" in message
    assert ".txt" in message


def test_a_truncated_tar_keeps_its_whole_pairs_and_says_so(toy, tmp_path, capsys):
    path = tar_of(tmp_path / "a.tar", toy)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    code, out, _ = call(capsys, "data", "inspect", path, "--json")
    found = json.loads(out)
    assert code == 0
    assert 20 <= found["pairs"] < 40
    assert sum(found["problems"].values()) >= 1


def test_a_tar_with_one_broken_picture_trains_on_the_others(toy, tmp_path, capsys):
    path = tar_of(tmp_path / "a.tar", toy, broken=7)
    code, _, err = call(capsys, "train", "clip", "--data", path, "--out", tmp_path / "run", *SMALL, *SET)
    assert code == 0, err
    assert "0007" in (tmp_path / "run" / "problems.tsv").read_text()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["train_pairs"] + summary["val_pairs"] == 39


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "pign"], "Did you mean 'ping'"),
        (["train", "clip", "--set", "optimiser.wieght_decay=1"], "weight_decay"),
        (["train", "clip", "--set", "optimiser"], "key=value"),
        (["train", "clip", "--student", "mobilenetv3_smal_64"], "mobilenetv3_small_64"),
        (["train", "clip", "--guide", "somewhere"], "has no guide"),
        (
            ["train", "clip", "--set", "guide.k=3"],
            "the recipe 'clip' has no guide. Recipes that have one: a_ping, ping, reinforced_ping, tinyclip_ping",
        ),
        (["train", "clip", "--set", "student.inherit.to=50%"], "has no student.inherit. Recipes that have one: tinyclip_manual"),
        (["train", "clip", "--set", "seed.k=3"], "'seed' holds no settings here.\n"),
        (["train", "clip", "--set", "giude.k=3"], "'guide'"),
        (["train", "clip", "--epochs", "-1"], "positive"),
        (["train", "clip", "--seeds", "1,1"], "twice"),
        (["train", "clip", "--scale", "papr"], "paper"),
        (["train", "./none.py:recipe"], "none.py"),
        (["train", "none.yaml"], "none.yaml"),
        (["eval", "nowhere"], "nowhere"),
        (["compare", "nowhere"], "nowhere"),
        (["check", "./none.py:Term"], "none.py"),
        (["data"], "inspect"),
        (["trian"], "train"),
    ],
)
def test_names_that_do_not_exist(toy, tmp_path, capsys, arguments, expected):
    if arguments[0] == "train":
        arguments = [*arguments, "--data", toy, "--out", tmp_path / "run"]
        # --set takes all words that follow it, so it goes last
        if "--set" in arguments:
            at = arguments.index("--set")
            arguments = [*arguments[:at], *arguments[at + 2 :], *arguments[at : at + 2]]
    if arguments[0] == "eval":
        arguments = [*arguments, "--data", toy]
    assert expected in refused(capsys, *arguments)


def test_a_batch_larger_than_the_data(toy, tmp_path, capsys):
    message = refused(capsys, "train", "clip", "--data", toy, "--out", tmp_path / "run", "--batch", "999", *SET)
    assert "999" in message
    assert "--batch" in message


def test_no_data(tmp_path, capsys):
    assert "--data" in refused(capsys, "train", "clip", "--out", tmp_path / "run")


def test_an_existing_run_folder_is_never_overwritten_unasked(toy, tmp_path, capsys):
    run = tmp_path / "run"
    assert call(capsys, "train", "clip", "--data", toy, "--out", run, *SMALL, *SET)[0] == 0
    before = (run / "summary.json").read_bytes()
    message = refused(capsys, "train", "clip", "--data", toy, "--out", run, *SMALL, *SET)
    assert "--resume" in message
    assert "--overwrite" in message
    assert "differs" in refused(capsys, "train", "clip", "--data", toy, "--out", run, "--resume", "--seed", "5", *SMALL, *SET)
    assert (run / "summary.json").read_bytes() == before
    (run / "holiday.jpg").write_bytes(b"mine")
    assert "holiday.jpg" in refused(capsys, "train", "clip", "--data", toy, "--out", run, "--overwrite", *SMALL, *SET)
    (run / "holiday.jpg").unlink()
    assert call(capsys, "train", "clip", "--data", toy, "--out", run, "--overwrite", *SMALL, *SET)[0] == 0


def test_an_out_that_cannot_be_a_folder(toy, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert "file" in refused(capsys, "train", "clip", "--data", toy, "--out", tmp_path / "file", *SMALL, *SET)
    assert "folder" in refused(capsys, "train", "clip", "--data", toy, "--out", tmp_path / "file" / "run", *SMALL, *SET)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_an_out_that_is_not_writable(toy, tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "permission" in refused(capsys, "train", "clip", "--data", toy, "--out", tmp_path / "locked" / "run", *SMALL, *SET)


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        sys.platform != "linux"
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True).returncode
    ):
        pytest.skip("cannot mount a small disk here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.mark.faults
def test_a_full_disk_is_one_message_and_leaves_no_half_file(toy, small_disk, capsys):
    message = refused(capsys, "train", "clip", "--data", toy, "--out", small_disk / "run", *SMALL, *SET)
    assert "no space left" in message
    assert not list((small_disk / "run").rglob("*.tmp"))


def test_a_recipe_file_with_mistakes_lists_all_of_them(toy, tmp_path, capsys):
    path = tmp_path / "r.yaml"
    path.write_text("base: clip\noptimiser: {batsh: 3, ema: 7}\nsed: 1\n")
    message = refused(capsys, "train", path, "--data", toy, "--out", tmp_path / "run")
    assert "batsh" in message
    assert "sed" in message
    path.write_text(
        "base: clip\nname: mine\noptimiser: {batch: 16}\nstages: [{epochs: 1}]\nstudent: {config: tiny_vit_32}\ndata: {workers: 0}\n"
    )
    assert call(capsys, "train", path, "--data", toy, "--out", tmp_path / "run", "--threads", "1")[0] == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["name"] == "mine"


def test_all_captions_the_same_teach_nothing(toy, tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text("filepath,caption\n" + "\n".join(f"{toy / f'{i:04d}.png'},a thing" for i in range(40)))
    assert "nothing to tell apart" in refused(capsys, "train", "clip", "--data", path, "--out", tmp_path / "run", *SMALL, *SET)


def test_a_missing_extra_says_what_to_install(capsys, monkeypatch):
    def without_torch(*_, **__):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("clipling.cli.verbs", lambda: {"show": without_torch, "bank": without_torch})
    assert "pip install 'clipling[train]'" in refused(capsys, "show")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--epochs", "inf"], "epochs"),
        (["--seed", "99999999999999999999"], "seed"),
        (["--set", "evaluation.every=.inf"], "every"),
        (["--seeds", "0,1", "--set", "seed=7"], "--seeds"),
    ],
)
def test_numbers_that_cannot_be(toy, tmp_path, capsys, arguments, expected):
    assert expected in refused(capsys, "train", "clip", "--data", toy, "--out", tmp_path / "run", *arguments)


def test_a_base_keeps_what_a_recipe_file_does_not_name(toy, tmp_path):
    from clipling.recipe import from_yaml

    path = tmp_path / "r.yaml"
    path.write_text("base: lit\nstages: [{epochs: 3}]\nobjective: {clip: {weight: 2.0}}\n")
    recipe = from_yaml(path)
    assert recipe.stages[0].freeze == ["image"]
    assert recipe.stages[0].epochs == 3
    path.write_text("base: ping\nobjective: {ping: {weight: {nn: 1.0}}}\n")
    assert from_yaml(path).objective["ping"].weight == {"nn": 1.0}
    path.write_text(f"base: {path}\n")
    from clipling.errors import UserError

    with pytest.raises(UserError, match="name of a recipe"):
        from_yaml(path)
    with pytest.raises(UserError, match="cannot be read"):
        from_yaml(tmp_path)


def test_a_refused_run_leaves_no_folder(toy, tmp_path, capsys):
    out = tmp_path / "runs" / "x"
    assert "999" in refused(capsys, "train", "clip", "--data", toy, "--out", out, "--batch", "999")
    assert not out.exists()
    out.mkdir()  # one that was there before stays
    refused(capsys, "train", "clip", "--data", toy, "--out", out, "--batch", "999")
    assert out.is_dir()


def test_a_mistyped_flag_is_answered_with_the_verbs_own_flags(capsys):
    message = refused(capsys, "train", "clip", "--data", "x", "--epoch", "3").strip()
    assert message.startswith("clipling: train has no --epoch. Did you mean '--epochs'")
    assert message.count("\n") == 0
    assert "'--size'" in refused(capsys, "data", "pack", "a", "b", "--szie=3")


def test_every_flag_in_a_verbs_help_is_known(capsys):
    """What tyro takes, the check before it takes as well."""
    for verb in verbs():
        code, out, _ = call(capsys, *verb.split(), "--help")
        assert code == 0
        flags = re.findall(r"^[│ ]*(?:-h, )?(--[a-z][a-z-]*)(?=[ \n])", out, re.MULTILINE)
        assert "--help" in flags
        for flag in flags:
            _flags_known([verb, flag])
            _flags_known([verb, "--" + flag[2:].replace("-", "_")])
