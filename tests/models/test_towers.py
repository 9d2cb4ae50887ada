"""Text towers without padding give what the stock towers give, values and gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import TextTransformer
from transformers import BertConfig

from clipling.models import towers
from clipling.models.hub import new_student
from tests.models import making

VOCABULARY = 300
tokens = partial(making.tokens, vocabulary=VOCABULARY)
SIZES = {"context_length": 77, "vocab_size": VOCABULARY, "width": 64, "heads": 2, "layers": 3, "output_dim": 32}


def made(**changes) -> TextTransformer:
    torch.manual_seed(0)
    tower = TextTransformer(**{**SIZES, **changes})
    with torch.no_grad():  # biases and gains other than their start values, so that a forgotten one is noticed
        for parameter in tower.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return tower


def assert_same(tower, ids, stock=None):
    """Unit features to 1e-6 and gradients to 1e-5 of their largest entry (some are 0 but for rounding)."""
    weight = torch.randn(len(ids), 32, generator=torch.Generator().manual_seed(1))
    results = []
    for forward in (stock or tower, lambda t: towers.text_features(tower, t)):
        tower.zero_grad()
        features = F.normalize(forward(ids), dim=-1)
        (features * weight).sum().backward()
        results.append((features.detach(), {n: p.grad.clone() for n, p in tower.named_parameters() if p.grad is not None}))
    (expected, expected_grads), (got, got_grads) = results
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    assert expected_grads.keys() == got_grads.keys()
    for name, gradient in expected_grads.items():
        worst = (gradient - got_grads[name]).abs().max()
        assert worst <= 1e-5 * gradient.abs().max() + 2e-6, (name, float(worst))


@pytest.mark.parametrize("rows", [1, 3, 40, 130])
def test_cut_and_grouped_equals_uncut(rows):
    assert_same(made(), tokens(rows))


@pytest.mark.parametrize(
    "changes",
    [
        {"ls_init_value": 0.3},
        {"pool_type": "eos", "eos_id": VOCABULARY - 1},
        {"pool_type": "first"},
        {"proj_bias": True},
        {"qk_norm": True, "scale_fc": True},  # open_clip's other kind of block
        {"layers": 1},
        {"output_dim": 32, "proj_type": "none", "width": 32},
        {"output_tokens": True},
    ],
)
def test_every_causal_tower(changes):
    tower = made(**changes)
    stock = (lambda t: tower(t)[0]) if changes.get("output_tokens") else None
    assert_same(tower, tokens(70), stock)


def test_gradient_checkpointing_still_works():
    tower = made()
    tower.set_grad_checkpointing()
    assert_same(tower, tokens(40))


def test_shorter_token_tensors_are_allowed():
    tower, ids = made(), tokens(9, longest=10)
    short = ids[:, :12]
    torch.testing.assert_close(towers.text_features(tower, short), tower(ids), atol=1e-5, rtol=1e-4)


def test_rows_without_padding_and_repeated_end_tokens():
    ids = tokens(4, longest=10)
    ids[0, 1:] = 5  # the end is missing: the start is the largest id
    ids[1, 30:] = VOCABULARY - 1
    ids[2] = VOCABULARY - 1
    ids[3] = 0
    assert_same(made(), ids)


def test_towers_that_see_the_padding_are_not_cut():
    """MobileCLIP's text tower attends both ways without a padding mask: another padding, other features."""
    tower, ids = made(no_causal_mask=True), tokens(5, longest=10)
    assert towers.needed_lengths(tower, ids) is None
    assert torch.equal(towers.text_features(tower, ids), tower(ids))
    assert not torch.allclose(tower(ids[:, :20]), tower(ids), atol=1e-3)  # so cutting would have been wrong
    assert towers.needed_lengths(made(pool_type="last"), ids) is None
    assert towers.needed_lengths(made(embed_cls=True), ids) is None


def test_a_masked_tower_is_cut():
    tower, ids = made(no_causal_mask=True, use_pad_mask=True), tokens(70, longest=10)
    assert int(towers.needed_lengths(tower, ids).max()) <= 12
    assert_same(tower, ids)


@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"])
def test_bert_towers_are_cut(tmp_path, pooler):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 200}
    BertConfig(**shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).save_pretrained(tmp_path)
    torch.manual_seed(0)
    tower = HFTextEncoder(str(tmp_path), 32, pooler_type=pooler, proj_type="linear", pretrained=False)
    ids = torch.randint(1, 200, (70, 40))
    ids[torch.arange(40) >= torch.randint(1, 20, (70, 1))] = 0
    assert int(towers.needed_lengths(tower, ids).max()) < 20
    assert_same(tower, ids)


def test_cut_length_is_what_is_run(monkeypatch):
    """No more positions go through the tower than the longest text of a group has."""
    seen = []
    real = towers._cut_forward
    monkeypatch.setattr(towers, "_cut_forward", lambda tower, ids, *more: seen.append(tuple(ids.shape)) or real(tower, ids, *more))
    ids = tokens(128, longest=60)
    towers.text_features(made(), ids)
    ends = (ids.argmax(-1) + 1).sort().values.chunk(4)
    assert seen == [(32, int(end[-1])) for end in ends]


def test_tokens_are_looked_up_once_for_all_groups_with_the_same_gradients():
    """Each look-up has a gradient of the size of the whole table."""
    tower, ids, looked_up = made(), tokens(128, longest=60), []
    tower.token_embedding.register_forward_hook(lambda *_: looked_up.append(1))
    weight = torch.randn(128, generator=torch.Generator().manual_seed(0))
    gradients = []
    for features in (towers.text_features(tower, ids), towers._cut_forward(tower, ids[:, :62])):
        tower.zero_grad()
        (features.sum(dim=1) * weight).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in tower.named_parameters()})
    assert len(looked_up) == 2
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-4, msg=name)


def test_students_text_embedding_is_stock():
    student = new_student(making.tiny()).eval()
    ids = making.tokens(50)
    with torch.no_grad():
        expected = student.model.encode_text(ids, normalize=True)
        torch.testing.assert_close(student.encode_text(ids), expected, atol=1e-6, rtol=0)
