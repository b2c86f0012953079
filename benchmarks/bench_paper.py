"""The tables and the curve of the README: the paper's protocol on every test set.

    python benchmarks/bench_paper.py                  # all that is not measured yet
    python benchmarks/bench_paper.py --classical      # only what does not depend on our weights
    python benchmarks/bench_paper.py --print          # the tables from the results alone

Pictures come from DATA (default ../shared/data/test). A set's folder under --runs takes scores,
report, curve and sheets, and is gone on with; what has no pictures in it is copied to
results/paper/. New weights under an old name are refused by the ledger: delete the set's folder, or
give --forget NAME to drop that model's lines (detector: all that it found). One thread.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fastrestore.paper import Entries, Pictures, run_protocol
from fastrestore.protocol import Case, paper_cases, read_masks

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("DATA", HERE.parents[1] / "shared" / "data" / "test"))
RESULTS = HERE / "results" / "paper"
MODELS = {
    "tiny": "tiny",
    "tiny-sharp": "tiny-sharp",
    "nano": "nano",
    "research": str(HERE / "weights" / "tiny-research.onnx"),
    "research-sharp": str(HERE / "weights" / "tiny-research-sharp.onnx"),
}
CURVE = paper_cases(holes="freeform")
FEW = paper_cases(holes="freeform", ratios=(0.1, 0.2, 0.4))
GRID = paper_cases(holes="grid", ratios=(0.2,))
ALL = [c for c in paper_cases() if c.family == "all"]
OTHERS = [c for c in paper_cases() if c.family in ("rects", "grid", "thin")]
FF20 = paper_cases(holes="freeform", ratios=(0.2,))
FLOAT = paper_cases(sigmas=(15.0, 25.0, 50.0), noise="float")


class Part(NamedTuple):
    """Some cases of a set, and who takes part in them."""

    cases: Sequence[Case]
    models: Sequence[str]
    classical: Sequence[str] = ("telea", "navier_stokes")
    variants: Sequence[str] = ("",)


BLIND = ("", "raw", "mask withheld")
DENOISERS = ("bilateral", "non_local_means")
FILL_AND_CLEAN = ("telea", "navier_stokes", "bilateral")
MANY = ("tiny", "tiny-sharp", "research", "nano")
SETS: dict[str, list[Part]] = {
    "celebahq": [
        Part(CURVE, ("research", "research-sharp", "tiny", "tiny-sharp")),
        Part(OTHERS, ("research",)),
        Part(FF20, ("research",), ("biharmonic", "patchmatch"), BLIND),
        Part(GRID, ("research",), ("telea", "navier_stokes"), BLIND),
        Part(ALL, ("research", "tiny"), FILL_AND_CLEAN, BLIND),
    ],
    "free_faces": [
        Part([*FEW, *GRID], MANY),
        Part(FF20, ("tiny",), ("biharmonic", "patchmatch")),
        Part([*GRID, *ALL], ("tiny",), FILL_AND_CLEAN, BLIND),
    ],
    "free_photos": [
        Part([*FEW, *GRID], MANY),
        Part([*GRID, *ALL], ("tiny",), FILL_AND_CLEAN, BLIND),
    ],
    "kodak24": [
        Part(FEW, MANY),
        Part(FLOAT, ("tiny", "nano"), DENOISERS, ("", "sigma told")),
    ],
}


def main() -> None:
    """Measure what is missing, copy the results, write the README's tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/paper"))
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--classical", action="store_true", help="leave our models out")
    parser.add_argument("--forget", nargs="+", default=[], help="measure these models again")
    parser.add_argument("--print", action="store_true", help="measure nothing")
    a = parser.parse_args()
    if not DATA.is_dir() and not a.print:
        sys.exit(f"{DATA}: no test pictures there; set DATA to their folder")
    for name in () if a.print else a.sets:
        for model in a.forget:
            forget(a.runs / name, model)
        measure(name, a.runs / name, a.classical)
    write_readme("paper", table())
    write_readme("blind", blind_table())
    print(table(), blind_table(), sep="\n\n")


def measure(name: str, folder: Path, classical: bool) -> None:
    """Run every part of a set into one folder."""
    pictures = Pictures(DATA / name)
    parts = list(SETS[name])
    if name == "celebahq":
        files = [c for c in paper_cases(masks=read_masks(DATA / "masks")) if c.family == "files"]
        parts.insert(1, Part(files, ("research",)))
    for part in parts:
        models = [] if classical else [MODELS[m] for m in part.models if exists(MODELS[m])]
        entries = Entries(
            models=models, threads=1, classical=part.classical, variants=part.variants
        )
        for noise in dict.fromkeys(c.noise for c in part.cases):
            cases = [c for c in part.cases if c.noise == noise]
            run_protocol(folder, pictures, cases, replace(entries, noise=noise), say(name))
    RESULTS.mkdir(parents=True, exist_ok=True)
    for file, target in (
        ("report.md", f"{name}.md"),
        ("report.json", f"{name}.json"),
        ("curve.png", f"{name}.png"),
    ):
        if (folder / file).exists():
            shutil.copy(folder / file, RESULTS / target)


def exists(model: str) -> bool:
    """Whether a model is there: some ship, some are only in a checkout."""
    shipped = HERE.parent / "fastrestore" / "weights" / f"{model}.onnx"
    return Path(model).exists() or shipped.exists()


def say(name: str) -> Any:
    """Make the callback that prints one line a case."""

    def progress(case: str, done: int, of: int) -> None:
        if done == of:
            print(f"{name} {case}: {of} pictures", file=sys.stderr, flush=True)

    return progress


def forget(folder: Path, name: str) -> None:
    """Drop the lines of one of our models, or those that the detector made, and their identity."""
    scores, settings = folder / "scores.csv", folder / "settings.json"
    if not scores.exists():
        return

    def is_old(method: str) -> bool:
        if name == "detector":
            return method.endswith(", mask withheld")
        return re.split(r", | \(", method)[0] == f"fastrestore {Path(MODELS[name]).stem}"

    with scores.open(newline="") as f:
        rows = list(csv.reader(f))
    at = [rows[0].index(column) for column in ("method", "variant")]
    kept = [r for i, r in enumerate(rows) if not i or not is_old(", ".join(r[j] for j in at))]
    with scores.open("w", newline="") as f:
        csv.writer(f, lineterminator="\n").writerows(kept)
    known = json.loads(settings.read_text())
    known["methods"] = {k: v for k, v in known["methods"].items() if not is_old(k)}
    settings.write_text(json.dumps(known, indent=1))


def load(name: str) -> dict[str, Any]:
    """Return the report of a set, or an empty one."""
    path = RESULTS / f"{name}.json"
    report = json.loads(path.read_text()) if path.exists() else {"ours": "", "results": []}
    return {"ours": report["ours"], "results": report["results"]}


def table() -> str:
    """Format the holes: every model of ours, and the best of the others by PSNR."""
    lines = [
        "| pictures | damage | n | method | PSNR | SSIM | LPIPS | best other by PSNR | its PSNR, "
        "SSIM, LPIPS | PSNR over it, 95 % |",
        "| --- " * 10 + "|",
    ]
    for name in SETS:
        report = load(name)
        shown = {c.slug for c in (*FEW, *GRID, *ALL)}
        rows = [r for r in report["results"] if r["case"] in shown and r["variant"] != "raw"]
        for case in dict.fromkeys(r["case"] for r in rows):
            here = [r for r in rows if r["case"] == case]
            ours = [r for r in here if r["method"].startswith("fastrestore")]
            others = [r for r in here if r not in ours and r["method"] != "input"]
            best = max(others, key=lambda r: r["mean"]["psnr"][0])
            for r in ours:
                first = r["method"] == report["ours"] and not r["variant"]
                lines.append(_row(name, r, best, first))
    return "\n".join(lines)


def _row(name: str, ours: dict[str, Any], best: dict[str, Any], first: bool) -> str:
    """Format one row; only the first of ours has a paired interval."""
    method = ours["method"].removeprefix("fastrestore ")
    variant = f", {ours['variant']}" if ours["variant"] else ""
    cells = [name, ours["label"], str(ours["n"]), f"`{method}`{variant}", *_figures(ours)]
    gain = "{:+.2f} ({:+.2f} to {:+.2f})".format(*best["gain"]["psnr"]) if first else ""
    cells += [best["method"], " / ".join(_figures(best)), gain]
    return "| " + " | ".join(cells) + " |"


def _figures(r: dict[str, Any]) -> list[str]:
    digits = {"psnr": 2, "ssim": 4, "lpips": 4}
    return [f"{r['mean'][m][0]:.{d}f}" if m in r["mean"] else "" for m, d in digits.items()]


def blind_table() -> str:
    """Format Kodak24's noise: sigma estimated, beside the denoisers that are told."""
    rows = [r for r in load("kodak24")["results"] if r["family"] == "noise"]
    labels = list(dict.fromkeys(r["label"] for r in rows))
    lines = ["| PSNR, dB | " + " | ".join(labels) + " |", "| --- " * (len(labels) + 1) + "|"]
    for key in dict.fromkeys((r["method"], r["variant"]) for r in rows):
        by_label = {r["label"]: r for r in rows if (r["method"], r["variant"]) == key}
        cells = [f"{by_label[k]['mean']['psnr'][0]:.2f}" if k in by_label else "" for k in labels]
        lines.append(f"| {', '.join(filter(None, key))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_readme(marker: str, text: str) -> None:
    """Put a table between its markers in README.md."""
    readme = HERE.parent / "README.md"
    head, start, rest = readme.read_text().partition(f"<!-- {marker} -->\n")
    _, end, tail = rest.partition(f"<!-- /{marker} -->")
    if start and end:
        readme.write_text(head + start + text + "\n" + end + tail)


if __name__ == "__main__":
    main()
