"""What decides every byte of a reinforced source: settings, teachers, captioners, pairs. Written down once, compared at every start."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from clipling.data.packing import Storage, storage_of
from clipling.data.pairs import Pairs
from clipling.data.shard_files import MANIFEST, ShardFile, shard_name
from clipling.data.views import Augment
from clipling.errors import UserError
from clipling.guides.captions import Captions
from clipling.guides.differences import differences
from clipling.guides.teacher import PROBE
from clipling.models.dual import Student
from clipling.store import read_json, write_json

FORMAT = 2  # 1 had no identities of teachers and no digests of texts and shards
FREE = frozenset({"licences", "named", "pairs", "pairs_fingerprint"})  # of the manifest: what may change; pairs are compared shard by shard


@dataclass(frozen=True)
class Settings:
    """How knowledge is made.

    augmentations: crops of each picture. augment: their crop and flip. operations: RandAugment on each crop. storage: of embeddings.
    shard: pairs of one tar.
    """

    augmentations: int = 10
    augment: Augment = dataclasses.field(default_factory=lambda: Augment(scale=(0.08, 1.0)))
    operations: bool = True
    storage: Storage = "fp16"
    shard: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        storage_of(self.storage)
        for name, least in (("augmentations", 1), ("shard", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)}: expected at least {least}")

    def rows(self, number: int, pairs: Pairs) -> range:
        """The pairs of a shard."""
        return range(number * self.shard, min((number + 1) * self.shard, len(pairs)))


class Plan:
    """content: the manifest. Shards that were made from the same have the same `made_from`."""

    def __init__(self, pairs: Pairs, teachers: Mapping[str, Student], captions: Captions, settings: Settings, told: Mapping[str, Any]):
        """told: more of the manifest, for the cards of students: `licences`, and what each teacher is `named`."""
        self.pairs, self.settings = pairs, settings
        self.content: dict[str, Any] = {
            "format": FORMAT,
            "pairs": len(pairs),
            "pairs_fingerprint": pairs.fingerprint,
            "teachers": [described(name, model) for name, model in teachers.items()],
            "captions": [{"origin": one.origin, "made_by": one.made_by} for one in captions.captioners],
            "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
            "torch": torch.__version__,
            "licences": {},
            "named": {},
            **told,
        }
        self.shards = -(-len(pairs) // settings.shard)

    def made_from(self, number: int, count: int | None = None) -> str:
        """Digest of all that a shard, or one of only its first `count` pairs, is made from: every field of its pairs, which captioners and
        the `json` of the tar may read, and everything of the manifest but the other pairs."""
        total = blake2b(_json({key: value for key, value in self.content.items() if key not in FREE}), digest_size=16)
        pairs = self.pairs
        for i in self.settings.rows(number, pairs)[:count]:
            row = [pairs.keys[i], pairs.hashes[i], pairs.groups[i], pairs.captions_of(i), pairs.extras[i]]
            data = _json(row)
            total.update(len(data).to_bytes(8, "little") + data)
        return total.hexdigest()

    def fits(self, number: int, file: ShardFile) -> bool:
        """Whether a shard is what would be made now."""
        return file.made_from == self.made_from(number)

    def grew(self, number: int, file: ShardFile) -> bool:
        """Whether a shard is only short of pairs that the source did not have when it was made."""
        here = len(self.settings.rows(number, self.pairs))
        return file.asked < here and file.made_from == self.made_from(number, file.asked)


def begin(out: Path, plan: Plan) -> bool:
    """Writes the manifest, or compares with the one that is there; a source may have grown since. Returns whether it is one of format 1.

    Raises UserError when the folder was begun with something else.
    """
    path, now = out / MANIFEST, plan.content
    if not path.is_file():
        write_json(path, now)
        return False
    before = read_json(path)
    if not isinstance(before, dict):
        raise UserError(f"{path} is not what `clipling reinforce` writes: choose another --out")
    older = before.get("format") == 1
    changed = _changed_of_older(before, now) if older else sorted(k for k in {*before, *now} - FREE if before.get(k) != now.get(k))
    if changed:
        raise UserError(
            f"{out} was begun with other settings: {'; '.join(differences(before, now, changed))}. Give the same source, teachers and "
            "flags to go on, or another --out."
        )
    if not older:
        _refuse_changed_shards(out, plan)
        if any(before.get(key) != now[key] for key in ("pairs", "pairs_fingerprint")):
            write_json(path, now)
    return older


def refuse_older(out: Path) -> None:
    """Raises UserError: tars of two forms in one folder would be checked by halves."""
    raise UserError(
        f"{out} was begun by an earlier clipling, which did not write down which teachers and captions tars are of, and it is not whole. "
        "What is there can be trained on, but not continued: make the source anew in another --out."
    )


def refuse_foreign(out: Path) -> None:
    """Raises UserError for a folder that holds something else."""
    if out.is_dir() and not (out / MANIFEST).is_file() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no {MANIFEST}: choose another --out")


def _changed_of_older(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Of format 1, as far as it says: captioners by their origins, teachers without what was not looked at."""
    changed = [key for key in ("pairs", "pairs_fingerprint", "settings", "torch") if before.get(key) != now[key]]
    known = [{key: value for key, value in one.items() if key != "identity"} for one in now["teachers"]]
    changed += ["teachers"] if before.get("teachers") != known else []
    origins = [[one["origin"] for one in content.get("captions", ())] for content in (before, now)]
    return sorted([*changed, *(["captions"] if origins[0] != origins[1] else [])])


def _refuse_changed_shards(out: Path, plan: Plan) -> None:
    changed = []
    for path in sorted(out.glob("[0-9]*.tar")):
        number, file = int(path.stem) if path.stem.isdecimal() else -1, ShardFile.beside(path)
        if number < 0 or file is None:
            continue
        if number >= plan.shards or not (plan.fits(number, file) or plan.grew(number, file)):
            changed.append(shard_name(number))
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"{out} was begun with other pairs: those of {', '.join(changed[:5])}{more} are no longer the same in the same order "
            "(captions, pictures, groups or other fields were edited, pairs added before others, or removed). Put the source back as it "
            "was, give another --out, or remove these tars and the .json beside each: they alone are made anew then. Pairs may be added "
            "at the end."
        )


def described(name: str, model: Student) -> dict[str, Any]:
    """A teacher as the manifest has it; its tars have its `identity`."""
    own = {"name": name, "dim": model.embed_dim, "scale": scale_of(model), "pixels": model.image_size, "weights": weights_of(model)}
    return {**own, "identity": identity_of(model, own["weights"])}


def scale_of(model: Student) -> float:
    return round(float(model.logit_scale.detach().exp()), 6)


def weights_of(model: Student) -> str:
    """Hexadecimal blake2b of 128 bits of all tensors by name."""
    total = blake2b(digest_size=16)
    for name, value in sorted(model.stock_state().items()):
        total.update(name.encode())
        total.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def identity_of(model: Student, weights: str) -> str:
    """Hexadecimal blake2b of 64 bits of what a teacher makes of pictures and captions: its weights, how it prepares pictures, and its
    tokenizer, which may be another one under the same weights."""
    total = blake2b(_json([weights, model.image_size, model.preprocess_cfg, model.config]), digest_size=8)
    total.update(model.tokenise([PROBE]).numpy().tobytes())
    return total.hexdigest()


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str).encode("utf-8", "surrogatepass")
