"""The restricted token table: what is kept, what unknown ids read, and that the saved model is a stock one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clipling.errors import UserError
from clipling.models.hub import new_student
from clipling.models.tokens import EOT, SOT
from clipling.models.vocabulary import DROPPED, RestrictedEmbedding, kept_ids
from tests.models.making import CAPTIONS, ODD, small_conv, tiny, tokens


@pytest.fixture(scope="module")
def full():
    return torch.randn(49408, 8, generator=torch.Generator().manual_seed(3))


def trained(full, ids, **options):
    """A restricted table after some training: every row has moved."""
    table = RestrictedEmbedding(full, kept_ids(ids), **options)
    with torch.no_grad():
        table.weight.add_(torch.randn(table.weight.shape, generator=torch.Generator().manual_seed(4)))
    return table.eval()


def test_kept_are_captions_bytes_start_and_end():
    kept = kept_ids(torch.tensor([[49406, 600, 700, 49407, 0], [49406, 700, 49407, 0, 0]]))
    assert kept.tolist() == [*range(512), 600, 700, 49406, 49407]


def test_rows_are_in_order_with_unknown_before_start_and_end_last(full):
    ids = torch.tensor([600, 700])
    table = RestrictedEmbedding(full, kept_ids(ids))
    assert table.weight.shape == (512 + 2 + 1 + 2, 8)
    assert torch.equal(table.weight[512:514], full[[600, 700]])
    assert torch.equal(table.weight[-2:], full[[SOT, EOT]])
    assert table.row_of[EOT] == table.row_of.max()
    assert table.unknown == len(table.weight) - 3
    assert bool((table.row_of[513:600] == table.unknown).all())


def test_unseen_ids_read_the_unknown_row(full):
    table = trained(full, torch.tensor([600]))
    out = table(torch.tensor([[600, 601, 30000, 5]]))[0]
    assert torch.equal(out[1], out[2])
    assert torch.equal(out[1], table.weight[table.unknown])
    assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("frozen_rest", [False, True])
def test_the_full_table_gives_the_same_for_every_id(full, frozen_rest):
    table = trained(full, torch.arange(500, 900, 7), frozen_rest=frozen_rest)
    stock = nn.Embedding.from_pretrained(table.expanded())
    every = torch.arange(49408)
    assert torch.equal(table(every), stock(every))


def test_a_frozen_rest_keeps_trained_rows_and_gets_no_gradient(full):
    table = RestrictedEmbedding(full, kept_ids(torch.tensor([600])), frozen_rest=True).train()
    ids = torch.tensor([[600, 601, 49406, 49407, 0]])
    assert torch.equal(table(ids), full[ids])
    table(ids).sum().backward()
    assert float(table.weight.grad.sum()) == 4 * 8  # 601 is frozen
    assert [name for name, _ in table.named_parameters()] == ["weight"]


def test_ids_are_dropped_in_training_only_and_never_the_marks(full):
    ids = tokens(400, longest=30)
    table = trained(full, ids)
    assert torch.equal(table(ids), table(ids))
    table.train()
    dropped = table._dropped(ids)
    words = (ids != 0) & (ids < SOT)
    assert not bool(dropped[~words].any())
    share = float(dropped[words].float().mean())
    assert DROPPED / 2 < share < DROPPED * 2
    assert bool((table(ids)[dropped] == table.weight[table.unknown]).all())


def test_drawing_depends_on_step_and_text_not_on_batch_or_padding(full):
    ids = tokens(400, longest=30)
    table = RestrictedEmbedding(full, kept_ids(ids)).train()
    first = table._dropped(ids)
    state = torch.get_rng_state()
    assert torch.equal(table._dropped(ids), first)
    assert torch.equal(table._dropped(ids[100:200]), first[100:200])
    assert torch.equal(table._dropped(ids[:, :33]), first[:, :33])
    assert torch.equal(torch.get_rng_state(), state)
    for step in (1, 2, 2**63 - 1):
        table.step = step
        other = table._dropped(ids)
        assert not torch.equal(other, first)
        both = int((other & first).sum())
        assert both < 0.3 * int(first.sum())  # another draw, not a shifted one


def test_a_restricted_student_starts_as_the_full_one():
    full = new_student(tiny(), seed=5).eval()
    student = new_student(tiny(), seed=5, vocabulary=CAPTIONS).eval()
    ids = student.tokenise(CAPTIONS)
    with torch.no_grad():
        assert torch.equal(student.encode_text(ids), full.encode_text(ids))
    sizes = student.sizes()
    assert sizes["token_rows"] == (len(kept_ids(ids)) + 1) * 64 < full.sizes()["token_rows"] / 50
    assert {k: sizes[k] for k in ("image", "text")} == {k: full.sizes()[k] for k in ("image", "text")}
    assert student.stock_state()["text.token_embedding.weight"].shape == (49408, 64)


def test_captions_or_their_ids():
    ids = new_student(tiny()).tokenise(CAPTIONS)
    by_text, by_ids = (new_student(tiny(), vocabulary=given).state_dict() for given in (CAPTIONS, ids))
    assert by_text.keys() == by_ids.keys()
    assert all(torch.equal(by_text[name], by_ids[name]) for name in by_text)


def test_every_row_is_trained_through_the_student():
    student = new_student(tiny(), vocabulary=CAPTIONS)
    student.encode_text(student.tokenise(CAPTIONS + ODD)).sum().backward()
    gradient = student.model.text.token_embedding.weight.grad
    assert bool(gradient[student.model.text.token_embedding.unknown].abs().sum() > 0)


def test_steps_reach_the_table():
    student = new_student(small_conv(), vocabulary=CAPTIONS)
    student.set_step(17)
    assert student.model.text.token_embedding.step == 17
    new_student(tiny()).set_step(17)  # nothing to tell, no error


def test_a_second_restriction_is_refused():
    student = new_student(tiny(), vocabulary=CAPTIONS)
    with pytest.raises(UserError, match="once"):
        student.restrict_vocabulary(tokens(3))
