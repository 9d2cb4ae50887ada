"""Batches prepared ahead by other processes; a process that dies costs its unfinished batches and nothing else."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from clipling.data.loader import HostBatch, TrainBatches
from clipling.errors import UserError

MOST_DEATHS = 5
RECOVERED = 1000  # steps without a death after which earlier ones no longer count


def loader(batches: TrainBatches, first_step: int, last_step: int, workers: int = 0) -> Iterator[HostBatch]:
    """Yields the HostBatch of first_step, ..., last_step - 1 in order, prepared ahead by `workers` processes.

    Workers take steps and not files, so more workers than tars, or than steps, is fine: a worker without a step waits. When one is
    killed, all are started again from the first batch that is missing, which is the same whoever makes it.
    Raises UserError when workers die again and again, and whatever a worker stumbled over.
    """
    step, deaths, last_death = first_step, 0, first_step
    while step < last_step:
        made = _start(batches, step, last_step, workers)
        try:
            for batch in made:
                if isinstance(batch, UserError):
                    raise batch
                step += 1
                yield batch
        except (RuntimeError, OSError, EOFError):  # OSError: its batch was announced, and cannot be fetched from it any more
            if not _has_dead(made):
                raise
            deaths, last_death = (1 if step - last_death > RECOVERED else deaths + 1), step
            if deaths > MOST_DEATHS:
                raise UserError(
                    f"a process that loads pictures was killed for the {deaths}th time, last before step {step}. Most often the machine "
                    "has no memory left: use fewer of them (--set data.workers=1), or 0 to load in the training process itself."
                ) from None
            print(f"warning: a process that loads pictures was killed; the batches from step {step} on are made again", file=sys.stderr)
        finally:
            del made


class _Steps(Dataset):
    """A user's mistake that a worker meets is handed over as it is: torch would wrap its traceback around the message."""

    def __init__(self, batches: TrainBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> HostBatch | UserError:
        try:
            return self.batches[step]
        except UserError as error:
            return error


def _start(batches: TrainBatches, first_step: int, last_step: int, workers: int) -> Any:
    """The iterator of a DataLoader over these steps."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if main and workers and hasattr(signal, "SIGCHLD") else None
    made = iter(
        DataLoader(
            _Steps(batches),
            batch_size=None,
            sampler=range(first_step, last_step),
            num_workers=min(workers, last_step - first_step),
            worker_init_fn=_start_worker,
            pin_memory=torch.cuda.is_available(),
            # Without a generator of its own a DataLoader draws from the global one, and a resumed run would differ.
            generator=torch.Generator().manual_seed(0),
        )
    )
    if before is not None:
        # torch raises from its signal handler, in the middle of whatever runs, when a worker dies. Without it the death is found when
        # a batch does not come, within five seconds.
        signal.signal(signal.SIGCHLD, before)
    return made


def _has_dead(made: Any) -> bool:
    workers = getattr(made, "_workers", ())
    for _ in range(20):  # its connections close a moment before it is dead
        if any(not worker.is_alive() for worker in workers):
            return True
        time.sleep(0.05)
    return False


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C reaches the whole process group: the trainer ends its step and saves, and needs its workers until then. A worker whose
    # parent is gone ends by itself.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
