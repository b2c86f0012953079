"""From scores to a report: means, paired intervals, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastrestore.contenders import GIVEN, RAW, titled
from fastrestore.measure import METRICS, Line
from fastrestore.metrics import bootstrap_intervals

SEED, RESAMPLES = 0, 10_000
Interval = tuple[float, float, float]  # mean, low and high end of 95 %
_UNITS = {"psnr": "PSNR, dB", "hole_psnr": "hole PSNR, dB", "ssim": "SSIM", "lpips": "LPIPS"}
_DIGITS = {"psnr": 2, "hole_psnr": 2, "ssim": 4, "lpips": 4, "edge_f1": 3}

# Printed in the paper for its own masks and test pictures; its SSIM is known for one row only.
AS_REPORTED = (
    ("EdgeConnect", 26.42, 0.891),
    ("HiFill", 25.76, None),
    ("ICT", 27.33, None),
    ("CoMod-GAN", 28.91, None),
    ("the paper's own method", 30.24, None),
)
# Kodak24, colour, PSNR at sigma 15, 25, 50, noise unclipped: as their authors or a reprint say.
DENOISERS_AS_REPORTED = (
    ("DnCNN", 34.60, 32.14, 28.95),
    ("FFDNet (told sigma)", 34.63, 32.13, 28.98),
    ("DRUNet (32.6 M, told sigma)", 35.31, 32.89, 29.86),
    ("SwinIR", 35.36, 32.90, 29.81),
    ("Restormer", 35.49, 33.05, 30.01),
    ("Restormer, one blind model", 35.45, 33.04, 30.01),
)


@dataclass(frozen=True, slots=True)
class Result:
    """One method on one case.

    Attributes:
        case: Slug.
        label: The case in words.
        family: As in `protocol.Case`.
        ratio: Wanted share of the hole.
        share: Mean, least and largest share as drawn.
        sigma: Noise, 0-255 scale.
        method: As in `Contender`.
        variant: Likewise.
        n: Pictures.
        mean: By metric; those that exist.
        gain: By metric: ours minus this one, paired by picture. Empty for ours.
        seconds: Mean time of a call; None where it was not ours to measure.
    """

    case: str
    label: str
    family: str
    ratio: float
    share: Interval
    sigma: float
    method: str
    variant: str
    n: int
    mean: Mapping[str, Interval]
    gain: Mapping[str, Interval]
    seconds: float | None

    @property
    def title(self) -> str:
        """Method and variant in one."""
        return titled(self.method, self.variant)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def summarise_cases(
    lines: Iterable[Line], cases: Mapping[str, Mapping[str, Any]], pictures: int, ours: str
) -> tuple[list[Result], list[str]]:
    """Average by case and method, with paired 95 % bootstrap intervals.

    Args:
        lines: Of a ledger.
        cases: What each slug means (`Case.to_json`), in the order wanted.
        pictures: How many there are: a method that has not seen all is left out.
        ours: The method that the gains belong to, run the usual way.

    Returns:
        Results, and a line for every method left out.
    """
    tables: dict[str, dict[tuple[str, str], dict[str, Line]]] = {slug: {} for slug in cases}
    for line in lines:
        if line.case in tables:
            by_name = tables[line.case].setdefault((line.method, line.variant), {})
            by_name[line.picture] = line
    results, notes = [], []
    for slug, by_method in tables.items():
        whole = {}
        for key, by_name in by_method.items():
            if len(by_name) == pictures:
                whole[key] = [by_name[p] for p in sorted(by_name)]
            else:
                seen = f"{len(by_name)} of {pictures} pictures"
                notes.append(f"{slug}: {titled(*key)} has seen {seen} and is left out")
        results += _case(slug, cases[slug], whole, whole.get((ours, GIVEN)))
    return results, notes


def _case(
    slug: str,
    case: Mapping[str, Any],
    whole: Mapping[tuple[str, str], list[Line]],
    mine: list[Line] | None,
) -> list[Result]:
    """Summarise one case: all means and differences by one set of resamples."""
    rows, keys = [], []
    for key, lines in whole.items():
        for metric in METRICS:
            values = _column(lines, metric)
            if values is None:
                continue
            rows.append(values)
            keys.append((key, metric, "mean"))
            best = None if mine is None or lines is mine else _column(mine, metric)
            if best is not None:
                rows.append(best - values)
                keys.append((key, metric, "gain"))
    if not rows:
        return []
    rng = np.random.default_rng(SEED)
    table = bootstrap_intervals(np.stack(rows), rng, RESAMPLES)
    found: dict[Any, Interval] = {
        k: (float(r[0]), float(r[1]), float(r[2])) for k, r in zip(keys, table, strict=True)
    }
    results = []
    for key, lines in whole.items():
        shares = [line.share for line in lines]
        times = [line.seconds for line in lines if line.seconds is not None]
        results.append(
            Result(
                slug,
                str(case["label"]),
                str(case["family"]),
                float(case["ratio"]),
                (float(np.mean(shares)), min(shares), max(shares)),
                float(case["sigma"]),
                *key,
                len(lines),
                {m: found[key, m, "mean"] for m in METRICS if (key, m, "mean") in found},
                {m: found[key, m, "gain"] for m in METRICS if (key, m, "gain") in found},
                float(np.mean(times)) if times else None,
            )
        )
    return results


def _column(lines: Sequence[Line], metric: str) -> Any:
    values = [getattr(line, metric) for line in lines]
    return None if any(v is None for v in values) else np.array(values, np.float64)


def headline(results: Sequence[Result], ours: str, models: Sequence[str] = ()) -> list[str]:
    """Say in a few lines where ours is ahead, where it is not, and where that is open.

    The untouched input, our other models and raw output do not count as others.
    """
    left_out = {ours, "input", *models}
    others = [
        r for r in results if r.method not in left_out and r.variant == GIVEN and "psnr" in r.gain
    ]
    if not others:
        return []
    ahead = [r for r in others if r.gain["psnr"][1] > 0]
    behind = [r for r in others if r.gain["psnr"][2] < 0]
    lines = [
        f"PSNR of {ours} against the others: ahead in {len(ahead)} of {len(others)} comparisons, "
        f"behind in {len(behind)}, open (the interval holds 0) in "
        f"{len(others) - len(ahead) - len(behind)}."
    ]
    least = min(others, key=lambda r: r.gain["psnr"][0])
    gain = _signed(least.gain["psnr"], 2)
    lines.append(f"The smallest gain: {gain} dB over {least.title} at {least.label}.")
    return lines


def markdown_report(
    results: Sequence[Result],
    *,
    ours: str,
    models: Sequence[str] = (),
    about: Sequence[str],
    notes: Sequence[str],
    reported: bool = True,
) -> str:
    """Write the whole report.

    Args:
        results: Of `summarise_cases`.
        ours: The method that the gains belong to.
        models: All of ours.
        about: Lines on what was measured and how.
        notes: Lines on what was left out.
        reported: Quote the figures printed elsewhere, apart from ours.
    """
    parts = [f"# {ours} by the paper's protocol", *headline(results, ours, models)]
    parts.append("\n".join(f"- {line}" for line in about))
    if notes:
        parts.append("Left out:\n" + "\n".join(f"- {line}" for line in notes))
    for family in dict.fromkeys(r.family for r in results):
        part = [r for r in results if r.family == family]
        parts.append(f"## {_FAMILY_TITLES.get(family, family)}")
        if len({r.case for r in part}) > 1:
            parts += [_curve_table(part, m) for m in ("psnr", "lpips") if _has(part, m)]
        parts.append(_full_table(part))
    if reported:
        parts.append(as_reported(any("unclipped" in r.label for r in results)))
    return "\n\n".join(parts) + "\n"


_FAMILY_TITLES = {
    "freeform": "Free-form holes",
    "rects": "Rectangles",
    "grid": "Lost blocks (grid of 16 px)",
    "thin": "Scratches of 1-5 px",
    "files": "Given masks",
    "noise": "Noise alone",
    "all": "All three at once",
}


def _has(results: Sequence[Result], metric: str) -> bool:
    return any(metric in r.mean for r in results)


def _curve_table(results: Sequence[Result], metric: str) -> str:
    """One metric, a column a case: the curve as a table, without raw output."""
    results = [r for r in results if r.variant != RAW]
    cases = {r.case: r.label for r in results}
    lines = [
        f"| {_UNITS[metric]} | " + " | ".join(cases.values()) + " |",
        "| --- " * (len(cases) + 1) + "|",
    ]
    for title in dict.fromkeys(r.title for r in results):
        by_case = {r.case: r.mean[metric][0] for r in results if r.title == title}
        cells = [_number(by_case.get(c), metric) for c in cases]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _full_table(results: Sequence[Result]) -> str:
    metrics = [m for m in METRICS if _has(results, m)]
    heads = {**_UNITS, "edge_f1": "edge F1"}
    gains = [m for m in ("psnr", "lpips") if m in metrics]
    head = ["damage", "hole, %", "method", "n", *(heads[m] for m in metrics)]
    head += [f"ours minus this: {_UNITS[m]} (95 %)" for m in gains] + ["ms"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for r in results:
        share = f"{100 * r.share[0]:.1f}" if r.share[2] else ""
        cells = [r.label, share, r.title, str(r.n)]
        cells += [_number(r.mean[m][0] if m in r.mean else None, m) for m in metrics]
        cells += [_signed(r.gain[m], _DIGITS[m]) if m in r.gain else "" for m in gains]
        cells.append("" if r.seconds is None else f"{1e3 * r.seconds:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def as_reported(unclipped: bool) -> str:
    """Quote what is printed elsewhere. Other pictures, masks and formulas: not to be compared."""
    lines = [
        "## As reported elsewhere, not measured here",
        "Printed in the paper for CelebA-HQ at 256x256, on its own split and masks. EdgeConnect's "
        "own script, for one, takes PSNR and SSIM on grey with a window of 51 px: compare nothing "
        "with the tables above.",
        "| method | PSNR, dB | SSIM |\n| --- | --- | --- |\n"
        + "\n".join(
            f"| {name} | {psnr:.2f} | {'' if ssim is None else f'{ssim:.3f}'} |"
            for name, psnr, ssim in AS_REPORTED
        ),
    ]
    if unclipped:
        lines.append(
            "Kodak24, colour, noise unclipped, PSNR in dB: figures of other publications.\n\n"
            "| method | sigma 15 | sigma 25 | sigma 50 |\n| --- | --- | --- | --- |\n"
            + "\n".join(
                f"| {name} | " + " | ".join(f"{v:.2f}" for v in values) + " |"
                for name, *values in DENOISERS_AS_REPORTED
            )
        )
    return "\n\n".join(lines)


def _number(value: float | None, metric: str) -> str:
    return "" if value is None else f"{value:.{_DIGITS[metric]}f}"


def _signed(interval: Interval, digits: int) -> str:
    # Adding 0 turns -0.0 into 0.0.
    mean, low, high = (f"{round(v, digits) + 0.0:+.{digits}f}" for v in interval)
    return f"{mean} ({low} to {high})"
