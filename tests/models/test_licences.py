"""Which licences come with a model, and that they travel from a teacher to its student and on."""

from __future__ import annotations

import json

import open_clip
import pytest
from safetensors.torch import save_file

from clipling.models.hub import new_student, save_student
from clipling.models.licences import AMLR, BY_TAG, LITE0, YOURS, Licence, licences_of, licences_of_tower, read, told_of_run
from clipling.recipe import TeacherSpec, TermSpec, load_recipe, with_settings
from clipling.run import train
from tests.models.making import tiny
from tests.toy import toy_folder


def card(folder, *lines: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("\n".join(["---", *lines, "---", "# A model", "---", "text", "---", ""]))
    return str(folder)


@pytest.mark.parametrize(
    ("lines", "text", "restricted"),
    [
        (["license: mit"], "mit", False),
        (["license: apache-2.0", "tags: [a, b]"], "apache-2.0", False),
        (["license: CC-BY-NC-4.0"], "CC-BY-NC-4.0", True),
        (["license: apple-amlr"], "apple-amlr", True),
        (["license: other", "license_name: apple-ascl"], "apple-ascl", True),
        (["license: other", "license_name: house-rules"], "house-rules", False),
        (["license: [mit, cc-by-nc-sa-4.0]"], "mit, cc-by-nc-sa-4.0", True),
        (["license: other"], "not stated", None),
        (["license:"], "not stated", None),
        (["tags: [a]"], "not stated", None),
        (["- a", "- list"], "not stated", None),
        (["license: [unclosed"], "not stated", None),
    ],
)
def test_what_a_model_card_says(tmp_path, lines, text, restricted):
    ((name, found),) = licences_of(card(tmp_path / "model", *lines)).items()
    assert (name, found.restricted) == ("model", restricted)
    assert found.text.startswith(text)
    assert licences_of("local-dir:" + str(tmp_path / "model")) == licences_of("transformers:" + str(tmp_path / "model")) == {name: found}


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"# no metadata\nlicense: mit\n", b"text first\n---\nlicense: mit\n---\n"])
def test_a_card_without_metadata_says_nothing(tmp_path, content):
    if content is not None:
        (tmp_path / "README.md").write_bytes(content)
    (found,) = licences_of(str(tmp_path)).values()
    assert found.restricted is None


def test_weights_of_open_clip_by_their_tag():
    assert set(BY_TAG) <= {tag for _, tag in open_clip.list_pretrained()}, "a mistyped tag would restrict nothing"
    spec = "ViT-B-16@dfn2b"
    assert licences_of(spec)[spec].restricted is True
    assert "research only" in licences_of(spec)[spec].text
    assert licences_of("ViT-B-32@metaclip_400m")["ViT-B-32@metaclip_400m"].restricted is True
    other = licences_of("ViT-B-32@laion2b_s34b_b79k")["ViT-B-32@laion2b_s34b_b79k"]
    assert other.restricted is None
    assert "ViT-B-32@laion2b_s34b_b79k" in other.text


def test_a_run_hands_on_what_taught_it(tmp_path):
    run = tmp_path / "run"
    card(run / "model", "license: mit")
    licences = {"encoder": "apache-2.0", "ViT-B-16@dfn2b": BY_TAG["dfn2b"], "old": "not stated: find out before you share the model"}
    (run / "summary.json").write_text(json.dumps({"licences": licences}))
    for spec in (run, run / "model"):
        found = licences_of(str(spec))
        assert {name: licence.text for name, licence in found.items()} == licences
        assert [licence.restricted for licence in found.values()] == [False, True, None]


def test_a_run_of_before_licences_were_kept_has_none(tmp_path):
    card(tmp_path / "model", "tags: [clip]")
    (tmp_path / "summary.json").write_text(json.dumps({"train_pairs": 3, "samples_seen": 6}))
    assert licences_of(str(tmp_path)) == {}


@pytest.mark.parametrize("summary", ["[1, 2]", '{"score": 3}', "not json", '{"licences": "many"}'])
def test_a_summary_of_another_program_is_not_taken_for_ours(tmp_path, summary):
    (tmp_path / "summary.json").write_text(summary)
    spec = card(tmp_path / "model", "license: cc-by-nc-4.0")
    assert licences_of(spec) == {"model": Licence("cc-by-nc-4.0", True)}


