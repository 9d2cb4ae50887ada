"""Two gloo processes with half of the rows each equal one process: loss, and every gradient, of the terms that learn from teachers, and
of the masks.

The processes are started once for all terms and gather with torch's own differentiable `all_gather`.
"""

from __future__ import annotations

import time
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from clipling.objectives.affinity import Affinity
from clipling.objectives.clip_kd import AFD, CRD, FD, GD, ICL, MFD
from clipling.objectives.reinforced import Reinforced
from clipling.objectives.sparsity import Sparsity
from clipling.objectives.term import Batch, Objective, TeacherView, View
from tests.objectives.golden import unit

ROWS, WORLD = 12, 2
DIMS = {"student": 6, "teacher.one": 5, "teacher.two": 6}
DIMS |= {f"{tower}.{key}": size for tower in ("image", "text") for key, size in (("layers", 2), ("width", 6), ("heads", 2), ("mlp", 8))}

TERMS = {
    "affinity": lambda: Affinity(),
    "affinity-concat-kl": lambda: Affinity(average="logits_concat", kl=True),
    "affinity-scales": lambda: Affinity(scale=5.0, teacher_scale=9.0),
    "crd": lambda: CRD("one"),
    "fd": lambda: FD(teacher="one"),
    "fd-same-size": lambda: FD(teacher="two"),
    "fd-image": lambda: FD(["image"], "one"),
    "mfd": lambda: MFD(teacher="one"),
    "gd": lambda: GD("one"),
    "gd-same-size": lambda: GD("two"),
    "gd-reference": lambda: GD("one", mode="reference"),
    "icl": lambda: ICL("one"),
    "icl-reference-positive": lambda: ICL("one", mode="reference", same="positive"),
    "afd": lambda: AFD("one"),
    "afd-reference": lambda: AFD("two", mode="reference"),
    "reinforced": lambda: Reinforced(parts=("distill",)),
    "reinforced-mix": lambda: Reinforced("mix", scales=[9.0, 5.0], parts=("distill",)),
    "sparsity": lambda: Sparsity(0.5, 10),
    "sparsity-apart": lambda: Sparsity(0.5, 10, shared=False),
}


def batch_of(rows: slice, gather) -> tuple[Batch, dict[str, torch.Tensor], torch.Tensor]:
    whole = {name: unit(ROWS, 6, seed) for seed, name in enumerate(("image", "text", "masked", "syn"))}
    leaf = {name: value[rows].clone().requires_grad_() for name, value in whole.items()}
    log_scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    every = {name: gather(value) for name, value in leaf.items()}
    views = {
        "main": View(leaf["image"], leaf["text"], every["image"], every["text"]),
        "masked": View(leaf["masked"], leaf["text"], every["masked"], every["text"]),
    }
    views |= {name: View(leaf["image"], leaf["syn"], every["image"], every["syn"]) for name in ("syn", "mix")}
    teachers = {}
    for seed, (name, size) in enumerate((("one", 5), ("two", 6))):
        image, text = unit(ROWS, size, 10 + seed), unit(ROWS, size, 20 + seed)
        syn = unit(ROWS, size, 30 + seed)
        texts = dict.fromkeys(("syn", "mix"), (syn[rows], syn))
        teachers[name] = TeacherView(7.0 + seed, image[rows], text[rows], image, text, texts)
    same = torch.zeros(ROWS, ROWS, dtype=torch.bool)
    same[1, 8] = same[8, 1] = same[2, 3] = same[3, 2] = True
    numbers = torch.arange(ROWS)
    batch = Batch(views, log_scale.exp(), numbers[rows], numbers, 8, rows.start, None, same[rows], teachers=teachers)
    return batch, leaf, log_scale


def loss_and_gradients(name: str, rows: slice, gather) -> dict[str, torch.Tensor]:
    """Of the local loss on `rows`; masks weigh the student's features, as they would in its towers."""
    torch.manual_seed(0)
    term = TERMS[name]()
    term.setup(DIMS)
    term.double()
    with torch.no_grad():  # gates that are neither open nor closed
        for gate in term.log_alpha.values() if isinstance(term, Sparsity) else ():
            gate.normal_()
    batch, leaf, log_scale = batch_of(rows, gather)
    kind = name.partition("-")[0]
    (loss, _) = Objective({kind: term}, {kind: {"distill" if kind == "reinforced" else kind: 1.5}})(batch)
    if kind == "sparsity":
        masks = term.masks(torch.Generator().manual_seed(3))
        loss = loss + (leaf["image"] * masks["image.hidden"]).square().mean() + (leaf["text"] * masks["text.hidden"]).square().mean()
    loss.backward()
    found = {"loss": loss.detach(), "log_scale": log_scale.grad} | {side: value.grad for side, value in leaf.items()}
    found |= {f"parameter.{one}": value.grad for one, value in term.named_parameters()}
    return {one: value for one, value in found.items() if value is not None}


def worker(rank: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    from torch.distributed.nn.functional import all_gather

    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/meet", WORLD), rank=rank, world_size=WORLD)
    share = ROWS // WORLD
    rows = slice(rank * share, (rank + 1) * share)
    for name in TERMS:
        torch.save(loss_and_gradients(name, rows, lambda x: torch.cat(all_gather(x))), f"{folder}/{name}.{rank}.pt")
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
    made = TERMS[name]()
    made.setup(DIMS)
    assert {f"parameter.{own}" for own, _ in made.named_parameters()} <= set(one)
    assert {"loss", "masked" if name == "mfd" else "image"} <= set(one)
    for key, value in one.items():
        if key in ("image", "text", "masked", "syn"):  # what DDP's mean makes of the gradient of a row that one process holds
            both = torch.cat([rank[key] for rank in ranks]) / WORLD
        else:
            both = sum(rank[key] for rank in ranks) / WORLD
        torch.testing.assert_close(both, value, rtol=1e-12, atol=1e-12, msg=lambda said, key=key: f"{key}: {said}")


def test_the_processes_hold_different_losses(two):
    """Otherwise the mean would show nothing."""
    for name, ranks in two.items():
        assert abs(ranks[0]["loss"] - ranks[1]["loss"]) > 1e-4 * abs(ranks[0]["loss"]), name


def test_the_masks_are_drawn_alike():
    one, other = (TERMS["sparsity"]() for _ in range(2))
    for term in (one, other):
        term.setup(DIMS)
        with torch.no_grad():
            for gate in term.log_alpha.values():
                gate.zero_()
    torch.manual_seed(0)
    first = one.masks(torch.Generator().manual_seed(3))
    torch.manual_seed(1)
    second = other.masks(torch.Generator().manual_seed(3))
    assert all(torch.equal(mask, second[name]) for name, mask in first.items())
    assert any((mask > 0).any() and (mask < 1).any() for mask in first.values())
