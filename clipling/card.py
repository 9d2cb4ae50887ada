"""The model card that a run writes beside its model: data, budget, what taught it, licences, measured results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from clipling.models import lite
from clipling.recipe import Recipe

_TEMPLATE = """\
---
library_name: open_clip
tags: [clip, image-text, clipling]
{% if licences %}taught_by: {{ licences | tojson }}
{% endif %}---
# {{ recipe.name }}: a small CLIP model

Trained with clipling on {{ "{:,}".format(summary.train_pairs) }} {{ kind }} of `{{ data }}`, seed {{ summary.seed }}.

| | |
|---|---|
| student | `{{ student }}` |
| parameters | {{ "{:,}".format(sizes.total_without_token_rows) }} without token rows ({{ "{:,}".format(sizes.total) }} with) |
| budget | {{ "{:,}".format(summary.samples_seen) }} samples seen, {{ summary.seconds }} s of training steps |
| objective | {{ objective }} |
{% for metric, value in summary.val.items() -%}
| {{ metric }} on {{ summary.val_pairs }} {{ held_out }} held out | {{ "%.1f"|format(100 * value) }} % \
({{ before }}: {{ "%.1f"|format(100 * summary.untrained.get(metric, 0)) }} %) |
{% endfor %}
The best of several checkpoints was chosen on those held-out {{ held_out }}, so these figures are slightly optimistic.

## Open it

{{ opened }}
{% if licences %}
## What taught it

{{ taught }}
{% for name, licence in licences.items() %}
- `{{ name }}`: {{ licence }}{% endfor %}
{% if restricted %}
**Not for commercial use as it stands:** {{ restricted }}. What is made from such weights is covered by their licence as well.
{% endif -%}
{% endif %}
## Limits

It knows what its training pairs show and little else. Measure it on pictures of your own (`clipling eval`) before you rely on it.
"""


FROZEN = "Frozen encoders guided the training; their weights are not part of this model:"
STARTED = "Models that taught this one, or whose weights it started from:"
STOCK = """\
    import open_clip
    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:PATH_OF_THIS_FOLDER")"""
OWN_TOWER = "    import clipling.models.lite  # timm learns the name of the image tower\n" + STOCK
IRREGULAR = """\
Its layers differ in size, which stock open_clip cannot build:

    from clipling.models.hub import open_student
    model = open_student("PATH_OF_THIS_FOLDER")"""


def model_card(
    summary: Mapping[str, Any],
    recipe: Recipe,
    licences: Mapping[str, str],
    restricted: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> str:
    """Markdown with the metadata block that model hubs read. Only the file name of the data is shown, never its path.

    restricted: those of `licences` that forbid commercial use. config: the student's at the end, which decides how it is opened.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)
    return environment.from_string(_TEMPLATE).render(
        summary=summary,
        recipe=recipe,
        student=short(recipe.student.init.get("model", recipe.student.config)),
        sizes=summary["parameters"],
        data=short(recipe.data.source),
        kind="photos (without captions)" if recipe.data.bare else "image-text pairs",
        held_out="photos" if recipe.data.bare else "pairs",
        opened=_opened(config or {}),
        objective=" + ".join(_weighted(name, term.weight) for name, term in recipe.objective.items()),
        licences=dict(licences),
        before="at the start" if recipe.student.init or recipe.student.inherit else "untrained",
        taught=STARTED if recipe.teachers or recipe.student.init or recipe.student.inherit else FROZEN,
        restricted=", ".join(f"`{name}`" for name in restricted),
    )


def _opened(config: Mapping[str, Any]) -> str:
    if config.get("pruned"):
        return IRREGULAR
    tower = config.get("model_cfg", {}).get("vision_cfg", {}).get("timm_model_name")
    return OWN_TOWER if tower in lite.default_cfgs else STOCK


def short(path: str) -> str:
    """The last part of a path."""
    return path.replace("\\", "/").rstrip("/").split("/")[-1]


def _weighted(name: str, weight: float | dict[str, float]) -> str:
    if isinstance(weight, dict):
        return " + ".join(f"{w:g} {name}/{value}" for value, w in weight.items() if w)
    return name if weight == 1 else f"{weight:g} {name}"
