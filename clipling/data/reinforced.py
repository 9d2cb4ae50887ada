"""Pairs with a teacher's knowledge beside them: the members of one pair in DataCompDR's layout, written and read.

Of MobileCLIP (Vasu et al., arXiv 2311.17049). Beside `key.jpg`, `key.txt` and `key.json`, which make a plain pair for any reader:

    key.paug.json   {"param_aug": [K records], "size": [width, height], "hash": ..., "teachers": [[name, size, scale, identity], ...],
                     "texts": {"text": digest of the captions, "<origin>": of its captions, ...}}
    key.syn.json    {"syn_text_<origin>": [captions], ...}
    key.npz         image_emb [K, D], text_emb [captions, D], syn_text_<origin>_emb [n, D]

`size`, `hash`, `teachers` and `texts` are ours. Apple's own files have none of them, hold all captions in one `text_emb` (the real one
first) and come as `key.pth.gz` too, a gzipped pickle of tensors, which is read by torch's restricted loader and up to a size. Files of
clipling before it wrote identities and digests lack these two; they are read, and what cannot be checked is counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from clipling.data.packing import SCALE, Storage, packed, parts, unpacked
from clipling.data.reading import clean_captions
from clipling.data.replay import Record
from clipling.data.stored_arrays import FormatError, npz_bytes, read_npz, read_pickle

SYNTHETIC = "syn_text"


@dataclass(frozen=True)
class TeacherInfo:
    """One teacher of stored embeddings: its name, the size of its rows, what it multiplies similarities by (None: not said).

    identity: digest of its weights and of how it reads pictures and captions; "" where it is not said (Apple's files, older ones of ours).
    """

    name: str
    dim: int
    scale: float | None = None
    identity: str = ""


@dataclass
class Sample:
    """What is stored for one pair.

    size: (width, height) of the picture, upright; None where that is not said. synthetic: captions by origin. embeddings: unit rows by
    `image` [K, D], `text` [captions, D] and origin [n, D], as they are stored; scales: of int8 rows, by the same names. digests: of the
    texts that were encoded (see `texts_digest`), by the same names; none where that is not said.
    """

    records: list[Record]
    size: tuple[int, int] | None
    hash: str
    teachers: list[TeacherInfo]
    synthetic: dict[str, list[str]] = field(default_factory=dict)
    embeddings: dict[str, np.ndarray] = field(default_factory=dict)
    scales: dict[str, np.ndarray] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)


def texts_digest(texts: Sequence[str]) -> str:
    """Hexadecimal blake2b of 64 bits of texts in their order, as readers clean them: what rows of embeddings belong to."""
    total = blake2b(digest_size=8)
    for text in clean_captions(texts):
        data = text.encode("utf-8")
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def members(sample: Sample, storage: Storage, flips: bool) -> dict[str, bytes]:
    """The members by suffix of a sample with embeddings in float32. Raises UserError for an unknown storage."""
    dims = [teacher.dim for teacher in sample.teachers]
    paug = {
        "param_aug": [record.to_json(flips) for record in sample.records],
        "size": list(sample.size or ()),
        "hash": sample.hash,
        "teachers": [[t.name, t.dim, t.scale, *([t.identity] if t.identity else [])] for t in sample.teachers],
    }
    if sample.digests:
        paug["texts"] = sample.digests
    made = {"paug.json": _json(paug)}
    if sample.synthetic:
        made["syn.json"] = _json({_key(origin): texts for origin, texts in sample.synthetic.items()})
    arrays: dict[str, np.ndarray] = {}
    for name, rows in sample.embeddings.items():
        arrays |= packed(array_name(name), rows, dims, storage)
    return made | {"npz": npz_bytes(arrays)}


def array_name(name: str) -> str:
    """`image_emb` for `image`, `syn_text_rules_emb` for the origin `rules`."""
    return f"{name if name in ('image', 'text') else _key(name)}_emb"


def _key(origin: str) -> str:
    return f"{SYNTHETIC}_{origin}" if origin else SYNTHETIC


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def read_sample(found: Mapping[str, bytes], captions: int, teachers: Sequence[TeacherInfo] = ()) -> Sample:
    """The sample of members by suffix. captions: how many real ones the pair has. teachers: where the members do not name them.

    Raises FormatError, which names the member.
    """
    paug = _object(found, "paug.json")
    try:
        records = [Record.from_json(one) for one in paug.get("param_aug") or []]
    except (ValueError, TypeError) as error:
        raise FormatError(f"paug.json: {error}") from error
    size = _size(paug.get("size"))
    arrays = read_npz(found["npz"]) if "npz" in found else read_pickle(found["pth.gz"]) if "pth.gz" in found else {}
    texts = {k: v for k, v in _object(found, "syn.json").items() if k.startswith(SYNTHETIC)} if "syn.json" in found else {}
    named = _teachers(paug.get("teachers") or []) or list(teachers)
    sample = Sample(records, size, str(paug.get("hash") or ""), named)
    sample.synthetic = {key.removeprefix(SYNTHETIC).removeprefix("_"): _texts(key, texts[key]) for key in texts}
    sample.digests = _digests(paug.get("texts") or {})
    for origin, own in sample.synthetic.items():
        refuse_changed(sample, origin, own, f"the texts of {_key(origin)}")
    _fill(sample, _split_legacy(arrays, sample.synthetic, captions))
    return sample


def refuse_changed(sample: Sample, name: str, texts: Sequence[str], what: str) -> None:
    """Raises FormatError when `texts` are not those that the embeddings called `name` were made of, as far as that is said."""
    said = sample.digests.get(name)
    if said is not None and said != texts_digest(texts):
        raise FormatError(f"{what} were changed after the teachers read them: the embeddings belong to other words", "changed captions")


def _digests(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise FormatError(f"paug.json: texts are {value!r}, not digests by name")
    return value


def _size(value: Any) -> tuple[int, int] | None:
    if not value:
        return None
    try:
        width, height = (int(side) for side in value)
    except (TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"paug.json: size is {value!r}, not a width and a height") from error
    if width < 1 or height < 1:
        raise FormatError(f"paug.json: size is {value!r}, not a width and a height")
    return width, height


def _teachers(rows: Any) -> list[TeacherInfo]:
    """Names that differ, sizes, and scales that are positive numbers."""
    try:
        named = [_teacher(*row) for row in rows]
    except (TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"paug.json: teachers are {rows!r}, not rows of name, size, scale and identity") from error
    if len({one.name for one in named}) < len(named):
        raise FormatError(f"paug.json: two teachers are called alike: {', '.join(one.name for one in named)}")
    for one in named:
        if one.dim < 1 or (one.scale is not None and not 0 < one.scale < math.inf):
            raise FormatError(f"paug.json: the teacher {one.name} has size {one.dim} and scale {one.scale}")
    return named


def _teacher(name: Any, dim: Any, scale: Any, identity: Any = "") -> TeacherInfo:
    return TeacherInfo(str(name), int(dim), None if scale is None else float(scale), str(identity or ""))


def _object(found: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in found:
        raise FormatError(f"no {name}")
    try:
        content = json.loads(found[name])
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{name} is not a JSON object")
    return content


def _texts(key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise FormatError(f"syn.json: {key} is not a list of texts")
    return value


def _split_legacy(arrays: dict[str, np.ndarray], synthetic: dict[str, list[str]], captions: int) -> dict[str, np.ndarray]:
    """DataCompDR's `text_emb` holds the real captions first and then the synthetic ones; ours are apart."""
    rows, extra = arrays.get("text_emb"), sum(map(len, synthetic.values()))
    apart = any(array_name(origin) in arrays for origin in synthetic)
    if rows is None or apart or not extra or len(rows) != captions + extra:
        return arrays
    made, at = {**arrays, "text_emb": rows[:captions]}, captions
    for origin, texts in synthetic.items():
        made[array_name(origin)] = rows[at : at + len(texts)]
        at += len(texts)
    return made


def _fill(sample: Sample, arrays: Mapping[str, np.ndarray]) -> None:
    expected = {"image": len(sample.records), "text": None, **{origin: len(texts) for origin, texts in sample.synthetic.items()}}
    width = sum(teacher.dim for teacher in sample.teachers)
    for name, count in expected.items():
        rows = arrays.get(array_name(name))
        if rows is None:
            raise FormatError(f"the embeddings lack {array_name(name)}")
        if rows.ndim != 2 or rows.dtype not in (np.float32, np.float16, np.int8) or (count is not None and len(rows) != count):
            raise FormatError(f"{array_name(name)} is {rows.dtype} {list(rows.shape)}, which is not {count or 'n'} rows of embeddings")
        if sample.teachers and rows.shape[1] != width:
            raise FormatError(f"{array_name(name)} has rows of {rows.shape[1]}, its teachers {width}")
        sample.embeddings[name] = rows
        if rows.dtype == np.int8:
            scale = arrays.get(array_name(name) + SCALE)
            if scale is None or scale.shape != (len(rows), len(sample.teachers)):
                raise FormatError(f"{array_name(name)} is int8 without a fitting {array_name(name) + SCALE}")
            sample.scales[name] = scale.astype(np.float32)
        _refuse_no_directions(sample, name)


def _refuse_no_directions(sample: Sample, name: str) -> None:
    """Of each teacher: zeros would make all pictures equally likely, without a word."""
    dims, scale = [teacher.dim for teacher in sample.teachers], sample.scales.get(name)
    if not dims:
        return  # refused where teachers are compared
    with np.errstate(all="ignore"):
        made = unpacked(sample.embeddings[name], dims, scale)
        lengths = np.stack([np.linalg.norm(part, axis=1) for part in parts(made, dims)])
    if not (np.abs(lengths - 1) < 1e-3).all() or (scale is not None and not (scale > 0).all()):  # not true of what is no number either
        raise FormatError(f"{array_name(name)} holds numbers that are not finite, or rows of zeros")
