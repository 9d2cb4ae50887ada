"""Processes and devices: the only file that knows torch.distributed.

Started by `torchrun` (or any launcher that sets RANK and WORLD_SIZE); without one there is one process and every collective is
the identity. Gradients are averaged by `average_gradients` after the backward pass instead of by a DDP wrapper: every trainable parameter
of student and terms is in one list, so a head cannot be forgotten, and gradient caching needs no special case.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clipling.errors import UserError
from clipling.processes import rank_and_world

LONGEST_WAIT = datetime.timedelta(hours=24)
"""For what the first process does alone (an evaluation, files in the cache). Any other collective has torch's limit of half an hour."""


class Terminated(KeyboardInterrupt):
    """SIGTERM to one of several processes: a launcher sends it to the others when one has died."""


def _gathered(local: Tensor, world: int) -> Tensor:
    parts = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(world)]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts, dim=0)


class _Gather(torch.autograd.Function):
    """[n, ...] of every process -> [N, ...]; its gradient is the sum over processes, each of which has a loss of its own.

    torch's own (`torch.distributed.nn.functional`) is deprecated, and what it advises instead is a private module.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor, rank: int, world: int) -> Tensor:
        ctx.rank, ctx.rows = rank, len(local)
        return _gathered(local, world)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        whole = gradient.contiguous().clone()  # the gradient given is not ours to change
        dist.all_reduce(whole)
        return whole[ctx.rank * ctx.rows : (ctx.rank + 1) * ctx.rows], None, None


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
            return _Gather.apply(local, self.rank, self.world)
        return _gathered(local, self.world)

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

    def of_first(self, value: Any) -> Any:
        """What the first process has for a small value (of strings, numbers, lists and dicts)."""
        if self.world == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, 0, device=self.device)
        return held[0]

    def wait(self) -> None:
        """Until every process is here: up to `LONGEST_WAIT`, and not at all when one has died (its connections close)."""
        if self.world > 1 and dist.get_backend() == "gloo":
            dist.monitored_barrier(timeout=LONGEST_WAIT)
        elif self.world > 1:
            dist.barrier()

    @contextlib.contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first process does it before the others do: what it leaves in the cache, they find."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def autocast(self, kind: str) -> contextlib.AbstractContextManager:
        if kind == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


@contextlib.contextmanager
def start() -> Iterator[Runtime]:
    """Joins the process group that the launcher describes, if there is one, and leaves it at the end.

    Raises UserError in the processes that are left when one is lost: at the next collective, as its connections are closed; when its
    machine is gone without closing them, after the limits at the top. Raises Terminated for SIGTERM.
    """
    cuda = torch.cuda.is_available()
    rank, world = rank_and_world()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if world == 1 or dist.is_initialized():
        rank = dist.get_rank() if dist.is_initialized() else 0
        yield Runtime(rank, dist.get_world_size() if dist.is_initialized() else 1, device)
        return
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        with _terminable():
            yield Runtime(rank, world, device)
    except RuntimeError as error:
        if not _of_lost_process(error):
            raise
        raise UserError(
            f"process {rank + 1} of {world} stops, because another one is lost (its own message, if it had one, is above; "
            "a process without one was killed, often for want of memory). "
            "What is finished is kept: run the same command again (train and finetune with --resume)."
        ) from error
    finally:
        dist.destroy_process_group()


def _of_lost_process(error: RuntimeError) -> bool:
    """Whether a collective failed. gloo has no type of its own for that: its message begins with the place in its sources."""
    return isinstance(error, dist.DistError) or "third_party/gloo" in str(error) or "monitoredBarrier" in str(error)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends this process by an exception, so that it can say why; the training loop has a handler of its own inside of this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> NoReturn:
        raise Terminated(
            "This process was told to end: the launcher does that when another one died, or the job was cancelled. "
            "What is finished is kept: run the same command again (train and finetune with --resume)."
        )

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
