"""Imports point one way, and the package imports without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "clipling"
# A room may import from rooms before it.
ORDER = [
    "errors",
    "mistakes",
    "store",
    "processes",
    "environment",
    "data",
    "models",
    "surgery",
    "settings",
    "recipe",
    "objectives",
    "guides",
    "engine",
    "adapt",
    "evals",
    "runtime",
    "deploy",
]
ORDER += [
    "card_rows",
    "card",
    "starts",
    "build",
    "runfolder",
    "batchsize",
    "announce",
    "outcome",
    "run",
    "assess",
    "subjects",
    "suites",
    "exported",
    "files",
    "converted_card",
    "conversion",
    "recipes",
    "distillation",
    "compression",
    "planning",
]
ORDER += ["printing", "walkthrough", "verbs", "cli", "__main__"]
# recipe.py loads named recipes and users' files when asked to: imports inside functions, the other way round on purpose.
LATE = {("recipe", "recipes"), ("recipe", "objectives")}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "clipling" else [node.module]
        found |= {n.split(".")[1] for n in names if n.startswith("clipling.")}
    return found


def files() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_one_way(path):
    own = room(path)
    for other in imported(path) - {own, "__version__"}:
        if (own, other) in LATE or (own == "cli" and other in ORDER):
            continue
        assert other in ORDER, f"{path.name} imports clipling.{other}, which ORDER does not know"
        assert ORDER.index(other) < ORDER.index(own), f"{path.name}: {own} must not import {other}"


def test_objectives_import_torch_and_the_contract_only():
    for path in (PACKAGE / "objectives").glob("*.py"):
        assert imported(path) <= {"objectives", "errors"}, path.name


def test_the_engine_imports_no_evaluator():
    for path in (PACKAGE / "engine").glob("*.py"):
        assert "evals" not in imported(path), path.name


def test_torch_distributed_is_known_to_one_file():
    knowing = {
        str(p.relative_to(PACKAGE))
        for p in files()
        if "torch.distributed" in p.read_text(encoding="utf-8").replace("torch.distributed.run", "")
    }
    # objectives/worker.py is the two-process check of a user's own term, which runs without the engine.
    assert knowing <= {"engine/runtime.py", "objectives/worker.py", "objectives/check.py"}


def test_import_without_torch():
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'torchvision', 'timm', 'open_clip', 'transformers', 'pyarrow'):\n"
        "            raise ImportError(name + ' is blocked')\n"
        "sys.meta_path.insert(0, Block())\n"
        "import clipling, clipling.cli\n"
        "from clipling.cli import main\n"
        "assert 'torch' not in sys.modules\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout
