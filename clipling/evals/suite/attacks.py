"""Accuracy under white-box attacks, with checks that the attacks, and not their gradients, found the limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from clipling.data.pixels import Pixels
from clipling.errors import UserError
from clipling.evals.attacks import Attacked, Classifier, draws, fgsm, pgd, white_box, within
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import LABELLED, Found, floats
from clipling.evals.suite.subject import Subject

LARGE = 64.0  # 255ths: an attack that may go so far should leave (next to) nothing
LEFT = 0.05  # of the accuracy, what may be left there
SLACK = 0.01  # or one picture: by how much two accuracies that should be in order may be out of it
NOISE = 0.5  # the most that noise may cost, of what PGD costs
VANISHED = 0.1  # the most pictures whose gradient may be zero


@dataclass(frozen=True)
class Attacks:
    """Zero-shot accuracy under FGSM and PGD, L-infinity, by an attacker who knows the weights and the class prompts.

    `clean`, `fgsm@E` and `pgd@E` are shares of a sample of the pictures; E is the largest change of a pixel, in 255ths, of the picture
    as the model gets it (after resizing). FGSM is the plain one-step attack; its accuracy may rise with E, as one long step overshoots.
    PGD keeps the worst of: the clean picture, the FGSM point, everything met on the way from `restarts` random starts, from the FGSM
    point and from the worst picture known so far (of the smaller epsilons too). So, picture by picture, `pgd@E` is at most `clean` and
    `fgsm@E`, and does not rise with E.

    Robust numbers are wrong more often than not where gradients are masked (Athalye et al. 2018, arXiv 1802.00420; Carlini et al. 2019,
    arXiv 1902.06705, section 5). `details["checks"]` holds their sanity checks, taken before PGD is given anything but its random
    starts; a note says which ones fail. A transfer attack is not among them: it would need a second model.

    epsilons: in 255ths, rising. steps: of PGD, each of 2.5 * E / steps. restarts: random starts. sample: pictures (None for all).
    batch: pictures at once; it decides the memory and nothing else (but for rounding).
    """

    task: ClassVar[str] = "attacks"
    takes: ClassVar[frozenset[str]] = frozenset({LABELLED})
    version: ClassVar[int] = 1
    headline: ClassVar[tuple[str, ...]] = ("clean", "pgd@1", "pgd@4")
    lower: ClassVar[frozenset[str]] = frozenset()

    epsilons: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    steps: int = 10
    restarts: int = 1
    sample: int | None = 128
    batch: int = 32

    def __post_init__(self) -> None:
        names = [f"{epsilon:g}" for epsilon in self.epsilons]
        rising = all(a < b for a, b in zip(self.epsilons, self.epsilons[1:]))
        if not names or not rising or len(set(names)) < len(names) or not 0 <= min(self.epsilons) <= max(self.epsilons) <= 255:
            raise UserError(f"attacks: epsilons are {list(self.epsilons)}; expected rising numbers from 0 to 255, such as [0.5, 1, 2, 4]")
        for name in ("steps", "restarts", "sample", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"attacks: {name} is {value}; expected a whole number from 1 on")

    def skipped(self, dataset: Dataset) -> str | None:
        return "it has fewer than two classes" if len(dataset.labelled.classnames) < 2 else None

    def __call__(self, subject: Subject, dataset: Dataset) -> Found:
        """Raises UserError for features that are not finite."""
        rows = dataset.sample(self.sample)
        student = subject.student
        pixels = Pixels.open(dataset.source, student.image_size, dict(student.preprocess_cfg))
        parts = []
        with white_box(student, subject.classes(dataset), subject.scale) as model:
            for start in range(0, len(rows), self.batch):
                subject.progress(f"{dataset.name}, attacks", start, len(rows))
                few = rows[start : start + self.batch]
                images = torch.from_numpy(pixels[few]).permute(0, 3, 1, 2).to(student.device, torch.float32) / 255
                labels = torch.from_numpy(dataset.labelled.labels[few]).to(student.device)
                parts.append(self._attack(model, images, labels, [dataset.source.keys[i] for i in few]))
        return self._found({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def _attack(self, model: Classifier, images: Tensor, labels: Tensor, keys: list[str]) -> dict[str, np.ndarray]:
        """float64 [n] each: hits of every attack, and `vanished`, 1 where the gradient at the clean picture is zero everywhere."""
        every = torch.arange(len(images))
        random = [draws(keys, images.shape[-1], f"start {number}").to(images.device) for number in range(self.restarts)]
        noise = draws(keys, images.shape[-1], "noise").to(images.device).sign()

        def search(epsilon: float, starts: list[Tensor], known: Attacked | None = None) -> Attacked:
            return pgd(model, images, labels, epsilon, steps=self.steps, starts=starts, known=known, stop=True)

        gradient, clean = model.gradient(images, labels)
        hits = {"clean": clean.hits, "vanished": (gradient.flatten(1).abs().amax(1) == 0).cpu().double()}
        worst = clean
        for number in self.epsilons:
            epsilon = number / 255
            single = model.judge(fgsm(model, images, labels, epsilon, gradient), labels)
            alone = search(epsilon, [images + epsilon * draw for draw in random])
            worst = worst.copy()  # the hits of the smaller epsilon are kept as they were
            for other in (single, alone):
                worst.keep_worse(every, other)
            worst = search(epsilon, [single.images, worst.images], known=worst)
            noisy = model.judge(within(images, images + epsilon * noise, epsilon), labels)
            for name, found in (("fgsm", single), ("alone", alone), ("pgd", worst), ("noise", noisy)):
                hits[f"{name}@{number:g}"] = found.hits
        large = self._large / 255
        hits["large"] = search(large, [images + large * draw for draw in random]).hits
        return {name: values.numpy() for name, values in hits.items()}

    @property
    def _large(self) -> float:
        return max(LARGE, *self.epsilons)

    def _found(self, hits: dict[str, np.ndarray]) -> Found:
        names = [f"{epsilon:g}" for epsilon in self.epsilons]
        items = {name: hits[name] for name in ("clean", *(f"{attack}@{name}" for attack in ("fgsm", "pgd") for name in names))}
        metrics = floats({name: values.mean() for name, values in items.items()})
        checks = self._checks({name: float(values.mean()) for name, values in hits.items()}, 1 / len(hits["clean"]))
        notes = [
            "Attacked pictures are floats at the model's own size: they are neither rounded to 8 bits a channel nor resized again.",
            "An attack gives an upper bound: a stronger one may find more.",
        ]
        failed = [check["name"] for check in checks if not check["passed"]]
        if failed:
            notes.append(
                f"Checks of the attack failed ({', '.join(failed)}): its gradients may be masked, so the model may be weaker than pgd says."
            )
        details: dict[str, Any] = {
            "epsilons": list(map(float, self.epsilons)),
            "fgsm": [metrics[f"fgsm@{name}"] for name in names],
            "pgd": [metrics[f"pgd@{name}"] for name in names],
            "clean": metrics["clean"],
            "steps": self.steps,
            "restarts": self.restarts,
            "pictures": len(items["clean"]),
            "checks": checks,
        }
        return Found(metrics=metrics, items=items, details=details, notes=notes)

    def _checks(self, accuracy: dict[str, float], one: float) -> list[dict[str, Any]]:
        """The sanity checks, from mean hits; `one` is the share of one picture."""
        single, alone, noise = ([accuracy[f"{attack}@{e:g}"] for e in self.epsilons] for attack in ("fgsm", "alone", "noise"))
        slack = max(SLACK, one)
        behind = max(p - f for p, f in zip(alone, single))
        risen = max((after - before for before, after in zip([accuracy["clean"], *alone], alone)), default=0.0)
        cost_of_noise, cost_of_pgd = (accuracy["clean"] - sum(values) / len(values) for values in (noise, alone))
        return [
            _check("pgd_beats_fgsm", behind, slack, f"PGD's accuracy minus FGSM's, at worst over the epsilons: at most {slack:.3g}"),
            _check(
                "falls_with_epsilon", risen, slack, f"The largest rise of PGD's accuracy from an epsilon to the next: at most {slack:.3g}"
            ),
            _check("large_epsilon", accuracy["large"], LEFT, f"Accuracy under PGD at {self._large:g}/255: at most {LEFT:g}"),
            _check(
                "noise_is_weaker",
                cost_of_noise - NOISE * cost_of_pgd,
                0.0,
                f"Accuracy lost to random signs minus {NOISE:g} of that lost to PGD, means over the epsilons: at most 0",
            ),
            _check("gradients", accuracy["vanished"], VANISHED, f"Share of pictures whose gradient is zero: at most {VANISHED:g}"),
        ]


def _check(name: str, value: float, most: float, what: str) -> dict[str, Any]:
    return {"name": name, "passed": bool(value <= most + 1e-9), "value": float(value), "what": what}
