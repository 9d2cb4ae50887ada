"""A loss of your own beside CLIP's, in a bare PyTorch loop on random features.

Run it:       python examples/own_term.py
Is it right?  clipling check examples/own_term.py:Hardest   (shapes, gradients, order of pairs, two processes)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from clipling.objectives.contrastive import Clip
from clipling.objectives.term import Batch, Objective, Term, View


class Hardest(Term):
    """Hinge on the hardest negative (VSE++, Faghri et al., arXiv 1707.05612): value `hardest`, in units of cosine."""

    def __init__(self, margin: float = 0.2):
        super().__init__()
        self.margin = margin

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        view = batch.main
        image, text = self.one_way(view.image, view.text_all, batch), self.one_way(view.text, view.image_all, batch)
        return {"hardest": (image + text) / 2}

    def one_way(self, rows: torch.Tensor, columns: torch.Tensor, batch: Batch) -> torch.Tensor:
        # the local rows [n, d] over the columns [N, d] of all processes, and the mean over the rows: that keeps it exact
        cosine = rows.float() @ columns.float().T
        own = cosine.gather(1, batch.target[:, None])
        known = F.one_hot(batch.target, len(columns)).bool()
        known = known if batch.same is None else known | batch.same
        hardest = cosine.masked_fill(known, -1.0).max(dim=1, keepdim=True).values
        return (self.margin + hardest - own).clamp_min(0).mean()


def main(steps: int = 61, pairs: int = 64) -> None:
    torch.manual_seed(0)
    concepts = torch.randn(pairs, 8)  # what a picture and its caption have in common
    pictures, captions = concepts @ torch.randn(8, 32), concepts @ torch.randn(8, 24)
    towers = nn.ModuleList([nn.Linear(32, 16), nn.Linear(24, 16)])
    objective = Objective({"clip": Clip(), "hardest": Hardest()}, {"clip": {"clip": 1.0}, "hardest": {"hardest": 0.5}})
    optimiser = torch.optim.AdamW([*towers.parameters(), *objective.parameters()], lr=0.02)
    for step in range(steps):
        image, text = F.normalize(towers[0](pictures), dim=-1), F.normalize(towers[1](captions), dim=-1)
        rows = torch.arange(pairs)
        batch = Batch({"main": View(image, text, image, text)}, torch.tensor(20.0), rows, rows, step=step)
        loss, values = objective(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        objective.after_step(step)
        if step % 20 == 0:
            print(step, {name: round(value.item(), 3) for name, value in values.items()})


if __name__ == "__main__":
    main()
