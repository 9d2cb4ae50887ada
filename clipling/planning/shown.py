"""A plan as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UNITS = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
NONE = "–"  # there is nothing of it


def size(value: float) -> str:
    """Bytes with three digits."""
    for factor, unit in UNITS:
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"


def time(value: float) -> str:
    """Hours, in what a person would say."""
    if value < 1 / 60:
        return f"{3600 * value:.2g} s"
    if value < 1:
        return f"{60 * value:.2g} min"
    if value < 48:
        return f"{value:.3g} h"
    return f"{value / 24:,.3g} days" if value < 24 * 700 else f"{value / 24 / 365.25:,.3g} years"


def count(value: float) -> str:
    """A number of pairs with a suffix."""
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f}"


def plan_text(result: Mapping[str, Any], table: Any) -> str:
    """The plan; `table(header, rows)` draws tables."""
    plans: Sequence[Mapping[str, Any]] = result["plans"]
    head = f"{result['recipe']}, student {result['student']}, {result['epochs']:g} epochs, machine {result['machine']['name']}"
    header = ["pairs", *(count(p["pairs"]) for p in plans)]
    rows = [[f"disk: {name}", *(size(p["bytes"][name]) for p in plans)] for name in plans[0]["bytes"]]
    rows += [["memory, at most", *(size(p["memory"]["peak"]) for p in plans)]]
    names = list(dict.fromkeys(name for p in plans for name in p["hours"]))
    rows += [[f"time: {name}", *(time(p["hours"][name]) if name in p["hours"] else NONE for p in plans)] for name in names]
    if plans[0]["money"] is not None:
        rows += [["money", *(f"{p['money']:,.2f}" for p in plans)]]
    broken = [limit["name"] for limit in result["limits"] if any(limit["name"] in p["broken"] for p in plans)]
    rows += [[f"too much: {name}", *("yes" if name in p["broken"] else "no" for p in plans)] for name in broken]
    stored = stored_text(result["stored"]) if "stored" in result else []
    breaks = [limit for limit in result["limits"] if limit["most_pairs"] is not None and limit["name"] != "exact neighbours"]
    lines = [head, "", table(header, rows), "", *stored]
    if breaks:
        first = breaks[0]
        lines.append(f"breaks first: {first['name']}, above {count(first['most_pairs'])} pairs. {first['advice']}")
        lines += [f"then: {limit['name']}, above {count(limit['most_pairs'])} pairs" for limit in breaks[1:]]
    else:
        lines.append("nothing breaks")
    lines += [f"note: {note}" for note in result["notes"]]
    return "\n".join(lines)


def stored_text(stored: Mapping[str, Any]) -> list[str]:
    """What is stored beside a pair, and how large that is in each format."""
    sizes = ", ".join(f"{storage} {count:,}" for storage, count in stored["bytes_a_pair"].items())
    teachers = " + ".join(map(str, stored["dims"].values()))
    what = f"{stored['augmentations']} augmentations, {stored['captions']:g} own and {stored['synthetic']:g} synthetic captions"
    return [f"stored knowledge, bytes a pair: {sizes} ({what}, embeddings of {teachers}; planned with {stored['storage']})"]


def pilot_text(result: Mapping[str, Any], table: Any) -> str:
    """The pilots and the forecasts as a person reads them; `table(header, rows)` draws tables."""
    shown = lambda row: [f"{100 * row['recall']:.1f}", f"{100 * row['low']:.1f} - {100 * row['high']:.1f}"]  # noqa: E731
    pilots = [[str(p["pairs"]), f"{p['epochs']:.3g}", *shown(p)] for p in result["pilots"]]
    # Numbers that say nothing would be read: what cannot be forecast has none, and the word that it cannot comes first.
    known = lambda row: [NONE, NONE] if "why_not" in row else shown(row)  # noqa: E731
    rows = [[f["what"], f"{f['pairs']:,}", f"{f['epochs']:.3g}", *known(f)] for f in result["forecasts"]]
    rows += [[name, NONE, NONE, *shown(found)] for name, found in result["against"].items()]
    lines = [
        table(["pilots: pairs", "epochs", "recall@10", "90 %"], pilots),
        "",
        table(["forecast", "pairs", "epochs", "recall@10", "90 %"], rows),
    ]
    for row in result["forecasts"]:
        if "in_the_pilots" in row:
            apart = row["in_the_pilots"]
            lines.append(
                f"{row['what'].partition(',')[0]}: {100 * apart['difference']:+.1f} points in the pilots "
                f"({100 * apart['low']:+.1f} to {100 * apart['high']:+.1f})"
            )
    return "\n".join([result["verdict"], "", *lines] if "why_not" in result["forecasts"][0] else [*lines, "", result["verdict"]])
