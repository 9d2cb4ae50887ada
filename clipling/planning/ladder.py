"""Which pilots are run: nested subsets of the pairs, and shorter runs of the largest, within a number of samples."""

from __future__ import annotations

from dataclasses import dataclass

from clipling.errors import UserError

MOST_SHARE = 0.3  # of the pairs, in the largest pilot
LEAST_STEPS = 4  # an epoch of the largest pilot, so that a quarter of it is one step
LEAST_BATCH = 2  # a contrastive loss needs a negative
SUBSETS, SHORTER = (1.0, 0.5, 0.25), (0.5, 0.25)
COST = sum(SUBSETS) + sum(SHORTER)  # in runs of the largest pilot
LEAST_EPOCHS = 2.0


@dataclass(frozen=True)
class Planned:
    """One pilot."""

    name: str
    pairs: int
    epochs: float


def ladder(train_pairs: int, batch: int, epochs: float, samples: float, more: float = 0.0) -> list[Planned]:
    """The pilots, the largest last, that see at most `samples` together. more: further runs of the largest pilot's size that must fit.

    They keep the recipe's epochs where time allows, so that only the number of pairs is extrapolated; with less time there are
    fewer pairs, and then fewer epochs. Raises UserError when there are too few pairs, or too little time for anything.
    """
    steps = int(train_pairs * MOST_SHARE) // batch
    if steps < LEAST_STEPS:
        fitting = int(train_pairs * MOST_SHARE) // LEAST_STEPS
        smaller = f"give --batch {fitting} or less, or " if fitting >= LEAST_BATCH else ""
        raise UserError(
            f"a pilot uses at most {100 * MOST_SHARE:.0f} % of the {train_pairs} training pairs, and needs {LEAST_STEPS} batches of "
            f"{batch}: {smaller}train at once: so few pairs take no time."
        )
    runs = COST + more
    steps = max(LEAST_STEPS, min(steps, int(samples / (runs * epochs * batch))))
    fit = min(epochs, samples / (runs * steps * batch))
    if fit < min(LEAST_EPOCHS, epochs):
        raise UserError(
            f"--pilot: the time is enough for {fit:.1f} epochs of the smallest ladder ({LEAST_STEPS} batches of {batch}); "
            f"give about {min(LEAST_EPOCHS, epochs) / fit:.0f} times as much, or a smaller --batch."
        )
    sizes = list(dict.fromkeys(max(1, int(steps * share)) for share in SUBSETS))
    wanted = [(n * batch, fit) for n in sizes] + [(steps * batch, fit * share) for share in SHORTER]
    return [Planned(f"pairs-{pairs}-epochs-{passes:.3g}", pairs, passes) for pairs, passes in sorted(wanted)]
