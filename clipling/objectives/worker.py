"""One of several processes that compute a term together: `python -m clipling.objectives.worker FOLDER RANK WORLD`.

`run` starts them. They meet through a file (gloo), so no port is needed, and plain interpreters are started rather than
forked ones, so that a warm parent with threads is safe and a script needs no `__main__` guard.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from clipling.objectives.load import explain, load_object
from clipling.objectives.sample import batch_of, leaves
from clipling.objectives.term import Term


def measure(
    term: Term, tensors: Mapping[str, Tensor], rows: slice, gather: Callable[[Tensor], Tensor] = lambda x: x
) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """The values of a term on the local `rows`, and the gradient of their sum by name of feature, scale and parameter.

    `gather` makes [N, d] of all processes from the local [n, d], with gradient.
    """
    local = leaves(tensors, rows)
    whole = {name: gather(value) for name, value in sorted(local.items()) if name.startswith("view.")}
    term.zero_grad()
    values = term(batch_of(tensors, local, whole, rows))
    torch.stack(list(values.values())).sum().backward()
    grads = {name: leaf.grad for name, leaf in local.items()}
    grads |= {f"term.{name}": p.grad for name, p in term.named_parameters() if p.requires_grad}
    return {name: value.detach() for name, value in values.items()}, grads


def run(job: dict, world: int, timeout: float) -> dict[str, dict[str, Tensor]]:
    """{"values", "grads"} of a term over `world` processes, as one process would have them.

    `job`: `spec` (see `load_object`), `dims`, `state` (a state_dict), `tensors` (see `sample`), `seed`. Raises RuntimeError
    with the reason when a process fails, and TimeoutError when they are not done after `timeout` seconds (most often: a
    process skipped part of the loss, and the others wait for it in the backward pass of the gather).
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(job, folder / "job.pt")
        command = [sys.executable, "-m", "clipling.objectives.worker", name]
        # what this process can import, the others can
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        running = [subprocess.Popen([*command, str(rank), str(world)], env=env) for rank in range(world)]
        until = time.monotonic() + timeout
        try:
            # any failure ends the wait: the others would wait for the lost one in a collective
            while any(process.poll() is None for process in running) and not list(folder.glob("error*")):
                if time.monotonic() > until:
                    raise TimeoutError(f"{world} processes were not done after {timeout:g} s")
                time.sleep(0.02)
        finally:
            for process in running:
                if process.poll() is None:
                    process.kill()
                process.wait()
        for error in sorted(folder.glob("error*")):
            raise RuntimeError(error.read_text(encoding="utf-8"))
        if any(process.returncode for process in running):
            raise RuntimeError(f"processes ended with {[process.returncode for process in running]}")
        return torch.load(folder / "result.pt", weights_only=True)


class _Gather(torch.autograd.Function):
    """Rows of all processes, in order of rank; the gradient of a row is summed over all processes that used it."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def _work(folder: Path, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    job = torch.load(folder / "job.pt", weights_only=True)
    # a store and not a file:// address, which a blank in the path would break
    store = dist.FileStore(str(folder / "meet"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    term = load_object(job["spec"])()
    term.setup(job["dims"])
    term.load_state_dict(job["state"])
    torch.manual_seed(job["seed"])
    share = len(job["tensors"]["pair"]) // world
    rows = slice(rank * share, (rank + 1) * share)
    values, grads = measure(term, job["tensors"], rows, _Gather.apply)
    result = {"values": {name: _mean(value, world) for name, value in values.items()}, "grads": {}}
    for name, grad in grads.items():
        grad = torch.zeros_like(_like(name, job["tensors"], rows, term)) if grad is None else grad
        if name.startswith("view."):
            parts = [torch.empty_like(grad) for _ in range(world)]
            dist.all_gather(parts, grad.contiguous())
            # each row lives in one process; DDP's mean over processes divides its gradient
            result["grads"][name] = torch.cat(parts) / world
        else:
            result["grads"][name] = _mean(grad, world)
    if rank == 0:
        torch.save(result, folder / "result.pt")
    dist.barrier()
    dist.destroy_process_group()


def _mean(value: Tensor, world: int) -> Tensor:
    total = value.clone()
    dist.all_reduce(total)
    return total / world


def _like(name: str, tensors: Mapping[str, Tensor], rows: slice, term: Term) -> Tensor:
    if name.startswith("term."):
        return term.get_parameter(name.removeprefix("term."))
    return tensors[name][rows] if name.startswith("view.") else tensors[name]


def main() -> None:
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    try:
        _work(folder, rank, world)
    except Exception as error:
        partial = folder / f"partial{rank}"
        partial.write_text(explain(error), encoding="utf-8")
        partial.rename(folder / f"error{rank}")
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
