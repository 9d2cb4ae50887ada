"""Groups of parameters: layer-wise rates against other counts, terms' own rates and ascent, and what is frozen."""

from __future__ import annotations

import json

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from clipling.engine.optim import build_optimiser, parameter_groups, set_rate
from clipling.engine.runtime import Runtime
from clipling.engine.trainer import Trainer
from clipling.errors import UserError
from clipling.models.build import minilm_folder
from clipling.models.depths import distances
from clipling.models.hub import new_student
from clipling.objectives.contrastive import Clip
from clipling.objectives.term import Objective, Term
from clipling.recipe import Optimiser, with_settings
from clipling.run import make_job
from tests.models.making import tiny
from tests.surgery import small

CLIP = Objective({"clip": Clip()}, {"clip": 1.0})


def scales(student, decay: float | None) -> dict[str, float]:
    """The factor of the learning rate of every parameter that is trained, each found once."""
    groups = parameter_groups(student, CLIP, 0.2, decay)
    held = [(id(p), g["lr_scale"]) for g in groups for p in g["params"]]
    assert len(held) == len(dict(held))
    names = {id(p): name for name, p in student.named_parameters()}
    return {names[key]: scale for key, scale in held if key in names}


def transformer_distance(name: str, layers: dict[str, int], last: tuple[str, ...]) -> int:
    """By hand: what comes last has 0, the last block 1, the first L, what comes before it L + 1."""
    side, _, rest = name.removeprefix("model.").partition(".")
    if side not in layers or any(part in last for part in rest.split(".")[:2]):
        return 0
    numbers = [int(part) for part in rest.split(".")[:4] if part.isdigit()]
    return layers[side] - numbers[0] if numbers else layers[side] + 1


def test_rates_of_a_vit_and_a_text_transformer_by_another_count():
    student = new_student(tiny())
    last = ("ln_post", "proj", "ln_final", "text_projection")
    expected = {name: transformer_distance(name, {"visual": 3, "text": 2}, last) for name, _ in student.named_parameters()}
    assert expected["model.visual.conv1.weight"] == 4
    assert expected["model.text.token_embedding.weight"] == 3
    assert expected["model.visual.transformer.resblocks.2.mlp.c_fc.bias"] == 1
    assert expected["model.logit_scale"] == expected["model.visual.proj"] == 0
    assert distances(student) == expected
    assert scales(student, 0.7) == pytest.approx({name: 0.7**distance for name, distance in expected.items()})


@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler"])
def test_rates_of_a_bert_tower_by_another_count(tmp_path, pooler):
    made = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    made |= {"vocab_size": 64, "max_position_embeddings": 20, "type_vocab_size": 2, "pad_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps({**made, "architectures": ["BertModel"]}))
    config = small.config()
    config["model_cfg"]["text_cfg"] = {
        "context_length": 16, "hf_model_name": str(tmp_path), "hf_tokenizer_name": str(minilm_folder()), "hf_proj_type": "linear",
        "hf_pooler_type": pooler,
    }  # fmt: skip
    student = new_student(config)
    layers, last = {"visual": 4, "text": 4}, ("ln_post", "proj", "pooler")
    expected = {name: transformer_distance(name, layers, last) for name, _ in student.named_parameters()}
    assert expected["model.text.transformer.embeddings.word_embeddings.weight"] == 5
    assert expected["model.text.transformer.encoder.layer.0.output.dense.weight"] == 4
    assert any("pooler" in name for name in expected) == (pooler == "cls_pooler")
    assert distances(student) == expected


def test_rates_of_a_resnet_by_another_count():
    student = new_student(small.config({"layers": [1, 2, 1, 1], "width": 16, "head_width": 32}))
    place = {"layer1.0": 5, "layer2.0": 4, "layer2.1": 3, "layer3.0": 2, "layer4.0": 1}
    for name, distance in distances(student).items():
        if name.startswith("model.visual."):
            rest = name.removeprefix("model.visual.")
            expected = 0 if rest.startswith("attnpool") else place.get(".".join(rest.split(".")[:2]), 6)
            assert distance == expected, name


@pytest.mark.parametrize("tower", ["mobilenetv3_small_050", "resnet18", "vit_tiny_patch16_224"])
def test_rates_of_a_timm_tower_are_timms_own(tower):
    student = new_student(small.config({"timm_model_name": tower, "timm_pool": "" if "vit" in tower else "avg", "timm_proj": "linear"}))
    trunk = student.model.visual.trunk
    theirs = {id(p): g["lr_scale"] for g in param_groups_layer_decay(trunk, layer_decay=0.6) for p in g["params"]}
    names = {f"model.visual.trunk.{name}": theirs[id(p)] for name, p in trunk.named_parameters()}
    ours = scales(student, 0.6)
    assert {name: ours[name] for name in names} == pytest.approx(names)
    assert len(set(names.values())) > 8
    head = [name for name in ours if name.startswith("model.visual.head")]
    assert head
    assert all(ours[name] == 1.0 for name in head)


def test_no_decay_of_rates_is_the_plain_grouping():
    student = new_student(tiny())
    assert parameter_groups(student, CLIP, 0.2, 1.0) == parameter_groups(student, CLIP, 0.2, None)
    assert set(scales(student, None).values()) == {1.0}


class Game(Term):
    """A value that one parameter raises and another lowers, each at a rate of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.slow = (nn.Parameter(torch.zeros(())) for _ in range(3))

    def forward(self, batch) -> dict[str, torch.Tensor]:
        return {"game": self.up + self.down + self.slow}

    def parameter_groups(self):
        fixed = {"fixed_lr": 0.25, "weight_decay": 0.0}
        return [
            {"params": [self.up], "maximize": True, **fixed},
            {"params": [self.down], **fixed},
            {"params": [self.slow], "lr_scale": 0.5},
        ]


def test_ascent_and_fixed_rates():
    term = Game()
    optimiser = build_optimiser(new_student(tiny()), Objective({"game": term}, {"game": 1.0}), Optimiser(layer_decay=0.5, eps=1e-12))
    for rate in (0.1, 0.0):
        set_rate(optimiser, rate)
        rates = {id(p): g["lr"] for g in optimiser.param_groups for p in g["params"]}
        assert [rates[id(p)] for p in (term.up, term.down, term.slow)] == [0.25, 0.25, 0.5 * rate]
        term(None)["game"].backward()
        optimiser.step()
        optimiser.zero_grad()
    # Adam's step of a gradient that does not change is the rate.
    assert [float(p.detach()) for p in (term.up, term.down, term.slow)] == pytest.approx([0.5, -0.5, -0.05])


@pytest.mark.parametrize("projections", [False, True])
@pytest.mark.parametrize("frozen", ["image", "text"])
def test_a_frozen_tower_with_and_without_its_projection(tiny_recipe, tmp_path, frozen, projections):
    stage = {"stages.0.freeze": [frozen], "stages.0.freeze_projections": projections, "stages.0.epochs": 1}
    job = make_job(with_settings(tiny_recipe, {**stage, "max_steps": 2}), tmp_path, Runtime(), quiet=True)
    job.evaluators = []
    before = {name: value.clone() for name, value in job.student.state_dict().items()}
    Trainer(job).run()
    side, last = {"image": ("visual", "proj"), "text": ("text", "text_projection")}[frozen]
    inside = {name.removeprefix(f"model.{side}.") for name, value in before.items() if name.startswith(f"model.{side}.")}
    moved = {name for name, value in job.student.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.removeprefix(f"model.{side}.") for name in moved} & inside == (set() if projections else {last})
    assert len(moved) > 20


def test_nothing_left_to_learn_is_refused(tiny_recipe):
    with pytest.raises(UserError, match="something has to learn"):
        with_settings(tiny_recipe, {"stages.0.freeze": ["image", "text"], "stages.0.freeze_projections": True})


def test_two_frozen_towers_train_their_projections(tiny_recipe, tmp_path):
    recipe = with_settings(tiny_recipe, {"stages.0.freeze": ["image", "text"], "max_steps": 1, "student.vocabulary": "full"})
    job = make_job(recipe, tmp_path, Runtime(), quiet=True)
    before = {name: value.clone() for name, value in job.student.state_dict().items()}
    Trainer(job).run()
    moved = {name for name, value in job.student.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"model.logit_scale", "model.visual.proj", "model.text.text_projection"}
