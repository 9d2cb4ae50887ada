"""How long the parts of a training take, as formulas of the number of pairs and of rates that were measured or stated."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from clipling.planning.machines import UTILISATION, Machine
from clipling.planning.sizes import Shape, decoded

EXACT_UP_TO = {"cpu": 200_000, "cuda": 4_000_000}  # guides/neighbours.py
FP32_SHARE = 0.7  # of the speed of fp32's matrix product that the exact search reaches in fp32 (benchmarks: neighbours)
# Of an approximate table (guides/approximate.py): cells are this many roots of the pairs; of them so many are looked through, which the
# search chooses on a sample of the data. For 95 % of the neighbours of rows of about 26 effective dimensions: PROBES at PROBED pairs,
# and as many more as PROBES_POWER says (benchmarks: neighbours). Other data may want fewer or more.
CELLS, PROBES, PROBED, PROBES_POWER = 1, 80, 200_000, 0.33
APPROXIMATE_SHARE = 0.4  # of the exact search's speed (0.3 at 300,000 rows, 0.5 at a million): smaller products, cells to learn
# Of machines that are not measured. A small student on a GPU is not bound by arithmetic: a step is hundreds of kernels, launched one after
# the other, and a run begins with processes, a device and files to open. Both are guesses, that no plan says less than what can be.
STEP_FLOOR, START_UP = 0.005, 20.0


@dataclass(frozen=True)
class Rates:
    """Work of one pair in FLOP (forward and backward; of the frozen encoders forward), and how much is done in a second.

    train: pairs a second. image, text: pictures and captions of the frozen encoders a second (0 without a guide). search: FLOP/s of
    products that the exact search of neighbours reaches. decode: pictures a second of one core. stored_seconds: what the teachers of a
    reinforced source take for one pair (0: not known), stored_flop their work; crop_seconds: of decoding a picture and making the crops
    that they see, by one core a process. step_floor: seconds that a step takes at least; start_up: seconds before the first one (both 0
    where steps were measured). exact_up_to: pairs, above which tables are approximate, by a CPU in any case; cells_search: that CPU's
    `search`, where the device is none (0: the same).
    """

    train: float
    search: float
    decode: float
    train_flop: float
    image: float = 0.0
    text: float = 0.0
    image_flop: float = 0.0
    text_flop: float = 0.0
    stored_seconds: float = 0.0
    stored_flop: float = 0.0
    crop_seconds: float = 0.0
    step_floor: float = 0.0
    start_up: float = 0.0
    exact_up_to: int = EXACT_UP_TO["cpu"]
    cells_search: float = 0.0

    def on(self, machine: Machine) -> Rates:
        """The rates of another machine: of its stated peak the assumed share; pictures are decoded by cores like this one's."""
        if machine.peak is None:
            return self
        reached = machine.peak * machine.devices * UTILISATION
        encoders = {side: reached / flop for side, flop in (("image", self.image_flop), ("text", self.text_flop)) if flop}
        # Neighbours are searched by one process, as if in fp32: a sixteenth of a tensor core's bf16 peak, as on an A100 (19.5 of 312). That
        # bf16 chooses the candidates there was never measured.
        # `clipling reinforce` runs as a process a device, each of which makes its crops and then asks the teachers.
        stored = {"stored_seconds": self.stored_flop / reached, "crop_seconds": self.crop_seconds / machine.devices}
        guessed = {"step_floor": STEP_FLOOR, "start_up": START_UP}
        searching = {
            "search": FP32_SHARE * machine.peak / 16,
            "exact_up_to": EXACT_UP_TO["cuda"],
            "cells_search": self.cells_search or self.search,  # by a CPU like this one's
        }
        return replace(self, train=reached / self.train_flop, **searching, **encoders, **stored, **guessed)


def hours(shape: Shape, rates: Rates, cores: int, pairs: int, epochs: float) -> dict[str, float]:
    """Hours of each part. Decoding runs beside training, so the slower of the two counts."""
    once = decoded(shape, pairs) > 0
    decoding = pairs / (rates.decode * cores)
    found = {"decoding, once": decoding / 3600} if once else {}
    if shape.guided:
        encoding = pairs * (1 + shape.views) / rates.image + pairs * shape.captions / rates.text
        found["bank"] = max(encoding, decoding) / 3600
        found["neighbours"] = search_seconds(shape, rates, pairs) / 3600
    if rates.stored_seconds:
        found["reinforcing"] = pairs * (rates.stored_seconds + rates.crop_seconds) / 3600
    steps = epochs * max(1.0, pairs / shape.batch)
    training = rates.start_up + max(epochs * pairs / rates.train, steps * rates.step_floor)
    found["training"] = max(training, 0.0 if once else epochs * decoding) / 3600
    return found


def search_seconds(shape: Shape, rates: Rates, pairs: int) -> float:
    """Of both neighbour tables."""
    flop = 2 * (shape.image_dim + shape.text_dim) * float(pairs)  # with one row each
    if pairs <= rates.exact_up_to:
        return flop * pairs / rates.search
    cells = CELLS * math.sqrt(pairs)
    looked_at = PROBES * (pairs / PROBED) ** PROBES_POWER * pairs / cells
    return flop * (cells + looked_at) / ((rates.cells_search or rates.search) * APPROXIMATE_SHARE)


def starving(shape: Shape, rates: Rates, cores: int, pairs: int) -> bool:
    """Whether decoding pictures is slower than training on them."""
    return decoded(shape, pairs) == 0 and rates.decode * cores < rates.train
