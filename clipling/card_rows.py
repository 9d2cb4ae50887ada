"""The rows of a model card: what a student is made of, what it borrowed from whom, and what each number was measured on.

Models and data are named by the last parts of their paths: a card is shown to others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipling.recipe import Recipe


def made_of(summary: Mapping[str, Any], recipe: Recipe, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the student is, what its weights and its teaching came from, and the budget."""
    sizes, spec = summary["parameters"], recipe.student
    layout = architecture(config)
    named = f"`{short(spec.config)}`: " if spec.config not in ("init", "inherit") else ""
    rows = [("student", named + layout if layout else named.removesuffix(": "))]
    trained, saved = sizes["total"], sizes.get("total_as_saved", sizes["total"])
    whole = f"{saved:,} with" if saved == trained else f"{trained:,} with those that were trained, {saved:,} with all that are saved"
    rows.append(("parameters", f"{sizes['total_without_token_rows']:,} without token rows ({whole})"))
    rows += borrowed(recipe, summary.get("about", {}).get("teachers", {}), sizes["total_without_token_rows"])
    rows += stored_knowledge(summary.get("about", {}).get("stored") or {})
    texts = summary.get("about", {}).get("texts")
    if texts:
        rows.append(("texts", f"{texts['trained_on']:,} that belong to no photo, of `{short(recipe.data.texts or '')}`"))
    share = summary.get("interpolation", {}).get("share")
    if share is not None:
        mixed = f"{100 * share:.0f} % new, {100 * (1 - share):.0f} % start" if share else "those of the start, unchanged"
        rows.append(("weights", f"{mixed} (WiSE-FT's share {share:g})"))
    rows.append(("budget", f"{summary['samples_seen']:,} samples seen, {summary['seconds']} s of training steps"))
    return [*rows, ("objective", " + ".join(_weighted(name, term.weight) for name, term in recipe.objective.items()))]


def borrowed(recipe: Recipe, sizes: Mapping[str, int], own: int) -> list[tuple[str, str]]:
    """Models that taught the student or gave it weights, by the last parts of their names.

    sizes: of the recipe's teachers, in parameters without token rows; own: the student's.
    """
    spec, inherit, rows = recipe.student, recipe.student.inherit, []
    for name, teacher in recipe.teachers.items():
        of_it = (
            f" ({sizes[name]:,} parameters without token rows; the student has {100 * own / sizes[name]:.0f} % of them)"
            if sizes.get(name)
            else ""
        )
        rows.append(("teacher", f"`{last_parts(teacher.model)}`{of_it}"))
    if inherit:
        asked = f", asked to have {_size(inherit.to)}" if inherit.to else ""
        rows.append(("weights inherited from", f"`{model_named(recipe, inherit.source)}`{asked}"))
        if inherit.text_source:
            rows.append(("text tower inherited from", f"`{model_named(recipe, inherit.text_source)}`"))
    for part, model in spec.init.items():
        after = ", then pruned by learned masks" if any(stage.surgery for stage in recipe.stages) else ""
        towers = "started from" if part == "model" else f"{part} tower started from"
        rows.append((towers, f"`{model_named(recipe, model)}`{after}"))
    if spec.text != "config":
        frozen = ", frozen" if all("text" in stage.freeze for stage in recipe.stages) else ", trained further"
        rows.append(("text tower", f"the teacher's{'' if spec.text == 'teacher' else f', cut to {spec.text}'}{frozen}"))
    return rows


