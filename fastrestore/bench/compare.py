"""Two reports against each other: how they differ, and whether the second is too slow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastrestore.arrays import F64
from fastrestore.bench.machine import differences
from fastrestore.bench.quiet import OTHERS
from fastrestore.bench.record import check_report, key
from fastrestore.bench.stats import RESAMPLES, ratio_of_reports
from fastrestore.environment import is_busy
from fastrestore.errors import InputError

Verdict = Literal["b is faster", "b is slower", "no difference", "only in a", "only in b"]
Times = tuple[F64, F64]  # wall and processor, ms


@dataclass(frozen=True, slots=True)
class Row:
    """One run in two reports: `ratio` = p50 of b over p50 of a, below 1 = b is faster.

    `low` and `high` bound the ratio with 95 %; `cpu_ratio` is the same of processor time, None
    where the clock saw none. What needs both reports is None where one lacks the run.
    """

    run: str
    p50_a_ms: float | None
    p50_b_ms: float | None
    ratio: float | None
    low: float | None
    high: float | None
    cpu_ratio: float | None
    verdict: Verdict


def compare(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    names: tuple[str, str] = ("a", "b"),
    *,
    busy_ok: bool = False,
    resamples: int = RESAMPLES,
) -> list[Row]:
    """Compare two reports; equal runs of a report are pooled.

    The intervals cover the scatter inside the runs, not what changed between them.

    Args:
        a: A report read from JSON.
        b: The report it is compared with.
        names: Of both, for messages.
        busy_ok: Compare although one was made on a busy machine.
        resamples: Bootstrap samples.

    Raises:
        InputError: Not a report, or made on a busy machine.
    """
    rng = np.random.default_rng(0)  # the same files give the same interval
    of_a, of_b = (_times(name, r, busy_ok) for name, r in zip(names, (a, b), strict=True))
    runs = dict.fromkeys([*of_a, *of_b])  # the order of the reports, each run once
    return [_row(run, of_a.get(run), of_b.get(run), resamples, rng) for run in runs]


def refuse_others(baseline: Mapping[str, Any], now: Mapping[str, Any], name: str) -> None:
    """Refuse to judge by a baseline of another machine or of other models.

    Args:
        baseline: A report.
        now: The report that is judged.
        name: The baseline's, for messages.

    Raises:
        InputError: It is one.
    """
    mend = f"make a baseline here: fastrestore bench --output {name}"
    machines = differences(baseline["env"], now["env"])
    if machines:
        raise InputError(f"{name}: is of another machine ({'; '.join(machines)}); {mend}")
    hashes = {key(run): run["sha256"] for run in baseline["runs"]}
    for run in now["runs"]:
        before = hashes.get(key(run), run["sha256"])
        for what, digest in run["sha256"].items():
            if before.get(what) != digest:
                one, other = (before.get(what) or "none")[:12], digest[:12]
                raise InputError(
                    f"{name}: {key(run)}: another {what} file (sha256 {one} there, {other} here); "
                    f"{mend}"
                )
    missing = [row for row in hashes if row not in {key(run) for run in now["runs"]}]
    if missing:
        raise InputError(f"{name}: {missing[0]}: could not be measured now; {mend}")


def too_slow(rows: Sequence[Row], tolerance: float) -> list[tuple[Row, float, float]]:
    """Return what became slower by more than a tolerance, the whole interval beyond it.

    Args:
        rows: Of `compare`, the baseline as a.
        tolerance: 0.1 = ten percent.

    Returns:
        Each with its ratio and the least that it may be.
    """
    found = ((row, row.ratio, row.low) for row in rows)
    return [
        (row, ratio, low)
        for row, ratio, low in found
        if ratio is not None and low is not None and low > 1 + tolerance
    ]


def _times(name: str, report: Mapping[str, Any], busy_ok: bool) -> dict[str, Times]:
    """Pool wall and processor times of a report by what was run."""
    check_report(report, name)
    if not busy_ok:
        _refuse_busy(name, report)
    times: dict[str, list[F64]] = {}
    for run in report["runs"]:
        both = np.array([run["samples_ms"], run["cpu_samples_ms"]], np.float64)
        times.setdefault(key(run), []).append(both)
    pooled = {run: np.concatenate(parts, axis=1) for run, parts in times.items()}
    return {run: (both[0], both[1]) for run, both in pooled.items()}


def _refuse_busy(name: str, report: Mapping[str, Any]) -> None:
    """By what other processes did meanwhile, else by the load before."""
    again = "repeat it idle, or --busy-ok"
    env, others = report["env"], report["quiet"].get("others_cpu")
    if (env.get("gpu") or {}).get("processes"):
        raise InputError(f"{name}: other processes computed on the GPU; {again}")
    if others is not None:
        if others > OTHERS:
            raise InputError(
                f"{name}: other processes used {others:.0%} of the cores meanwhile; {again}"
            )
        return
    load, cores = (env["load_average"] or [0.0])[0], env["usable_cores"]
    if is_busy(load, cores):
        raise InputError(f"{name}: made at load {load} on {cores} cores; {again}")


def _row(
    run: str, a: Times | None, b: Times | None, resamples: int, rng: np.random.Generator
) -> Row:
    wall_a, wall_b = (None if x is None else float(np.median(x[0])) for x in (a, b))
    if a is None or b is None:
        alone: Verdict = "only in b" if a is None else "only in a"
        return Row(run, wall_a, wall_b, None, None, None, None, alone)
    ratio = ratio_of_reports(b[0], a[0], rng, resamples)
    cpu_a, cpu_b = float(np.median(a[1])), float(np.median(b[1]))
    verdict: Verdict = "no difference"
    if ratio.high < 1 or ratio.low > 1:
        verdict = "b is faster" if ratio.high < 1 else "b is slower"
    cpu_ratio = cpu_b / cpu_a if cpu_a > 0 else None
    return Row(run, wall_a, wall_b, ratio.value, ratio.low, ratio.high, cpu_ratio, verdict)
