"""clipling grows small CLIP models from your own image-text pairs.

One function per verb (`clipling.train(...)` is `clipling train ...`), imported when first used: `import clipling` works without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipling.verbs.bank import bank
    from clipling.verbs.check import check
    from clipling.verbs.compare import compare
    from clipling.verbs.compress import compress
    from clipling.verbs.demo import demo
    from clipling.verbs.distill import distill
    from clipling.verbs.embed import embed
    from clipling.verbs.evaluate import evaluate
    from clipling.verbs.finetune import finetune
    from clipling.verbs.inspect import inspect
    from clipling.verbs.predict import predict
    from clipling.verbs.report import report
    from clipling.verbs.show import show
    from clipling.verbs.train import train

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "bank",
    "check",
    "compare",
    "compress",
    "demo",
    "distill",
    "embed",
    "evaluate",
    "finetune",
    "inspect",
    "predict",
    "report",
    "show",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"clipling.verbs.{name}"), name)
    raise AttributeError(f"module 'clipling' has no attribute {name!r}")
