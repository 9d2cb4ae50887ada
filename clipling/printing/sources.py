"""Sources, packs, reinforced sources and plans as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipling.printing.shown import table


def shown_plan(result: Mapping[str, Any]) -> str:
    from clipling.planning.shown import pilot_text, plan_text

    return (pilot_text if "pilots" in result else plan_text)(result, table)


def shown_reinforce(result: Mapping[str, Any]) -> str:
    """What is stored, how large a pair is, and what storing changed."""
    pairs = max(1, result["pairs"])
    size, pictures = result["bytes"] / pairs, result["picture_bytes"] / pairs
    said = [
        f"{result['pairs']:,} pairs in {result['shards_there']} of {result['shards']} tars, {result['made']} of them made now; "
        f"{size:,.0f} bytes a pair, {pictures:,.0f} of them the picture"
    ]
    missing = result["shards"] - result["shards_there"]
    if missing:
        said.append(f"{missing} tars are not there yet: other processes are making them; otherwise the same command makes them")
    if result["damaged"]:
        said.append(f"damaged, and made anew: {', '.join(result['damaged'])}")
    elif result.get("checked"):
        said.append("checked: every tar that was there is as it was written")
    if result["left_out"]:
        said.append(f"left out, their pictures cannot be read: {', '.join(key for key, _ in result['left_out'][:5])}")
    if result["captions"]:
        said.append("synthetic captions: " + ", ".join(f"{count:,} {origin}" for origin, count in result["captions"].items()))
        said += [f"warning: no captions of {origin!r} were made" for origin, count in result["captions"].items() if not count]
    rows = [[name, f"{found['largest']:.1e}", f"{found['lowest_cosine']:.6f}"] for name, found in result["errors"].items()]
    shown = table(["stored embeddings of", "largest error", "lowest cosine"], rows)
    without = "" if sum(result["captions"].values()) else " --set objective.reinforced.options.captions=real"
    return "\n".join(
        [*said, "", shown, "", f"next:  clipling train mobileclip --data {result['out']} --out RUN{without}   (or mobileclip2)"]
    )


def shown_inspect(result: Mapping[str, Any]) -> str:
    from clipling.data.inspect import render

    return render(result)


def shown_pack(result: Mapping[str, Any]) -> str:
    from clipling.data.problems import heading

    pictures = f"{result['resized']:,} pictures resized, {result['kept']:,} kept as they were"
    said = [f"{result['pairs']:,} pairs, {result['captions']:,} captions in {result['shards']:,} tars of {result['out']}", pictures]
    said[1] += f"; {result['bytes'] / 1e6:,.1f} MB"
    if result["left_out"]:
        said.append(heading(result["left_out"]))
        said.extend(f"  {where[:200]}: {detail[:200]}" for _, where, detail in result["first_problems"])
        said.append(f"  all are listed in {result['problem_list']}")
    if result["failed"]:
        said.append("warning: more than a tenth of the rows was left out, which the exit code 1 tells too")
    return "\n".join([*said, f"next:  clipling train clip --data {result['out']} --out runs/clip"])