def stored_knowledge(stored: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What teachers left beside the pairs (`Knowledge.describe`), in three kinds of rows; none without it."""
    if not stored:
        return []
    rows = []
    for teacher in stored["teachers"]:
        scale = "" if teacher["scale"] is None else f", learned scale {teacher['scale']:.4g}"
        rows.append(("stored teacher", f"`{stored['named'].get(teacher['name'], teacher['name'])}`, embeddings of {teacher['dim']}{scale}"))
    each = stored["augmentations"] / max(1, stored["pairs"])
    kinds = "crops" + " and mirrors" * bool(stored["flips"]) + " with RandAugment's operations" * bool(stored["operated"])
    rows.append(("stored augmentations", f"{each:.3g} a picture: {kinds}; embeddings stored as {stored['storage']}"))
    made = ", ".join(f"{count:,} {origin}" for origin, count in stored["synthetic_captions"].items()) or "none"
    rows.append(("captions", f"{stored['captions']:,} of the pairs; synthetic by origin: {made}"))
    doubts = {"rescaled_pairs": "pictures were resized since: crops rescaled", "pairs_without_a_hash": "pictures could not be checked"}
    return rows + [("stored augmentations", f"{stored[key]:,} {said}") for key, said in doubts.items() if stored[key]]


def _size(to: str) -> str:
    return f"{int(to):,} parameters without token rows" if to.isdigit() else f"{to} of its size"


def measured(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every metric on what it is measured on: held-out pairs or photos, texts, or a watched set."""
    about, rows = summary.get("about", {}), []
    before = "at the start" if about.get("before") == "start" else "untrained"
    for metric, value in summary["val"].items():
        was = summary["untrained"].get(metric, 0)
        rows.append((measured_on(metric, summary["val_pairs"], about), f"{100 * value:.1f} % ({before}: {100 * was:.1f} %)"))
    return rows


def measured_on(metric: str, pairs: int, about: Mapping[str, Any]) -> str:
    """`acc1 on cifar10 (10,000 pictures of 10 classes, watched only)`, `i2t_recall@1 on 200 pairs held out`."""
    if metric.startswith("watch/"):
        name, _, inner = metric.removeprefix("watch/").rpartition("/")
        size = about.get("watch", {}).get(name, {})
        counts = f"{size['pictures']:,} pictures of {size['classes']:,} classes, " if "pictures" in size else ""
        counts = f"{size['pairs']:,} pairs, " if "pairs" in size else counts
        return f"{inner} on `{name}` ({counts}watched only)"
    texts = about.get("texts")
    of_texts = f"{texts['count']:,} {'held-out' if texts['held_out'] else 'training'} texts" if texts else ""
    if metric in ("text_cosine", "text_match@1") and texts:
        return f"{metric} on {of_texts}"
    among = f" among {of_texts}" if metric == "text_choice@1" and texts else ""
    return f"{metric} on {pairs} {about.get('unit', 'pairs')} held out{among}"


def before_training(recipe: Recipe) -> str:
    """What values at step 0 are called: of a start, where weights were borrowed, or of an untrained student."""
    spec = recipe.student
    return "start" if spec.init or spec.inherit or spec.text != "config" else "untrained"


def architecture(config: Mapping[str, Any]) -> str:
    """A student's config in a few words; empty without one."""
    model = config.get("model_cfg")
    if not model:
        return ""
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    layers = vision.get("layers", 12)
    image = f"ViT of {layers} layer{'s' * (layers != 1)}, {vision.get('width', 768)} wide"
    if vision.get("timm_model_name"):
        image = vision["timm_model_name"]
    elif isinstance(layers, list):
        image = f"ResNet of {'-'.join(map(str, layers))} blocks"
    depth = text.get("layers", 12)
    words = f"transformer of {depth} layer{'s' * (depth != 1)}, {text.get('width', 512)} wide"
    if text.get("hf_model_name"):
        words = f"text tower `{short(text['hf_model_name'])}`"
    image, words = (
        f"{said} before pruning" if side in config.get("pruned", {}) else said for side, said in (("image", image), ("text", words))
    )
    return f"{image}, at {vision.get('image_size')} px; {words}; embeddings of {model.get('embed_dim')}"


def short(path: str) -> str:
    """The last part of a path."""
    return path.replace("\\", "/").rstrip("/").split("/")[-1]


def last_parts(path: str) -> str:
    """The last part of a path, with its folder where it says nothing alone (`half/stage-1`, `start/model`)."""
    parts = path.replace("\\", "/").rstrip("/").split("/")
    return "/".join(parts[-2:] if parts[-1] == "model" or parts[-1].startswith(("stage-", "seed-")) else parts[-1:])


def model_named(recipe: Recipe, spec: str) -> str:
    """A model of a recipe by the last parts of its name; of a teacher's name, the teacher's model."""
    return last_parts(recipe.teachers[spec].model if spec in recipe.teachers else spec)


def _weighted(name: str, weight: float | dict[str, float]) -> str:
    if isinstance(weight, dict):
        return " + ".join(f"{w:g} {name}/{value}" for value, w in weight.items() if w)
    return name if weight == 1 else f"{weight:g} {name}"
