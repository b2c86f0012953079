"""The quality table of the README: our models and classical methods on the same damaged pictures.

    python benchmarks/bench_quality.py                 # all that is not in the results yet
    python benchmarks/bench_quality.py --redo tiny     # measure one method again
    python benchmarks/bench_quality.py --print         # the table from the results alone

Pictures come from DATA (default ../shared/data/test). Scores per picture go to
results/quality.json, so that a new model is compared with what the others reached on the very
same bytes; results/quality.md is the whole table, its short form goes into the README. One thread
per method; times are of this machine, whatever else it was doing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from fastrestore.environment import describe
from fastrestore.evaluate import Damage, Score, classical_methods, markdown, score, summarise
from fastrestore.images import read_picture
from fastrestore.restore import Restorer

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("DATA", HERE.parents[1] / "shared" / "data" / "test"))
RESULTS = HERE / "results" / "quality.json"
MODELS = {
    "tiny": "tiny",
    "nano": "nano",
    "tiny-research": str(HERE / "weights" / "tiny-research.onnx"),
}
FREEFORM = [Damage("freeform", r) for r in (0.1, 0.2, 0.4)]
GRID = [Damage("grid", 0.25)]
NOISE = [Damage(sigma=s) for s in (5.0, 15.0, 25.0, 50.0)]
TABLE = [
    ("celebahq", [*FREEFORM, *GRID], ["tiny-research", "tiny", "nano"]),
    ("free_faces", [*FREEFORM, *GRID], ["tiny", "nano", "tiny-research"]),
    ("free_photos", [*FREEFORM, *GRID], ["tiny", "nano", "tiny-research"]),
    ("kodak24", [*FREEFORM, *NOISE], ["tiny", "nano"]),
]


def main() -> None:
    """Measure what is missing and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--redo", nargs="*", default=[], help="methods to measure again")
    parser.add_argument("--only", nargs="*", help="only these methods")
    parser.add_argument("--print", action="store_true", help="measure nothing")
    parser.add_argument("--backend", default="ort")
    a = parser.parse_args()
    if not DATA.is_dir() and not a.print:
        sys.exit(f"{DATA}: no test pictures there; set DATA to their folder")
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    env = describe()
    if not a.print:
        for folder, damages, models in TABLE:
            for damage in damages:
                measure(results, folder, damage, models, a.only, a.redo, a.backend, env)
    table = "\n\n".join(report(results, *row) for row in TABLE)
    (HERE / "results" / "quality.md").write_text(table + "\n")
    write_readme(compact(results))
    print(table)


def measure(
    results: dict[str, Any],
    folder: str,
    damage: Damage,
    models: list[str],
    only: list[str] | None,
    redo: list[str],
    backend: str,
    env: dict[str, Any],
) -> None:
    """Add the scores of every method that has none yet; save after each method."""
    pictures = [(p.stem, read_picture(p).rgb) for p in sorted((DATA / folder).glob("*.webp"))]
    entry = results.setdefault(f"{folder} | {damage.label}", {})
    todo = dict(classical_methods(damage))
    for name in models:
        todo[name] = None  # type: ignore[assignment]  # opened below, one at a time
    for name, method in todo.items():
        if (name in entry and name not in redo) or (only is not None and name not in only):
            continue
        if method is None:
            if name != MODELS[name] and not Path(MODELS[name]).exists():
                continue
            with Restorer(MODELS[name], backend=backend, threads=1) as restorer:
                sigma = "auto" if damage.sigma else 0
                ours = {name: lambda image, mask, _s: restorer(image, mask, sigma=sigma)}  # noqa: B023
                scores = list(score(pictures, damage, ours))
        else:
            scores = list(score(pictures, damage, {name: method}))
        entry[name] = {
            "picture": [s.picture for s in scores],
            "psnr": [round(s.psnr, 4) for s in scores],
            "hole_psnr": [s.hole_psnr and round(s.hole_psnr, 4) for s in scores],
            "ssim": [round(s.ssim, 5) for s in scores],
            "seconds": [round(s.seconds, 4) for s in scores],
            "env": {k: env.get(k) for k in ("version", "commit", "cpu", "python")},
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results))
        mean = sum(entry[name]["psnr"]) / len(scores)
        print(f"{folder} {damage.label} {name}: {mean:.2f} dB, n {len(scores)}", file=sys.stderr)


def compact(results: dict[str, Any]) -> str:
    """Format the README's table: ours beside the others, and the gain over the best of them."""
    lines = [
        "| pictures | damage | n | ours | input or Telea | Navier-Stokes | biharmonic | bilateral "
        "| non-local means | gain over the best, 95 % |",
        "| --- " * 10 + "|",
    ]
    columns = ("telea", "navier_stokes", "biharmonic", "bilateral", "non_local_means")
    for folder, damages, models in TABLE:
        for damage in damages:
            entry = results.get(f"{folder} | {damage.label}", {})
            for model in (m for m in models if m in entry):
                rows = {r.method: r for r in summarise(_scores(entry, damage.label), model)}
                rivals = [rows[c] for c in ("input", *columns) if c in rows]
                best = min(rivals, key=lambda r: r.gain[0] if r.gain else 0.0)
                cells = [f"{rows[c].psnr:.2f}" if c in rows else "" for c in columns]
                cells[0] = cells[0] or f"{rows['input'].psnr:.2f}"
                gain = "{:+.2f} ({:+.2f} to {:+.2f})".format(*best.gain) if best.gain else ""
                ours = f"`{model}` **{rows[model].psnr:.2f}**"
                cells = [folder, damage.label, str(rows[model].n), ours, *cells, gain]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_readme(table: str) -> None:
    """Put the table between its markers in README.md."""
    readme = HERE.parent / "README.md"
    head, start, rest = readme.read_text().partition("<!-- quality -->\n")
    _, end, tail = rest.partition("<!-- /quality -->")
    if start and end:
        readme.write_text(head + start + table + "\n" + end + tail)


def _scores(entry: dict[str, Any], label: str) -> list[Score]:
    out: list[Score] = []
    for method, e in entry.items():
        columns = zip(e["picture"], e["psnr"], e["hole_psnr"], e["ssim"], e["seconds"], strict=True)
        out += [Score(p, label, method, a, b, c, t) for p, a, b, c, t in columns]
    return out


def report(results: dict[str, Any], folder: str, damages: list[Damage], models: list[str]) -> str:
    """Format one set's table; gains are of the first model that was measured."""
    scores: list[Score] = []
    for damage in damages:
        scores += _scores(results.get(f"{folder} | {damage.label}", {}), damage.label)
    found = {s.method for s in scores}
    ours = next((m for m in models if m in found), models[0])
    return f"### {folder}, gains of {ours}\n\n" + markdown(summarise(scores, ours))


if __name__ == "__main__":
    main()
