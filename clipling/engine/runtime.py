"""Processes and devices: the only file that knows torch.distributed.

Started by `torchrun` (or any launcher that sets RANK and WORLD_SIZE); without one there is one process and every collective is
the identity. Gradients are averaged by `average_gradients` after the backward pass instead of by a DDP wrapper: every trainable parameter
of student and terms is in one list, so a head cannot be forgotten, and gradient caching needs no special case.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor, nn


@dataclass(frozen=True)
class Runtime:
    """Where this process runs and who else does."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def gather(self, local: Tensor) -> Tensor:
        """[n, ...] of every process, in the order of ranks: [N, ...], with gradient to every process."""
        if self.world == 1:
            return local
        if local.requires_grad:
            return torch.cat(dist_nn.all_gather(local.contiguous()), dim=0)
        parts = [torch.empty_like(local) for _ in range(self.world)]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts, dim=0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Mean of the gradients over processes, in one buffer. A missing gradient counts as 0 on that process."""
        if self.world == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        for p in trained:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch._utils._flatten_dense_tensors([p.grad for p in trained])
        dist.all_reduce(flat)
        flat /= self.world
        for p, g in zip(trained, torch._utils._unflatten_dense_tensors(flat, [p.grad for p in trained]), strict=True):
            p.grad.copy_(g)

    def average(self, value: Tensor) -> Tensor:
        """Mean of a tensor over processes, without gradient."""
        value = value.detach().clone()
        if self.world > 1:
            dist.all_reduce(value)
            value /= self.world
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some process: decisions that all must take together (to save, to stop)."""
        if self.world == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value)

    def same_start(self, module: nn.Module) -> None:
        """Every process gets the parameters and buffers of the first."""
        if self.world > 1:
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor.data, 0)

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()

    def autocast(self, kind: str) -> contextlib.AbstractContextManager:
        if kind == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


@contextlib.contextmanager
def start() -> Iterator[Runtime]:
    """Joins the process group that the launcher describes, if there is one, and leaves it at the end."""
    cuda = torch.cuda.is_available()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if world == 1 or dist.is_initialized():
        rank = dist.get_rank() if dist.is_initialized() else 0
        yield Runtime(rank, dist.get_world_size() if dist.is_initialized() else 1, device)
        return
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Runtime(dist.get_rank(), world, device)
    finally:
        dist.destroy_process_group()
