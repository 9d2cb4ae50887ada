"""Every recipe runs one step on a toy source; files of recipes say what they say; users' files work from outside."""

from __future__ import annotations

import json

import pytest
import yaml

from clipling.data.source import open_pairs
from clipling.errors import UserError
from clipling.models.hub import open_student
from clipling.recipe import from_yaml, load_recipe, recipe_names, to_dict, to_yaml, with_settings
from clipling.run import train
from tests.reinforcing import made
from tests.teaching import teacher_config, teacher_folder
from tests.toy import toy_folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("toy") / "pairs", count=48)


@pytest.fixture(scope="module")
def reinforced_toy(toy, tmp_path_factory) -> str:
    """The toy pairs with the knowledge of two teachers beside them, and captions by rules."""
    folder = tmp_path_factory.mktemp("reinforced") / "out"
    made(open_pairs(str(toy)), folder, ("rules",), shard=20)
    return str(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    return teacher_folder(tmp_path_factory.mktemp("teacher") / "model", teacher_config(32, 24, 64))


def test_the_recipes_of_the_package():
    built = ["a_ping", "clip", "clip_kd", "distill", "finetune", "lit", "mobileclip", "mobileclip2", "ping", "reinforced_ping"]
    built += ["tinyclip_auto", "tinyclip_manual", "tinyclip_ping"]
    assert recipe_names() == built


@pytest.mark.parametrize("scale", ["cpu", "paper"])
@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_survives_its_file(name, scale, tmp_path):
    recipe = load_recipe(name, scale=scale)
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipe))
    assert from_yaml(path) == recipe
    assert yaml.safe_load(to_yaml(recipe))["name"] == name


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_runs_one_step(name, toy, reinforced_toy, teacher, tmp_path):
    recipe = load_recipe(name, smoke=True)
    recipe = with_settings(recipe, {"data.source": str(toy) if recipe.reinforced is None else reinforced_toy})
    if recipe.teachers:
        recipe = with_settings(recipe, {"teachers.teacher.model": teacher, "teachers.teacher.gate": False})
    if name == "finetune":
        recipe = with_settings(recipe, {"student.init": {"model": teacher}})
    summary = train(recipe, tmp_path / "run", quiet=True)
    assert summary["steps"] == len(recipe.stages)  # one a stage, so that what happens between stages is tried too
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    step = next(line for line in lines if line["kind"] == "train")
    if recipe.guide is not None:
        assert {"ping/self", "ping/nn", "ping/xnn"} <= step["terms"].keys()
        guides = json.loads((tmp_path / "run" / "guides.json").read_text())
        assert guides["licences"]
        keys = {k for s in guides["neighbours_sample"] for k in s["image_neighbours"] + s["text_neighbours"]}
        assert keys
    if recipe.reinforced is not None:
        said = json.loads((tmp_path / "run" / "knowledge.json").read_text())
        assert [teacher["name"] for teacher in said["teachers"]] == ["first", "second"]
        assert said["synthetic_captions"].keys() == {"rules"}
    weights = {}
    for term, spec in recipe.objective.items():
        weights |= {f"{term}/{v}": w for v, w in spec.weight.items() if w} if isinstance(spec.weight, dict) else {term: spec.weight}
    assert step["loss"] == pytest.approx(sum(weights[value] * found for value, found in step["terms"].items()), rel=1e-4)


def test_masks_and_recovery_follow_each_other(toy, teacher, tmp_path):
    """One step of masks, then one of the pruned student."""
    settings = {"data.source": str(toy), "teachers.teacher.model": teacher, "teachers.teacher.gate": False, "max_steps": None}
    settings |= {"stages.0.epochs": 0.2, "stages.1.epochs": 0.2, "objective.sparsity.options": {"target": 0.5, "warmup": 1}}
    recipe = with_settings(load_recipe("tinyclip_auto", smoke=True), settings)
    summary = train(recipe, tmp_path / "run", quiet=True)
    assert summary["steps"] == 2
    whole = open_student(teacher).sizes()["total_without_token_rows"]
    assert summary["parameters"]["total_without_token_rows"] < 0.7 * whole
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [set(line["terms"]) for line in lines if line["kind"] == "train"] == [{"affinity", "sparsity"}, {"affinity"}]


