"""Per-item values beside the results: what intervals and paired comparisons of two models resample."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clipling.evals.results import Result
from clipling.evals.suite.found import Found
from clipling.store import atomic_produce

ITEMS = "items"


def lengths(found: Found) -> dict[str, int]:
    """How many items each metric has, as results keep it: files that hold other ones are not believed."""
    return {name: len(values) for name, values in found.items.items()}


def save_items(path: Path, found: Found) -> None:
    """float32 would do for hits, but not for differences of nDCG: fp64, compressed."""
    if not found.items:
        path.unlink(missing_ok=True)
        return
    arrays = {f"value:{name}": np.asarray(values, np.float64) for name, values in found.items.items()}
    arrays |= {f"unit:{name}": np.asarray(unit, np.int64) for name, unit in found.units.items() if name in found.items}

    def save(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)

    atomic_produce(path, save)


def read_items(out: Path, result: Result) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """(values [n], units [n] or None) by metric; empty where the file is absent or damaged, or holds other items than the result says."""
    path = out / ITEMS / f"{Path(result.filename()).stem}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except Exception:  # a damaged archive raises many kinds
        return {}
    values = {name.removeprefix("value:"): v for name, v in found.items() if name.startswith("value:")}
    units = {name: found.get(f"unit:{name}") for name in values}
    wanted = result.made.get("items", {name: len(v) for name, v in values.items()})
    fits = wanted == {name: len(v) for name, v in values.items()} and all(u is None or len(u) == len(values[n]) for n, u in units.items())
    finite = all(np.isfinite(v).all() for v in values.values())
    return {name: (v, units[name]) for name, v in values.items()} if fits and finite else {}
