"""clipling grows small CLIP models from your own image-text pairs.

One function per verb (`clipling.train(...)` is `clipling train ...`), imported when first used: `import clipling` works without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipling.deploy.search.search import Search
    from clipling.runtime.model import load
    from clipling.verbs.bank import bank
    from clipling.verbs.check import check
    from clipling.verbs.compare import compare
    from clipling.verbs.compress import compress
    from clipling.verbs.convert import convert
    from clipling.verbs.demo import demo
    from clipling.verbs.distill import distill
    from clipling.verbs.embed import embed
    from clipling.verbs.evaluate import evaluate
    from clipling.verbs.export import export
    from clipling.verbs.finetune import finetune
    from clipling.verbs.inspect import inspect
    from clipling.verbs.latency import latency
    from clipling.verbs.neighbours import neighbours
    from clipling.verbs.pack import pack
    from clipling.verbs.plan import plan
    from clipling.verbs.predict import predict
    from clipling.verbs.reinforce import reinforce
    from clipling.verbs.report import report
    from clipling.verbs.search_index import search_index
    from clipling.verbs.search_serve import search_serve
    from clipling.verbs.show import show
    from clipling.verbs.train import train

__version__ = "0.1.0"
__all__ = [
    "Search",
    "__version__",
    "bank",
    "check",
    "compare",
    "compress",
    "convert",
    "demo",
    "distill",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "latency",
    "load",
    "neighbours",
    "pack",
    "plan",
    "predict",
    "reinforce",
    "report",
    "search_index",
    "search_serve",
    "show",
    "train",
]


_ELSEWHERE = {"load": "clipling.runtime.model", "Search": "clipling.deploy.search.search"}  # what is no verb


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(_ELSEWHERE.get(name, f"clipling.verbs.{name}")), name)
    raise AttributeError(f"module 'clipling' has no attribute {name!r}")
