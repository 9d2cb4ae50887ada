"""Manual inheritance of open_clip's transformers."""

from __future__ import annotations

import copy

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipling.errors import UserError
from clipling.models.hub import new_student, open_student, save_student
from clipling.surgery import inherit_plan
from clipling.surgery.inherit import inherit
from clipling.surgery.inherit_plan import kept_layers
from tests.surgery.small import changed, config, embeddings, images, source, words

SOURCE = config()
SMALLER = changed(SOURCE, vision={"width": 16, "layers": 2}, text={"width": 16, "heads": 2, "layers": 3, "mlp_ratio": 1.5})


@pytest.mark.parametrize(
    ("given", "own", "indices"),
    [  # the reference's table, methods/core.md section 1.2
        (12, 9, range(9)),
        (12, 6, range(0, 12, 2)),
        (9, 6, range(6)),
        (12, 10, range(10)),
        (12, 3, [0, 4, 8]),
        (24, 10, range(0, 20, 2)),
    ],
)
def test_depth_of_the_reference(given, own, indices):
    assert kept_layers(given, own, "interval_front") == list(indices)
    assert kept_layers(given, own, "first") == list(range(own))


@pytest.mark.parametrize(("given", "own"), [(12, 9), (12, 6), (12, 5), (7, 7), (6, 2), (24, 10)])
def test_uniform_depth(given, own):
    kept = kept_layers(given, own, "uniform")
    exact = np.linspace(0, given - 1, own)
    assert kept[0] == 0
    assert kept[-1] == given - 1
    assert sorted(set(kept)) == kept
    assert np.abs(exact - kept).max() <= 0.5
    assert kept_layers(given, 1, "uniform") == [0]


def test_depths_that_cannot_be():
    with pytest.raises(UserError, match="4 layers cannot inherit from one of 3"):
        kept_layers(3, 4, "first")
    with pytest.raises(UserError, match="Did you mean 'uniform'"):
        kept_layers(3, 2, "unifrom")


def test_a_student_of_the_same_shape_is_its_source():
    teacher = source(SOURCE)
    for width in ("position", "magnitude"):
        student, report = inherit(teacher, SOURCE, width=width, seed=5)
        assert student.training
        for ours, theirs in zip(embeddings(student), embeddings(teacher)):
            assert torch.equal(ours, theirs)
        assert student.logit_scale == teacher.logit_scale
        assert student.preprocess_cfg == teacher.preprocess_cfg
        assert report.fresh == {}


@torch.no_grad()
def test_attention_is_cut_by_heads():
    """The cut attention equals the full one with the other heads' outputs and the other channels zeroed."""
    teacher = source(SOURCE)
    student, _ = inherit(teacher, SMALLER)
    full, cut = (copy.deepcopy(s.model.visual.transformer.resblocks[1 if s is student else 2].attn) for s in (teacher, student))
    x = torch.randn(2, 5, 32)
    x[..., 16:] = 0
    full.out_proj.weight[:, 16:] = 0  # heads 2 and 3
    expected = full(x, x, x, need_weights=False)[0][..., :16]
    small = x[..., :16]
    torch.testing.assert_close(cut(small, small, small, need_weights=False)[0], expected)
    # what a plain top-left slice would give differs
    assert not torch.allclose(cut.in_proj_weight, full.in_proj_weight[:48, :16])


