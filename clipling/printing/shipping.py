"""Exported folders, latencies, web folders and indexes as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipling.printing.shown import percent, table


def shown_search_index(result: Mapping[str, Any]) -> str:
    changes = [f"{result[key]:,} {word}" for key, word in _CHANGES.items() if result[key]]
    said = [f"{result['pictures']:,} pictures ({result['files']:,} files) of {result['images']}: {', '.join(changes)}"]
    if result["broken"]:
        said.append(f"{result['broken']:,} could not be used: {result['problems']}")
    if result["ranking"] == "hnsw":
        said.append(f"ranked by an HNSW graph, recall@10 against comparing all: {percent(result['recall@10'])} %")
    return "\n".join([*said, f"index: {result['index']}", f"next:  clipling search serve {result['index']}"])


# `recognised`: another name, place or date (or a date too young to be trusted), but bytes that were there before.
_CHANGES = {"encoded": "new", "recognised": "known by their bytes", "unchanged": "unchanged", "removed": "removed"}


def shown_export(result: Mapping[str, Any]) -> str:
    """Sizes of the files, and how far the graphs are from the torch model."""
    if "bytes_loaded" in result:
        return _web(result)
    files = [[name, f"{size:,}"] for name, size in result["files"].items()]
    rows = [
        [precision, part, f"{value['cosine']:.6f}", f"{value['max_error']:.1e}"]
        for precision, parts in result["agreement"].items()
        for part, value in parts.items()
    ]
    shown = table(["against torch", "on", "lowest cosine", "largest error"], rows)
    end = f"model: {result['out']}\nnext:  python -c \"import clipling; print(clipling.load({result['out']!r}).encode_text(['a dog']))\""
    warned = [f"warning: {line}" for line in result.get("warnings", [])]
    return "\n\n".join([*warned, table(["file", "bytes"], files), shown, *([_gate(result["gate"])] if "gate" in result else []), end])


def _gate(findings: Sequence[Mapping[str, Any]]) -> str:
    """What the smaller graphs lose against fp32."""
    rows = []
    for found in findings:
        kept = found["settings"].get("kept_fp32") or []
        close = f"cosine {found['cosine']['mean']:.4f}, least {found['cosine']['least']:.4f}"
        lost = [
            f"{name} {percent(d['reference'])} to {percent(d['here'])} (drop {percent(d['low'])} to {percent(d['high'])}, "
            f"chance {percent(d['chance'])})"
            for name, d in found["drops"].items()
        ]
        layers = f"{len(kept)} layer{'s' * (len(kept) > 1)} in fp32" if kept else ""
        rows.append([found["file"], found["settings"]["method"], "; ".join([close, *lost, *([layers] if layers else [])])])
    notes = "\n".join(f"{', '.join(files)}: {said}" for said, files in _by_note(findings).items())
    return f"{table(['passed the gate', 'how', 'against fp32'], rows, words=True)}\n{notes}"


def _by_note(findings: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Each note with the files that it is about."""
    found: dict[str, list[str]] = {}
    for finding in findings:
        found.setdefault(finding["note"], []).append(finding["file"])
    return found


def shown_latency(result: Mapping[str, Any]) -> str:
    rows = [
        [
            row["model"], row["backend"], row["precision"], row["side"], str(row["threads"]), str(row["batch"]),
            f"{row['p50_ms']:.2f}", f"{row['p95_ms']:.2f}", f"{row['per_s']:.1f}",
            "" if row["gflops"] is None else f"{row['gflops']:.3f}", f"{row['file_mb']:.1f}", f"{row['peak_mb']:.0f}",
        ]
        for row in sorted(result["rows"], key=lambda row: (row["side"], row["threads"], row["batch"]))
    ]  # fmt: skip
    header = ["model", "backend", "precision", "side", "threads", "batch", "p50 ms", "p95 ms", "per s", "GFLOPs", "file MB", "peak MB"]
    written = [f"written: {result['out']}"] if "out" in result else []
    return "\n".join([table(header, rows), "", *result["notes"], *written])


def _web(result: Mapping[str, Any]) -> str:
    sizes = f"{result['bytes'] / 1e6:.1f} MB, of which a browser loads {result['bytes_loaded'] / 1e6:.1f} MB"
    towers = ", ".join(f"{side} tower {precision}" for side, precision in result["precisions"].items())
    said = f"web folder: {result['out']} ({sizes}; {towers})"
    return f"{said}\nnext:       python -m http.server --directory {result['out']}, and open the address that it prints; or any file server"
