"""One small file per paper or task. Each has `recipe(smoke, scale) -> Recipe`.

`scale="cpu"` finishes in minutes on two cores with some thousand pairs; `scale="paper"` is the size that the paper reports, for GPUs.
"""