def masked_norm(norm: nn.LayerNorm, x: Tensor, kept: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[..., kept] = F.layer_norm(x[..., kept], (len(kept),), norm.weight[kept], norm.bias[kept], norm.eps)
    return out


def masked_blocks(blocks: list[nn.Module], units: dict[str, Tensor], x: Tensor, causal: bool, act=F.gelu) -> Tensor:
    """The source's blocks at full width, with all but the kept units zeroed."""
    hidden = units["hidden"]
    for i, block in enumerate(blocks):
        n, length, width = x.shape
        q, k, v = (
            part.view(n, length, -1, 8).transpose(1, 2)
            for part in F.linear(masked_norm(block.ln_1, x, hidden), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        heads = torch.zeros(mixed.shape[1]).index_fill(0, units[f"transformer.resblocks.{i}.heads"], 1)
        out = block.attn.out_proj((mixed * heads[:, None, None]).transpose(1, 2).reshape(n, length, width))
        x = x + out * torch.zeros(width).index_fill(0, hidden, 1)
        inner = act(block.mlp.c_fc(masked_norm(block.ln_2, x, hidden)))
        inner = inner * torch.zeros(inner.shape[-1]).index_fill(0, units[f"transformer.resblocks.{i}.mlp"], 1)
        x = x + block.mlp.c_proj(inner) * torch.zeros(width).index_fill(0, hidden, 1)
    return x


@pytest.mark.parametrize("width", ["position", "magnitude"])
@torch.no_grad()
def test_cut_towers_equal_masked_full_width_ones(width):
    teacher = source(SOURCE)
    student, report = inherit(teacher, SMALLER, width=width, depth="uniform")
    assert report.image.layers == [[0, 3]]
    assert report.text.layers == [[0, 2, 3]]
    units, tower = report.image.units, teacher.model.visual
    assert (width == "position") == torch.equal(units["hidden"], torch.arange(16))
    x = tower.conv1(images()).flatten(2).transpose(1, 2)
    x = torch.cat([tower.class_embedding.expand(3, 1, -1), x], 1) + tower.positional_embedding
    x = masked_norm(tower.ln_pre, x, units["hidden"])
    x = masked_blocks([tower.transformer.resblocks[i] for i in (0, 3)], units, x, causal=False)
    expected = masked_norm(tower.ln_post, x[:, 0], units["hidden"]) @ tower.proj
    found, text = embeddings(student)
    torch.testing.assert_close(found, F.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)

    units, tower = report.text.units, teacher.model.text
    x = tower.token_embedding(words()) + tower.positional_embedding
    x = masked_blocks([tower.transformer.resblocks[i] for i in (0, 2, 3)], units, x, causal=True)
    pooled = masked_norm(tower.ln_final, x, units["hidden"])[torch.arange(3), words().argmax(-1)]
    torch.testing.assert_close(text, F.normalize(pooled @ tower.text_projection, dim=-1), rtol=1e-4, atol=1e-5)


def test_every_element_comes_from_the_source():
    teacher = source(SOURCE)
    with torch.no_grad():
        for value in teacher.model.state_dict().values():
            value.fill_(7.0)
    student, report = inherit(teacher, SMALLER)
    assert all(bool((value == 7).all()) for value in student.model.state_dict().values())
    for side, cut in (("visual", report.image), ("text", report.text)):
        tower = getattr(student.model, side)
        assert cut.inherited == sum(value.numel() for value in tower.state_dict().values())
    assert report.inherited_elements + 1 == sum(p.numel() for p in student.model.parameters())  # and the logit scale


def test_the_report_tells_it():
    _, report = inherit(source(SOURCE), SMALLER, logit_scale="fresh")
    lines = "\n".join(report.lines())
    for part in (
        "the first are kept (--width position)",
        "2 of 4 layers (numbers 0 2, counted from 0)",
        "3 of 4 layers (numbers 0 1 2, counted from 0)",
        "16 of 32 hidden channels",
        "4 of 8 attention heads, in 2 places together",
        f"text tower: all its {report.text.inherited:,} numbers (token rows and buffers included) come from the source",
    ):
        assert part in lines
    assert "logit_scale is fresh: as asked" in lines
    assert "all 4 layers" not in lines


@pytest.mark.parametrize("broken", ["missing", "wrong set", "wrong rank"])
def test_a_broken_rule_is_noticed(monkeypatch, broken):
    rules = inherit_plan.image_transformer

    def wrong(tower):
        layout = rules(tower)
        if broken == "missing":
            del layout.axes["ln_post.bias"]
        elif broken == "wrong set":
            layout.axes["ln_post.bias"] = layout.axes["proj"][1:]
        else:
            layout.axes["proj"] = layout.axes["proj"][:1]
        return layout

    monkeypatch.setattr(inherit_plan, "image_transformer", wrong)
    with pytest.raises(UserError, match="inheritance"):
        inherit(source(SOURCE), SMALLER)


def test_a_smaller_shared_space_is_cut_alike_in_both_towers():
    teacher = source(SOURCE)
    less = changed(SOURCE, embed_dim=10)
    with pytest.raises(UserError, match=r"embed_dim is 10, the source's is 24.*cut_embed=True"):
        inherit(teacher, less)
    student, report = inherit(teacher, less, cut_embed=True, width="magnitude")
    size = teacher.model.visual.proj.square().sum(0) + teacher.model.text.text_projection.square().sum(0)
    kept = size.topk(10).indices.sort().values
    assert torch.equal(report.image.units["embed"], kept)
    assert torch.equal(report.text.units["embed"], kept)
    assert torch.equal(student.model.visual.proj, teacher.model.visual.proj[:, kept])
    assert torch.equal(student.model.text.text_projection, teacher.model.text.text_projection[:, kept])
    with pytest.raises(UserError, match="must not be larger"):
        inherit(teacher, changed(SOURCE, embed_dim=32), cut_embed=True)


def test_towers_from_two_sources():
    one, other = source(SOURCE, 1), source(SOURCE, 2)
    student, _ = inherit(one, SOURCE, text_from=other)
    image, text = embeddings(student)
    assert torch.equal(image, embeddings(one)[0])
    assert torch.equal(text, embeddings(other)[1])
    with pytest.raises(UserError, match="embeddings of 24 and 20"):
        inherit(one, SOURCE, text_from=source(config(embed_dim=20)))
    with pytest.raises(UserError, match="differ in quick_gelu"):
        inherit(one, SOURCE, text_from=source({**SOURCE, "model_cfg": {**SOURCE["model_cfg"], "quick_gelu": True}}))


def test_activation_and_normalisation_are_taken_over():
    teacher = source({**SOURCE, "model_cfg": {**SOURCE["model_cfg"], "quick_gelu": True}})
    target = {"model_cfg": {**SMALLER["model_cfg"], "quick_gelu": False}, "preprocess_cfg": {"mean": [0, 0, 0], "resize_mode": "squash"}}
    student, _ = inherit(teacher, target)
    assert student.config["model_cfg"]["quick_gelu"] is True
    assert type(student.model.visual.transformer.resblocks[0].mlp.gelu) is type(teacher.model.visual.transformer.resblocks[0].mlp.gelu)
    assert student.preprocess_cfg["mean"] == [0.4, 0.5, 0.6]
    assert student.preprocess_cfg["std"] == [0.3, 0.2, 0.1]
    assert student.preprocess_cfg["resize_mode"] == "squash"


def test_another_picture_size_resamples_the_positions(tmp_path):
    teacher = source(SOURCE)
    save_student(teacher, tmp_path)
    larger = changed(SOURCE, vision={"image_size": 48})
    student, _ = inherit(teacher, larger)
    stock = new_student(larger, init={"model": str(tmp_path)})  # open_clip's own resampling
    assert torch.equal(student.model.visual.positional_embedding, stock.model.visual.positional_embedding)
    assert torch.equal(embeddings(student, 48)[0], embeddings(stock, 48)[0])


def test_a_shorter_context_keeps_the_first_places():
    teacher = source(SOURCE)
    student, _ = inherit(teacher, changed(SOURCE, text={"context_length": 18}), width="magnitude")
    rows = words()[:, :18]
    with torch.no_grad():
        torch.testing.assert_close(student.encode_text(rows), teacher.encode_text(rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision": {"patch_size": 16}}, "patch_size is 16 in the target and 8 in the source"),
        ({"vision": {"head_width": 16}}, "head_width is 16 in the target and 8"),
        ({"text": {"heads": 6}}, "heads are 4 wide in the target and 8 in the source"),
        ({"text": {"vocab_size": 65}}, "vocab_size is 65 in the target and 64"),
        ({"vision": {"pool_type": "avg"}}, "pool_type is 'avg'"),
        ({"vision": {"width": 40}}, "hidden of the target has 40 units, but the source has 32"),
        ({"vision": {"layers": 5}}, "5 layers cannot inherit from one of 4"),
        ({"text": {"context_length": 21}}, "positions of the target has 21 units, but the source has 20"),
        ({"vision": {"ls_init_value": 0.1}}, "the source lacks 8 of the target's tensors"),
        ({"vision": {"timm_model_name": "test_resnet"}}, "timm_model_name|kind|family"),
    ],
)
def test_what_cannot_be_inherited(change, message):
    with pytest.raises(UserError, match=message):
        inherit(source(SOURCE), changed(SOURCE, **change))


def test_wrong_options():
    teacher = source(SOURCE)
    for options, message in (
        ({"width": "magnitud"}, "Did you mean 'magnitude'"),
        ({"logit_scale": "copy"}, "logit_scale is 'copy'"),
        ({"width": "first_order"}, "needs `importance`"),
        ({"importance": {}}, "no other width does"),
    ):
        with pytest.raises(UserError, match=message):
            inherit(teacher, SMALLER, **options)


def test_a_restricted_vocabulary_is_inherited_whole():
    from tests.models.making import tiny

    teacher = new_student(tiny(layers=1), vocabulary=["a dog", "a cat"]).eval()
    student, _ = inherit(teacher, tiny(layers=1))
    rows = teacher.tokenise(["a dog", "an unseen elephant"])
    student.eval()
    with torch.no_grad():
        assert torch.equal(student.encode_text(rows), teacher.encode_text(rows))


def test_saved_students_open_again_also_in_stock_open_clip(tmp_path):
    student, _ = inherit(source(SOURCE), SMALLER)
    save_student(student, tmp_path)
    stock = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    with torch.no_grad():
        stock_pair = stock.encode_image(images(), normalize=True), stock.encode_text(words(), normalize=True)
    ours, again = embeddings(student), embeddings(open_student(tmp_path))
    for a, b, c in zip(ours, again, stock_pair):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-6)


def test_stages_inherit_from_each_other():
    first, _ = inherit(source(SOURCE), changed(SOURCE, vision={"width": 24}, text={"layers": 2}))
    second, report = inherit(first, SMALLER | {"model_cfg": changed(SMALLER, text={"layers": 2})["model_cfg"]})
    assert report.image.of_units["hidden"] == 24
    assert second.sizes()["image"] < first.sizes()["image"]