def test_from_teacher_to_student_to_its_student(tmp_path, capsys):
    teacher = tmp_path / "teacher"
    save_student(new_student(tiny()).eval(), teacher)
    card(teacher, "license: cc-by-nc-4.0")
    source, before = toy_folder(tmp_path / "pairs", 40), str(teacher)
    for run in ("first", "second"):
        recipe = with_settings(load_recipe("clip", smoke=True), {"data.source": str(source)})
        recipe.teachers = {"t": TeacherSpec(model=before, gate=False)}
        recipe.objective = {"affinity": TermSpec(use="clipling.objectives.affinity:Affinity")}
        summary = train(recipe, tmp_path / run, quiet=True)
        assert summary["licences"] == {"teacher": "cc-by-nc-4.0"}
        assert "may not be used commercially" in capsys.readouterr().err
        text = (tmp_path / run / "model" / "README.md").read_text()
        assert "- `teacher`: cc-by-nc-4.0" in text
        assert "**Not for commercial use as it stands:** `teacher`" in text
        assert str(tmp_path) not in text
        before = str(tmp_path / run)


@pytest.mark.parametrize(
    ("spec", "name", "text", "restricted"),
    [
        ("efficientnet_lite0", "efficientnet_lite0", LITE0, False),
        ("all-MiniLM-L6-v2", "all-MiniLM-L6-v2", "Apache-2.0", False),
        ("timm:mobilenetv4_conv_medium.e500_r256_in1k", "mobilenetv4_conv_medium.e500_r256_in1k", "apache-2.0", False),
        ("timm:convnextv2_atto.fcmae", "convnextv2_atto.fcmae", "cc-by-nc-4.0", True),
        ("timm:mobilenetv3_small_050@mine/net.safetensors", "mine/net.safetensors", "that of your weights", None),
        ("mine/net.safetensors", "mine/net.safetensors", "that of your weights", None),
    ],
)
def test_what_a_tower_starts_from(spec, name, text, restricted):
    ((found, licence),) = licences_of_tower(spec).items()
    assert (found, licence.restricted) == (name, restricted)
    assert licence.text.startswith(text)


def test_towers_are_named_and_the_chain_is_kept(tmp_path, capsys):
    """A student's student still says what the first one's towers started from, and research-only weights warn each time."""
    encoder = tmp_path / "encoder"
    save_student(new_student(tiny()).eval(), encoder / "whole")
    state = {name.removeprefix("visual."): v for name, v in new_student(tiny()).stock_state().items() if name.startswith("visual.")}
    save_file(state, encoder / "image.safetensors")
    source = toy_folder(tmp_path / "pairs", 40)
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(tiny()))
    base = {"data.source": str(source), "student.config": str(config)}
    start = {**base, "student.init": {"image": str(encoder / "image.safetensors")}}
    summary = train(with_settings(load_recipe("clip", smoke=True), start), tmp_path / "first", quiet=True)
    assert summary["licences"] == {"image.safetensors": YOURS}
    assert "weights it started from:\n\n- `image.safetensors`: that of your weights" in (tmp_path / "first/model/README.md").read_text()
    assert told_of_run(str(tmp_path / "first")) == f"clipling clip; started from or taught by image.safetensors, {YOURS}"
    # the same of research-only weights, as a summary says it
    summary["licences"] = {"big": AMLR}
    (tmp_path / "first" / "summary.json").write_text(json.dumps(summary))
    recipe = with_settings(load_recipe("clip", smoke=True), base)
    recipe.teachers = {"t": TeacherSpec(model=str(tmp_path / "first"), gate=False)}
    recipe.objective = {"affinity": TermSpec(use="clipling.objectives.affinity:Affinity")}
    assert train(recipe, tmp_path / "second", quiet=True)["licences"] == {"image.safetensors": YOURS, "big": AMLR}
    assert "the weights of big may not be used commercially" in capsys.readouterr().err


def test_a_run_in_one_line(tmp_path):
    recipe, summary = tmp_path / "recipe.yaml", tmp_path / "summary.json"
    assert told_of_run(str(tmp_path)) == ""
    summary.write_text(json.dumps({"name": "ping", "train_pairs": 3, "samples_seen": 6, "licences": {}}))
    assert told_of_run(str(tmp_path)) == "clipling ping; from its training pairs alone"
    recipe.write_text("student: {init: {image: efficientnet_lite0, text: all-MiniLM-L6-v2}}")  # its summary is of an older version
    assert told_of_run(str(tmp_path)) == (
        f"clipling ping; started from or taught by efficientnet_lite0, {LITE0}, and all-MiniLM-L6-v2, Apache-2.0"
    )
    assert licences_of(str(tmp_path)).keys() == {"efficientnet_lite0", "all-MiniLM-L6-v2"}
    summary.write_text(json.dumps({"name": "clip", "licences": {"big": AMLR}}))
    recipe.unlink()
    assert read(told_of_run(str(tmp_path))).restricted
