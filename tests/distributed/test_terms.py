"""Two gloo processes with half of the rows each equal one process: loss, and every gradient, of every term.

The processes are started once for all terms and gather with torch's own differentiable `all_gather`.
"""

from __future__ import annotations

import time
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from clipling.objectives.contrastive import Clip, SigLip
from clipling.objectives.ping import Ping
from clipling.objectives.term import Batch, Neighbours, Objective, View

ROWS, PAIRS, WORLD = 12, 16, 2
DIMS = {"student": 6, "image": 9, "text": 5}
PARTS = ("nn", "xnn", "self")

TERMS = {
    "clip": lambda: {"clip": Clip()},
    "clip-positive": lambda: {"clip": Clip("positive")},
    "siglip": lambda: {"siglip": SigLip()},
    "siglip-positive": lambda: {"siglip": SigLip("positive")},
    "ping": lambda: {"ping": Ping(PARTS)},
    "ping-separate-symmetric": lambda: {"ping": Ping(PARTS, separate=True, symmetric=True)},
    "clip+ping": lambda: {"clip": Clip(), "ping": Ping(PARTS)},
}


def tensors() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)

    def unit(size):
        return F.normalize(torch.randn(ROWS, size, generator=rng, dtype=torch.float64), dim=1)

    same = torch.zeros(ROWS, ROWS, dtype=torch.bool)
    same[1, 8] = same[8, 1] = same[2, 3] = same[3, 2] = True
    made = {"image": unit(6), "text": unit(6), "pair": torch.randperm(PAIRS, generator=rng)[:ROWS], "same": same}
    for space in ("image", "text", "self"):
        others = torch.randint(0, PAIRS, (ROWS, 3), generator=rng)
        ids = made["pair"].clone() if space == "self" else others[:, 0].clone()
        missing = [0, 1, 2, 3, 4, 7] if space == "image" else [5]  # five of the first six rows, one of the last six
        ids[missing], others[missing] = -1, -1
        made |= {f"{space}.ids": ids, f"{space}.others": others, f"{space}.image": unit(9), f"{space}.text": unit(5)}
    return made


def loss_and_gradients(name: str, rows: slice, gather) -> dict[str, torch.Tensor]:
    """Of the local loss on `rows`; features that belong to other processes have no gradient here."""
    made = tensors()
    torch.manual_seed(0)
    terms = TERMS[name]()
    for term in terms.values():
        term.setup(DIMS)
    values = {"clip": ["clip"], "siglip": ["siglip"], "ping": list(PARTS)}
    objective = Objective(terms, {term: dict.fromkeys(values[term], 1.5) for term in terms}).double()
    leaf = {side: made[side][rows].clone().requires_grad_() for side in ("image", "text")}
    leaf |= {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in (("log_scale", 2.0), ("bias", -3.0))}
    view = View(leaf["image"], leaf["text"], gather(leaf["image"]), gather(leaf["text"]))
    spaces = {
        space: Neighbours(*(made[f"{space}.{field}"] for field in ("ids", "others", "image", "text")))
        for space in ("image", "text", "self")
    }
    batch = Batch(
        {"main": view}, leaf["log_scale"].exp(), made["pair"][rows], made["pair"], first=rows.start or 0,
        bias=leaf["bias"], same=made["same"][rows], neighbours=spaces,
    )  # fmt: skip
    loss, _ = objective(batch)
    loss.backward()
    found = {"loss": loss.detach()} | {name: value.grad for name, value in leaf.items()}
    found |= {f"parameter.{name}": value.grad for name, value in objective.named_parameters()}
    return {name: value for name, value in found.items() if value is not None}


def worker(rank: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    from torch.distributed.nn.functional import all_gather

    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/meet", WORLD), rank=rank, world_size=WORLD)
    share = ROWS // WORLD
    rows = slice(rank * share, (rank + 1) * share)
    for name in TERMS:
        found = loss_and_gradients(name, rows, lambda x: torch.cat(all_gather(x)))
        torch.save(found, f"{folder}/{name}.{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> dict[str, list[dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("two")
    context = mp.spawn(worker, args=(str(folder),), nprocs=WORLD, join=False)
    until = time.monotonic() + 60
    while not context.join(timeout=1):
        if time.monotonic() > until:
            for process in context.processes:
                process.kill()
            pytest.fail("two processes were not done after 60 s")
    return {name: [torch.load(folder / f"{name}.{rank}.pt", weights_only=True) for rank in range(WORLD)] for name in TERMS}


@pytest.mark.parametrize("name", TERMS)
def test_two_processes_equal_one(two, name):
    one, ranks = loss_and_gradients(name, slice(0, ROWS), lambda x: x), two[name]
    assert {"loss", "image", "text"} <= set(one)
    for key, value in one.items():
        if key in ("image", "text"):  # what DDP's mean makes of the gradient of a row that one process holds
            both = torch.cat([rank[key] for rank in ranks]) / WORLD
        else:
            both = sum(rank[key] for rank in ranks) / WORLD
        torch.testing.assert_close(both, value, rtol=0, atol=1e-12, msg=lambda said, key=key: f"{key}: {said}")


def test_the_processes_hold_different_losses(two):
    """Otherwise the mean would show nothing."""
    for ranks in two.values():
        assert abs(ranks[0]["loss"] - ranks[1]["loss"]) > 1e-3
