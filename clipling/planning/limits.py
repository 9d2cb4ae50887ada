"""Which limit breaks first as pairs grow, and what to change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clipling.planning.hours import Rates, hours
from clipling.planning.machines import Machine
from clipling.planning.sizes import Shape, disk, peak_memory, training_memory

FEWEST, MOST = 1_000, 10**13
STEPS = 40  # looked at a factor of ten


@dataclass(frozen=True)
class Limit:
    """One thing of which there may not be enough. need: of a number of pairs, in `unit`; have: what there is."""

    name: str
    unit: str
    have: float
    need: Callable[[int], float]
    advice: str

    def most_pairs(self) -> int | None:
        """Pairs up to which there is enough; None where it never breaks. Needs may fall where a method changes: the first break counts."""
        below = 0
        pairs = float(FEWEST)
        while pairs <= MOST:
            if self.need(round(pairs)) > self.have:
                return self._between(below, round(pairs))
            below, pairs = round(pairs), pairs * 10 ** (1 / STEPS)
        return None

    def _between(self, fits: int, breaks: int) -> int:
        while breaks - fits > 1:
            middle = (fits + breaks) // 2
            fits, breaks = (middle, breaks) if self.need(middle) <= self.have else (fits, middle)
        return fits


def limits(shape: Shape, rates: Rates, machine: Machine, epochs: float, most_hours: float) -> list[Limit]:
    """Everything that can break. Device memory does not depend on the pairs: it breaks at once or never."""
    on_device = machine.device_memory > 0
    part = lambda name: lambda pairs: hours(shape, rates, machine.cores, pairs, epochs).get(name, 0.0)  # noqa: E731
    found = [
        Limit("disk", "bytes", machine.disk, lambda p: sum(disk(shape, p).values()), _disk_advice(shape)),
        Limit("memory", "bytes", machine.memory, lambda p: peak_memory(shape, p, on_device), _memory_advice(shape, machine)),
        Limit("hours of training", "hours", most_hours, part("training"), TRAINING),
    ]
    if on_device:
        found.append(Limit("device memory", "bytes", machine.device_memory, lambda p: training_memory(shape), DEVICE))
    if rates.stored_seconds:
        found.append(Limit("hours of reinforcing", "hours", most_hours, part("reinforcing"), REINFORCING))
    if shape.guided:
        found += [
            Limit("hours of the bank", "hours", most_hours, part("bank"), BANK),
            Limit("hours of neighbours", "hours", most_hours, part("neighbours"), NEIGHBOURS),
            Limit("exact neighbours", "pairs", rates.exact_up_to, float, EXACT),
        ]
    return found


TRAINING = "Train fewer epochs (samples seen, not pairs, cost time), a smaller student, or choose a larger machine (--machine)."
DEVICE = "Set optimiser.micro_batch (the negatives stay those of the whole batch) or compute.activation_checkpointing=true."
REINFORCING = "Fewer --augmentations, a smaller teacher, or `torchrun`: processes share the tars of `clipling reinforce`."
BANK = "A smaller guide.image_size, fewer views, or `torchrun`: processes share the bank's blocks."
NEIGHBOURS = "Guide with plain feature supervision alone (objective.ping.weight.nn=0 xnn=0: no tables), or `torchrun`."
EXACT = "No need to: above it tables are approximate (faiss, recall measured). method='exact' would take time with the square of the pairs."


def _disk_advice(shape: Shape) -> str:
    more = "; the bank grows with guide encoders' sizes and views" if shape.guided else ""
    if shape.stored_bytes:
        more += "; stored knowledge grows with the teachers' sizes and --augmentations, and is about half as large with --storage int8"
    return f"`clipling data pack` to smaller pictures, or keep fewer of the tars here at a time{more}."


def _memory_advice(shape: Shape, machine: Machine) -> str:
    if machine.device_memory == 0 and peak_memory(shape, FEWEST, False) > machine.memory:
        return DEVICE  # the batch, not the pairs
    more = (
        " The search of neighbours holds the mean captions of all pairs in fp16: a text encoder with fewer dimensions needs less."
        if shape.guided
        else ""
    )
    return (
        "Keys, captions and tokens of all pairs are held in RAM: train on a part of them (fewer tars; data.limit does not help, it is "
        f"applied after opening), or take a machine with more.{more}"
    )
