"""A report as text for people, and as rows for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastrestore.bench.compare import Row
from fastrestore.bench.machine import line
from fastrestore.bench.record import groups, key, who

_TIMES = ("min", "p50", "p90", "p95", "p99", "max")
_HEADS = ("n", *_TIMES, "cv", "cpu", "per s", "ratio (95 %)")
_LEGEND = (
    "Times of a call in ms; cpu: of all threads, p50; per s: pictures; ratio: p50 over the first's."
)
_PLAIN = (
    "level",
    "task",
    "scenario",
    "streams",
    "backend",
    "model",
    "precision",
    "items",
    "n",
    "metric",
    "per_second",
)
_SUMMARY = (*_TIMES, "mean", "sd", "cv")


def text(report: Mapping[str, Any]) -> str:
    """Return the machine, the models and a table: a block for each thing that was compared."""
    over = {r["run"]: r for r in report["ratios"]}
    by_group = groups(report["runs"])
    blocks = [
        [[title, *_HEADS], *([f"  {who(run)}", *_cells(run, over.get(key(run)))] for run in runs)]
        for title, runs in by_group.items()
    ]
    widths = [max(len(row[i]) for b in blocks for row in b) for i in range(len(_HEADS) + 1)]
    lines = [line(report["env"])]
    lines += [f"{name}: sha256 {digest[:12]}" for name, digest in report["env"]["models"].items()]
    lines.append(_LEGEND)
    for rows, runs in zip(blocks, by_group.values(), strict=True):
        lines.append("")
        for row, run in zip(rows, [None, *runs], strict=True):
            first, *rest = (
                cell.ljust(w) if i == 0 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  ".join([first, *rest]).rstrip())
            lines += [f"    {extra}" for extra in (_extras(run) if run else ())]
    return "\n".join(lines) + "\n"


def _cells(run: Mapping[str, Any], over: Mapping[str, Any] | None) -> list[str]:
    ms, rate = run["ms"], run["per_second"]
    ratio = f"{over['ratio']:.2f} ({over['low']:.2f}-{over['high']:.2f})" if over else ""
    return [
        str(run["n"]),
        *(_short(ms[name]) for name in _TIMES),
        f"{ms['cv']:.2f}",
        _short(run["cpu_ms"]["p50"]),
        "" if rate is None else _short(rate),
        ratio,
    ]


def _extras(run: Mapping[str, Any]) -> Iterator[str]:
    """Yield what has no column: device time, the scenario's own figure, power, notes."""
    if run["device"]:
        parts = [f"{word} {times['p50']:.3f}" for word, times in run["device"].items()]
        yield f"p50 in ms: {', '.join(parts)}; Throughput {run['per_second']:.1f} qps"
    if run["scenario"] != "single-stream":
        metric = run["metric"]
        said = "pictures a second" if metric == "per_second" else metric
        yield f"{run['scenario']} is judged by {said}; {run['items']} pictures a call"
    for power in run["power"]:
        idle = f", idle {power['idle_w']:.2f} W" if power["idle_w"] is not None else ""
        above = power["mj_per_item_above_idle"]
        over_idle = f", {above:.1f} mJ above idle" if above is not None else ""
        yield (
            f"{power['rail']} ({power['meter']}): {power['mean_w']:.2f} W{idle}; "
            f"{power['mj_per_item']:.1f} mJ a picture{over_idle} (n {power['n']})"
        )
    yield from run["notes"]


def _short(value: float) -> str:
    """Write a number with three or four digits that count."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def sheet(report: Mapping[str, Any]) -> str:
    """Return the runs as CSV, a line each; times in ms."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [*_PLAIN, "batch", "height", "width", *(f"{s}_ms" for s in _SUMMARY[:-1]), "cv"]
    heads += ["cpu_p50_ms", "ratio", "ratio_low", "ratio_high", "rail", "mean_w", "idle_w"]
    heads += ["mj_per_item", "mj_per_item_above_idle", "model_sha256"]
    writer.writerow(heads)
    over = {r["run"]: r for r in report["ratios"]}
    for run in report["runs"]:
        batch, height, width = ([1, *run["shape"]])[-4:-1]
        ratio = over.get(key(run), {})
        power = run["power"][0] if run["power"] else {}
        row = [run[name] for name in _PLAIN] + [batch, height, width]
        row += [run["ms"][name] for name in _SUMMARY] + [run["cpu_ms"]["p50"]]
        row += [ratio.get(name) for name in ("ratio", "low", "high")]
        row += [power.get(n) for n in ("rail", "mean_w", "idle_w", "mj_per_item")]
        row += [power.get("mj_per_item_above_idle"), run["sha256"].get("model")]
        writer.writerow("" if v is None else v for v in row)
    return out.getvalue()


def comparison(rows: Sequence[Row]) -> str:
    """Return a comparison, a line each."""
    lines = []
    for row in rows:
        a, b = ("-" if p is None else _short(p) for p in (row.p50_a_ms, row.p50_b_ms))
        by = "" if row.ratio is None else f" x{row.ratio:.2f} ({row.low:.2f} to {row.high:.2f})"
        lines.append(f"{row.run}: {row.verdict}, p50 {a} -> {b} ms{by}")
    return "\n".join(lines) + ("\n" if lines else "")