PAPERS = {
    "tinyclip_manual": ("stages.0.learning_rate", 1e-4),  # the released scripts
    "tinyclip_auto": ("objective.sparsity.options.lr", 0.02),
    "clip_kd": ("objective.fd.weight", 2000.0),  # section 4.2: 1 CRD + 2000 FD + 1 ICL
    "finetune": ("optimiser.layer_decay", 0.9),
    "mobileclip": ("objective.reinforced.options.scales", 100.0),  # section 3.2: a temperature of 0.01
    "mobileclip2": ("objective.reinforced.options.scales", [70.0, 60.0]),
}


@pytest.mark.parametrize("name", PAPERS)
def test_what_the_papers_used(name):
    path, expected = PAPERS[name]
    found = to_dict(load_recipe(name, scale="paper"))
    for key in path.split("."):
        found = found[int(key)] if isinstance(found, list) else found[key]
    assert found == expected


def test_smoke_and_scale_are_refused_for_a_file(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(to_yaml(load_recipe("clip")))
    with pytest.raises(UserError, match="--smoke"):
        load_recipe(str(path), smoke=True)


MINE = """
import torch
from clipling.objectives.term import Batch, Term
from clipling.recipe import Recipe, TermSpec
from clipling.recipes import clip


class Spread(Term):
    def __init__(self, power: float = 2.0):
        super().__init__()
        self.power = power

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        gram = batch.main.image @ batch.main.image_all.T
        return {"spread": (self.power * gram).exp().mean(dim=1).log().mean()}


def recipe(smoke: bool = False) -> Recipe:
    made = clip.recipe(smoke)
    made.name = "mine"
    made.objective["spread"] = TermSpec(use="FILE:Spread", weight=0.1, options={"power": 3.0})
    return made


def broken() -> Recipe:
    return 1 / 0


def other() -> int:
    return 3
"""


def test_a_recipe_and_a_term_from_outside_the_package(toy, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE.replace("FILE", str(path)))
    recipe = with_settings(load_recipe(f"{path}:recipe", smoke=True), {"data.source": str(toy)})
    summary = train(recipe, tmp_path / "run", quiet=True)
    assert summary["name"] == "mine"
    for name, message in (("broken", "ZeroDivisionError"), ("other", "returned int"), ("recip", "recipe")):
        with pytest.raises(UserError, match=message):
            load_recipe(f"{path}:{name}")
    with pytest.raises(UserError, match="takes no 'scale'"):
        load_recipe(f"{path}:recipe", scale="paper")
    changed = to_dict(recipe)
    changed["objective"]["spread"]["options"] = {"pwer": 1}
    with pytest.raises(UserError, match="power"):
        train(with_settings(recipe, {"objective.spread.options": {"pwer": 1.0}}), tmp_path / "other", quiet=True)


def test_a_guide_that_nothing_uses_and_a_term_without_a_guide(toy, tmp_path):
    ping = with_settings(load_recipe("ping", smoke=True), {"data.source": str(toy)})
    with pytest.raises(UserError, match="has no guide"):
        train(with_settings(ping, {"guide": None}), tmp_path / "a", quiet=True)
    with pytest.raises(UserError, match="no term of the objective uses"):
        train(with_settings(ping, {"objective.ping.weight": {"self": 0.0, "nn": 0.0, "xnn": 0.0}}), tmp_path / "b", quiet=True)
    with pytest.raises(UserError, match="nnn"):
        train(with_settings(ping, {"objective.ping.weight": {"nnn": 1.0}}), tmp_path / "c", quiet=True)
