"""The model card that a run writes beside its model: data, budget, what taught it, licences, measured results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from clipling.card_rows import made_of, measured, short
from clipling.models import lite, siglip_towers
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
{% for name, said in rows -%}
| {{ name }} | {{ said }} |
{% endfor %}
{%- if chosen %}
The best of several checkpoints was chosen on the held-out {{ held_out }}, so figures on them are slightly optimistic.
{% endif %}
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
SIGLIP_TOWER = (
    """\
    from clipling.models.siglip_towers import register
    register("{name}")  # timm learns the name of the image tower
"""
    + STOCK
)
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
        rows=[*made_of(summary, recipe, config or {}), *measured(summary)],
        data=short(recipe.data.source),
        kind="photos (without captions)" if recipe.data.bare else "image-text pairs",
        held_out="photos" if recipe.data.bare else "pairs",
        chosen=recipe.evaluation.best != "last",
        opened=how_to_open(config or {}),
        licences=dict(licences),
        taught=STARTED if recipe.teachers or recipe.reinforced or recipe.student.init or recipe.student.inherit else FROZEN,
        restricted=", ".join(f"`{name}`" for name in restricted),
    )


def how_to_open(config: Mapping[str, Any]) -> str:
    """Markdown: the lines of Python that open a saved student of this config."""
    if config.get("pruned"):
        return IRREGULAR
    tower = config.get("model_cfg", {}).get("vision_cfg", {}).get("timm_model_name")
    if siglip_towers.is_ours(tower):
        return SIGLIP_TOWER.format(name=tower)
    return OWN_TOWER if tower in lite.default_cfgs else STOCK
