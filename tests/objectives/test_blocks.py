"""Losses in blocks of rows: equal to the plain losses, masks and all, and never an N x N matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipling.engine import batch as engine_batch
from clipling.engine.batch import same_mask
from clipling.objectives import infonce
from clipling.objectives.affinity import Affinity
from clipling.objectives.clip_kd import AFD, CRD, ICL
from clipling.objectives.contrastive import Clip, SigLip
from clipling.objectives.ping import Ping
from clipling.objectives.sample import batch_of, leaves, sample

DIMS = {"student": 6, "image": 9, "text": 5, "teacher.a": 7}
ROWS = 24
TERMS = {
    "clip": lambda: Clip(),
    "clip positive": lambda: Clip("positive"),
    "siglip": lambda: SigLip(),
    "siglip positive": lambda: SigLip("positive"),
    "affinity": lambda: Affinity(),
    "affinity kl": lambda: Affinity(kl=True),
    "crd": lambda: CRD(),
    "icl": lambda: ICL(),
    "afd": lambda: AFD(),
    "ping": lambda: Ping(("nn", "xnn", "self")),
    "ping symmetric": lambda: Ping(("nn", "xnn"), symmetric=True, separate=True),
}


def loss_and_gradients(term, tensors, rows):
    local = leaves(tensors, rows)
    whole = {
        name: torch.cat([tensors[name][: rows.start], value, tensors[name][rows.stop :]]) for name, value in local.items() if value.ndim
    }
    found = term(batch_of(tensors, local, {**local, **whole}, rows))
    loss = sum(found.values())
    wanted = [*local.values(), *term.parameters()]
    return loss.detach(), torch.autograd.grad(loss, wanted, allow_unused=True)


@pytest.mark.parametrize("rows", [slice(0, ROWS), slice(8, 16)], ids=["one process", "a part"])
@pytest.mark.parametrize("limit", [1, 5 * ROWS, 7 * ROWS + 3])
@pytest.mark.parametrize("name", TERMS)
def test_blocks_equal_the_plain_loss(name, limit, rows, monkeypatch):
    torch.manual_seed(0)
    term = TERMS[name]()
    term.setup(DIMS)
    tensors = {n: t.double() if t.is_floating_point() else t for n, t in sample(term.needs, DIMS, ROWS, seed=3).items()}
    term.double()
    plain, gradients = loss_and_gradients(term, tensors, rows)
    monkeypatch.setattr(infonce, "MOST_LOGITS", limit)
    assert len(infonce.row_blocks(rows.stop - rows.start, ROWS)) > 1
    blocked, found = loss_and_gradients(term, tensors, rows)
    torch.testing.assert_close(blocked, plain, rtol=1e-12, atol=1e-12)
    assert sum(g is not None for g in found) >= 2
    for one, other in zip(found, gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


class Largest(TorchDispatchMode):
    """The most elements that any tensor has which is made meanwhile."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.elements = max(
            [
                self.elements,
                *(t.untyped_storage().nbytes() // 4 for t in tree_leaves(made) if isinstance(t, torch.Tensor) and not t.is_sparse),
            ]
        )
        return made


@pytest.mark.parametrize("name", ["clip", "siglip", "affinity", "ping"])
def test_no_tensor_is_larger_than_a_block(name, monkeypatch):
    rows, limit = 1024, 32 * 1024
    monkeypatch.setattr(infonce, "MOST_LOGITS", limit)
    monkeypatch.setattr(engine_batch, "MOST_LOGITS", limit)
    torch.manual_seed(0)
    term = TERMS[name]()
    term.setup(DIMS)
    tensors = sample(term.needs, DIMS, rows, seed=3)
    links = [[7]] * 3 + [[]] * (4 * rows)
    pair = np.arange(rows)
    with Largest() as largest:
        local = leaves(tensors, slice(0, rows))
        batch = batch_of({**tensors, "same": torch.zeros(1)}, local, local, slice(0, rows))
        batch.same = same_mask(links, pair, pair, 0)
        sum(term(batch).values()).backward()
    assert batch.same._nnz() == 6
    assert largest.elements <= limit + rows * 16, "something of the size of N x N was made"


def test_a_sparse_mask_holds_the_cells_of_the_dense_one(monkeypatch):
    rng = np.random.default_rng(0)
    links = [sorted(set(rng.integers(0, 9, size=rng.integers(0, 3)).tolist())) for _ in range(40)]
    pair = rng.permutation(40)
    for first in (0, 20):
        local = pair[first : first + 20]
        dense = same_mask(links, local, pair, first)
        monkeypatch.setattr(engine_batch, "MOST_LOGITS", 100)
        sparse = same_mask(links, local, pair, first)
        monkeypatch.undo()
        assert sparse.is_sparse
        assert torch.equal(sparse.to_dense(), dense)
        for one, other in zip(infonce.cells(sparse), infonce.cells(dense), strict=True):
            assert torch.equal(one, other)


def test_small_batches_take_the_plain_path_bit_for_bit():
    tensors = sample(Clip.needs, DIMS, ROWS, seed=1)
    image, text, scale = tensors["view.main.image"], tensors["view.main.text"], tensors["scale"]
    target = torch.arange(ROWS)
    plain = infonce.info_nce(infonce.similarity(image, text, scale), target)
    assert torch.equal(infonce.contrast(image, text, scale, target), plain)
