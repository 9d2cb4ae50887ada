"""PING against its formula written as python loops, its masks, its parts, and what must not change anything."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clipling.objectives.contrastive import Clip
from clipling.objectives.ping import Ping
from clipling.objectives.term import Batch, Neighbours, Objective, View

DIMS = {"student": 6, "image": 9, "text": 5}
ALL = ("nn", "xnn", "self")


def unit(rng, *shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=rng, dtype=torch.float64), dim=-1)


def make_batch(rows: int = 10, seed: int = 0, missing: float = 0.2, pairs: int = 14, dense_same: bool = True) -> Batch:
    """Few pairs, so that neighbours are shared, in the batch, and among the others of a row; some rows have none."""
    rng = torch.Generator().manual_seed(seed)
    pair = torch.randperm(pairs, generator=rng)[:rows]

    def table() -> Neighbours:
        others = torch.randint(0, pairs, (rows, 3), generator=rng)
        others[torch.rand(rows, generator=rng) < 0.3, 2] = -1
        others[torch.rand(rows, generator=rng) < missing] = -1
        return Neighbours(others[:, 0].clone(), others, unit(rng, rows, 9), unit(rng, rows, 5))

    spaces = {"image": table(), "text": table()}
    spaces["self"] = Neighbours(pair.clone(), torch.zeros(rows, 0, dtype=torch.int64), unit(rng, rows, 9), unit(rng, rows, 5))
    spaces["self"].ids[torch.rand(rows, generator=rng) < missing] = -1
    same = torch.rand(rows, rows, generator=rng) < 0.05
    same = (same | same.T).fill_diagonal_(False) if dense_same else None
    image, text = unit(rng, rows, 6).requires_grad_(), unit(rng, rows, 6).requires_grad_()
    view = View(image, text, image, text)
    return Batch({"main": view}, torch.tensor(10.0), pair, pair, same=same, neighbours=spaces)


def part_of(batch: Batch, rows: slice) -> Batch:
    view = batch.main
    local = View(view.image[rows], view.text[rows], view.image_all, view.text_all)
    same = None if batch.same is None else batch.same[rows]
    return Batch({"main": local}, batch.scale, batch.pair[rows], batch.pair_all, 0, rows.start, None, same, batch.neighbours)


def make_ping(parts=ALL, **switches) -> Ping:
    torch.manual_seed(0)
    ping = Ping(parts, **switches)
    ping.setup(DIMS)
    with torch.no_grad():
        ping.log_scale["image"].fill_(1.1)
        ping.log_scale["text"].fill_(1.7)
    return ping.double()


def info_nce_by_loops(x, y, scale, batch, space, back=False) -> float:
    """Written from the rules, row by row; `back`: the bank's rows over the student's columns."""
    found, pair = batch.neighbours[space], batch.pair_all.tolist()
    ids, others = found.ids.tolist(), found.others.tolist()
    valid = [i for i in range(len(ids)) if ids[i] != -1]
    total = 0.0
    for i in valid:
        positives, counted = [], []
        for j in valid:
            query, target = (j, i) if back else (i, j)  # the student's row and the bank's row
            banned = ids[target] == pair[query] or ids[target] in others[query]
            banned = banned or (batch.same is not None and bool(batch.same[i, j]))
            if ids[i] == ids[j]:
                positives.append(j)
            if ids[i] == ids[j] or not banned:
                counted.append(j)
        logit = {j: scale * (y[i] @ x[j] if back else x[i] @ y[j]).item() for j in counted}
        log_sum = math.log(sum(math.exp(logit[j]) for j in counted))
        total += sum(log_sum - logit[j] for j in positives) / len(positives)
    return total / len(valid) if valid else 0.0


def ping_by_loops(ping: Ping, batch: Batch) -> dict[str, float]:
    unit_rows = lambda x: x / x.norm(dim=1, keepdim=True)  # noqa: E731
    heads = {name: head.weight.detach() for name, head in ping.heads.items()}
    features = {"image": batch.main.image_all.detach(), "text": batch.main.text_all.detach()}

    def one(side: str, bank: str, space: str) -> float:
        head = heads[f"{side}_to_{bank}" if ping.separate else f"to_{bank}"]
        x, y = unit_rows(features[side] @ head.T), getattr(batch.neighbours[space], bank)
        scale = math.exp(ping.log_scale[bank].item())
        there = info_nce_by_loops(x, y, scale, batch, space)
        return (there + info_nce_by_loops(x, y, scale, batch, space, back=True)) / 2 if ping.symmetric else there

    def nn_xnn(p: str, q: str) -> tuple[float, float]:
        nn = (one("image", "image", p) + one("text", "text", q)) / 2
        return nn, (one("image", "text", p) + one("text", "image", q)) / 2

    nn, xnn = nn_xnn("image", "text")
    return {"nn": nn, "xnn": xnn, "self": sum(nn_xnn("self", "self"))}


@pytest.mark.parametrize("switches", [{}, {"separate": True}, {"symmetric": True}, {"separate": True, "symmetric": True}])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), missing=st.sampled_from([0.0, 0.3, 0.9]), same=st.booleans())
def test_equals_the_formula_in_loops(switches, seed, missing, same):
    batch, ping = make_batch(seed=seed, missing=missing, dense_same=same), make_ping(**switches)
    values, expected = ping(batch), ping_by_loops(ping, batch)
    assert list(values) == list(ALL)
    for name, value in values.items():
        assert value.item() == pytest.approx(expected[name], abs=1e-9)


def test_masks_matter_in_these_batches():
    """The loops above would agree with a Ping without masks if the batches held nothing to mask."""
    batch, ping = make_batch(seed=1, missing=0.0), make_ping(symmetric=True)
    masked = ping(batch)
    for field, gone in (("others", torch.full((10, 3), -1)), ("ids", torch.arange(100, 110))):
        spaces = {space: Neighbours(**vars(found)) for space, found in batch.neighbours.items()}
        for found in spaces.values():
            setattr(found, field, gone)
        plain = ping(Batch(batch.views, batch.scale, batch.pair, batch.pair_all, same=batch.same, neighbours=spaces))
        assert plain["nn"].item() != pytest.approx(masked["nn"].item(), abs=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("cut", [[0, 5, 10], [0, 2, 4, 6, 8, 10], list(range(11))])
def test_unevenly_missing_rows_average_exactly(symmetric, cut):
    """Loss and gradient of heads, scales and features: the mean over equal parts is the whole, whoever misses rows."""
    batch, ping = make_batch(seed=3, missing=0.0), make_ping(symmetric=symmetric)
    for space in ("image", "text"):
        batch.neighbours[space].ids[:4] = -1  # the first process has next to nothing, its neighbour everything
    wanted = [batch.main.image, batch.main.text, *ping.parameters()]
    loss = sum(ping(batch).values())
    parts = [sum(ping(part_of(batch, slice(a, b))).values()) for a, b in pairwise(cut)]
    mean = sum(parts) / len(parts)
    assert mean.item() == pytest.approx(loss.item(), abs=1e-12)
    for one, other in zip(torch.autograd.grad(loss, wanted), torch.autograd.grad(mean, wanted)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_without_any_neighbour_everything_keeps_a_gradient_of_zero():
    batch, ping = make_batch(), make_ping()
    for found in batch.neighbours.values():
        found.ids.fill_(-1)
    loss = sum(ping(batch).values())
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in [*ping.parameters(), batch.main.image, batch.main.text])


def test_a_row_without_neighbour_is_neither_query_nor_target():
    batch, ping = make_batch(seed=2, missing=0.0), make_ping(("nn", "xnn"))
    for space in ("image", "text"):
        batch.neighbours[space].ids[4] = -1
    before = sum(ping(batch).values())
    (image, text) = torch.autograd.grad(before, [batch.main.image, batch.main.text])
    for grad in (image, text):
        assert not grad[4].any()
        assert grad[3].any()
    for space in ("image", "text"):
        batch.neighbours[space].image[4] = 7.0
        batch.neighbours[space].text[4] = -7.0
    assert torch.equal(sum(ping(batch).values()), before)


def test_targets_get_no_gradient():
    batch, ping = make_batch(), make_ping()
    banks = [getattr(found, bank).requires_grad_() for found in batch.neighbours.values() for bank in ("image", "text")]
    sum(ping(batch).values()).backward()
    assert all(bank.grad is None for bank in banks)
    assert all(p.grad is not None and p.grad.any() for p in [*ping.parameters(), batch.main.image, batch.main.text])


@pytest.mark.parametrize(
    ("parts", "spaces"),
    [(("nn",), {"image", "text"}), (("xnn",), {"image", "text"}), (("self",), {"self"}), (ALL, {"image", "text", "self"})],
)
def test_parts_cost_only_what_they_use(parts, spaces):
    ping, batch = make_ping(parts), make_batch()
    assert ping.needs == {"student.image", "student.text", *(f"neighbours.{space}" for space in spaces)}
    batch.neighbours = {space: batch.neighbours[space] for space in spaces}  # what is not needed is not there
    calls, query = [], ping._query
    ping._query = lambda batch, side, bank: calls.append((side, bank)) or query(batch, side, bank)
    values = ping(batch)
    assert list(values) == list(parts)
    assert len(calls) == len(set(calls)) == (2 if len(parts) == 1 and parts != ("self",) else 4)  # each projection at most once
    full = make_ping(ALL)(make_batch())
    assert all(values[part].item() == full[part].item() for part in parts)


@pytest.mark.parametrize("symmetric", [False, True])
def test_folded_and_written_out_projections_agree(symmetric, monkeypatch):
    found = []
    for folded in (True, False):
        monkeypatch.setattr("clipling.objectives.ping._folded", lambda weight, columns, folded=folded: folded)
        ping, batch = make_ping(symmetric=symmetric).double(), make_batch()
        sum(ping(batch).values()).backward()
        found.append([p.grad for p in [*ping.parameters(), batch.main.image, batch.main.text]])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def test_separate_heads_are_the_used_ones_only():
    assert set(make_ping(("nn",), separate=True).heads) == {"image_to_image", "text_to_text"}
    assert set(make_ping(("xnn",), separate=True).heads) == {"image_to_text", "text_to_image"}
    assert len(make_ping(ALL, separate=True).heads) == 4
    assert set(make_ping(("nn",)).heads) == {"to_image", "to_text"}
    for ping in (make_ping(("nn",), separate=True), make_ping(("xnn",), separate=True), make_ping(("self",))):
        sum(ping(make_batch()).values()).backward()
        assert all(p.grad is not None for p in ping.parameters())  # DDP stops on unused parameters


@pytest.mark.parametrize("symmetric", [False, True])
def test_order_of_pairs_means_nothing(symmetric):
    batch, ping = make_batch(seed=5), make_ping(symmetric=symmetric)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    view = View(*(getattr(batch.main, name)[order] for name in ("image", "text", "image_all", "text_all")))
    spaces = {
        space: Neighbours(found.ids[order], found.others[order], found.image[order], found.text[order])
        for space, found in batch.neighbours.items()
    }
    pair, same = batch.pair[order], batch.same[order][:, order]
    other = ping(Batch({"main": view}, batch.scale, pair, pair, same=same, neighbours=spaces))
    for name, value in ping(batch).items():
        assert value.item() == pytest.approx(other[name].item(), abs=1e-12)


def test_self_with_identity_heads_is_icl():
    """core.md section 6: interactive contrastive learning of CLIP-KD, a golden number (c = exp(2.65926))."""
    n = torch.arange(32, dtype=torch.float64).reshape(4, 8)
    image, text, bank_image, bank_text = (
        F.normalize(x, dim=1) for x in (torch.sin(1 + n), torch.cos(0.5 * n), torch.sin(2 + 1.3 * n), torch.cos(1 + 0.7 * n))
    )
    ping = Ping(("self",)).double()
    ping.setup({"student": 8, "image": 8, "text": 8})
    ping.double()
    with torch.no_grad():
        for head in ping.heads.values():
            head.weight.copy_(torch.eye(8))
        for scale in ping.log_scale.values():
            scale.fill_(2.659260036932778)
    pair = torch.arange(4)
    bank = Neighbours(pair, torch.full((4, 1), -1), bank_image, bank_text)
    batch = Batch({"main": View(image, text, image, text)}, torch.tensor(1.0), pair, pair, neighbours={"self": bank})
    value = ping(batch)["self"].item()
    c = math.exp(2.659260036932778)
    crossed = F.cross_entropy(c * image @ bank_text.T, pair) + F.cross_entropy(c * text @ bank_image.T, pair)
    inner = F.cross_entropy(c * image @ bank_image.T, pair) + F.cross_entropy(c * text @ bank_text.T, pair)
    assert crossed.item() / 2 == pytest.approx(3.1379263816785334, abs=1e-9)
    assert value == pytest.approx((crossed + inner).item() / 2, abs=1e-12)


@pytest.mark.parametrize("how", ["weight 0", "not built"])
def test_without_ping_it_is_plain_clip_bit_for_bit(how):
    results = []
    for guided in (False, True):
        batch = make_batch(seed=6)
        terms, weights = {"clip": Clip()}, {"clip": {"clip": 1.0}}
        if guided and how == "weight 0":
            terms["ping"], weights["ping"] = make_ping(), dict.fromkeys(ALL, 0.0)
        if how == "not built" and not guided:
            batch.neighbours = {}
        loss, values = Objective(terms, weights)(batch)
        assert torch.equal(loss, values["clip"])
        results.append([loss.detach(), *torch.autograd.grad(loss, [batch.main.image, batch.main.text])])
    assert all(torch.equal(one, other) for one, other in zip(*results))


def test_scales_start_and_stay_in_bounds_without_decay():
    ping = Ping()
    ping.setup(DIMS)
    assert all(scale.item() == pytest.approx(math.log(1 / 0.07)) for scale in ping.log_scale.values())
    with torch.no_grad():
        ping.log_scale["image"].fill_(9.0)
        ping.log_scale["text"].fill_(-1.0)
    ping.after_step(0)
    assert ping.log_scale["image"].item() == pytest.approx(math.log(100))
    assert ping.log_scale["text"].item() == 0
    (group,) = ping.parameter_groups()
    assert group["weight_decay"] == 0
    assert {id(p) for p in group["params"]} == {id(p) for p in ping.log_scale.values()}


@pytest.mark.parametrize("parts", [(), ("nm",), ("nn", "nn"), "nn"])
def test_wrong_parts_are_named(parts):
    with pytest.raises(ValueError, match="expected some of"):
        Ping(parts)


def test_fp16_bank_rows_and_autocast_are_taken_in_fp32():
    batch, ping = make_batch(), make_ping(("nn",)).float()
    batch.views = {"main": View(*(x.detach().float() for x in vars(batch.main).values()))}
    for found in batch.neighbours.values():
        found.image, found.text = found.image.half(), found.text.half()
    value = ping(batch)["nn"]
    assert value.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):  # heads may be rounded, similarities may not
        again = ping(batch)["nn"]
    assert again.dtype == torch.float32
    assert again.item() == pytest.approx(value.item(), rel=2e-2)
