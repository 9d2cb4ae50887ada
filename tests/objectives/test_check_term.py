"""`check_term` passes what is right, and names each way of being wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipling.errors import UserError
from clipling.objectives.check import check_file, check_term
from clipling.objectives.load import load_object

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_term.py"

HEAD = """
import torch
import torch.nn.functional as F
from torch import nn
from clipling.objectives.term import Term

class Mine(Term):
"""

GOOD = """
    def setup(self, dims):
        self.head = nn.Linear(dims["student"], 4)
    def forward(self, batch):
        a, b = self.head(batch.main.image), self.head(batch.main.text_all)
        return {"mine": F.cross_entropy(a @ b.T, batch.target)}
"""


def check(tmp_path, body: str, **how):
    path = tmp_path / "mine.py"
    path.write_text(HEAD + body)
    findings = check_term(f"{path}:Mine", **({"processes": False} | how))
    return {finding.name: finding for finding in findings}


def test_a_right_term_passes(tmp_path):
    findings = check(tmp_path, GOOD)
    assert {name: finding.ok for name, finding in findings.items()} == dict.fromkeys(
        ("values", "steps", "gradients", "permutation", "state"), True
    )


@pytest.mark.parametrize(
    "spec",
    ["clipling.objectives.ping:Ping", "clipling.objectives.contrastive:SigLip", f"{EXAMPLE}:Hardest"],
)
def test_our_own_pass(spec):
    assert all(finding.ok for finding in check_term(spec, processes=False))


WRONG = {
    "no dict": ("    def forward(self, batch):\n        return batch.main.image.sum()\n", "values", "expected a dict"),
    "not scalar": (
        "    def forward(self, batch):\n        return {'mine': batch.main.image.sum(1)}\n",
        "values",
        "shape (8,): expected a scalar",
    ),
    "a number": ("    def forward(self, batch):\n        return {'mine': 1.0}\n", "values", "is a float: expected a tensor"),
    "not finite": (
        "    def forward(self, batch):\n        return {'mine': (batch.main.image.sum() - 9e9).log()}\n",
        "values",
        "is nan",
    ),
    "no gradient": (
        "    def forward(self, batch):\n        return {'mine': batch.main.image.detach().sum()}\n",
        "values",
        "has no gradient",
    ),
    "one process only": (
        "    def forward(self, batch):\n        v = batch.main\n"
        "        return {'mine': ((v.image - v.image_all) * (v.text - v.text_all) + v.image * v.text).mean()}\n",
        "values",
        "line 10 of mine.py",
    ),
    "undeclared": (
        "    def forward(self, batch):\n        return {'mine': batch.neighbours['image'].image.sum()}\n",
        "values",
        "raised KeyError: 'image' (line 9 of mine.py",
    ),
    "unknown need": ("    needs = frozenset({'student.sound'})\n", "values", "needs 'student.sound': known are"),
    "forgets text": (
        "    def forward(self, batch):\n        return {'mine': batch.main.image.pow(3).mean()}\n",
        "gradients",
        "no gradient reaches the student's text features (main.text)",
    ),
    "unused parameter": (
        "    def setup(self, dims):\n        self.head, self.spare = nn.Linear(16, 4), nn.Linear(16, 4)\n"
        + GOOD[GOOD.index("    def f") :],
        "gradients",
        "no gradient reaches parameter 'spare.weight': DDP",
    ),
    "setup": (
        "    def setup(self, dims):\n        self.head = nn.Linear(dims['sound'], 4)\n",
        "values",
        "raised KeyError: 'sound' (line 9 of mine.py",
    ),
    "after a step": (GOOD + "    def after_step(self, step):\n        self.queue.add_(1)\n", "steps", "no attribute 'queue'"),
    "order": (
        "    def forward(self, batch):\n        v = batch.main\n        return {'mine': (v.image * v.text).sum(1).cumsum(0).mean()}\n",
        "permutation",
        "in another order",
    ),
    "hidden state": (
        "    def forward(self, batch):\n        self.seen = getattr(self, 'seen', 0) + 1\n"
        "        return {'mine': (batch.main.image * batch.main.text).mean() * self.seen}\n",
        "state",
        "before saving",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_terms_are_told(tmp_path, case):
    body, name, said = WRONG[case]
    finding = check(tmp_path, body)[name]
    assert finding.ok is False
    assert said in finding.detail
    assert "FAIL" in str(finding)


def test_two_processes_tell_right_from_wrong(tmp_path):
    """Negatives of this process only: fine alone, another loss over two."""
    local_only = GOOD.replace("text_all", "text").replace("batch.target", "torch.arange(len(a))")
    findings = check(tmp_path, local_only, processes=True)
    assert [finding.ok for finding in findings.values()] == [True, True, True, True, True, False]
    assert "in one process" in findings["two processes"].detail
    fixed = check(tmp_path, GOOD, processes=True)["two processes"]
    assert fixed.ok, fixed.detail


def test_as_the_command_line_prints_it(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(HEAD + WRONG["not scalar"][0])
    result = check_file(f"{path}:Mine")
    assert result["failed"] == 1
    assert json.dumps(result["findings"]).count("expected a scalar") == 1


def test_a_failing_process_is_explained(tmp_path):
    body = GOOD.replace("        a, b", "        assert not torch.distributed.is_initialized(), 'alone'\n        a, b")
    finding = check(tmp_path, body, processes=True)["two processes"]
    assert finding.ok is False
    assert "AssertionError: alone (line 12 of mine.py" in finding.detail


def test_what_another_process_cannot_find_is_skipped():
    from clipling.objectives.contrastive import Clip

    finding = check_term(lambda: Clip("positive"))[-1]
    assert finding.ok is None
    assert "file.py:NAME" in finding.detail


def test_what_is_no_term(tmp_path):
    path = tmp_path / "other.py"
    path.write_text("def number():\n    return 3\ndef wants(x):\n    return x\nvalue = 3\n")
    for name, said in (("number", "is a int: expected"), ("wants", "takes arguments"), ("value", "is a int: expected a Term")):
        with pytest.raises(UserError, match=said):
            check_term(f"{path}:{name}")


def test_the_example_runs(capsys):
    load_object(f"{EXAMPLE}:main")()
    losses = [float(line.split("'clip': ")[1].split(",")[0]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < 0.1 * losses[0]
    assert len(EXAMPLE.read_text().splitlines()) <= 60
