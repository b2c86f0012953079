"""The detector on pictures it has never seen: overlap by kind of damage, and false alarms.

    python benchmarks/bench_detector.py [--model FILE]     # writes results/detector.json and .md

Kodak24 (DATA, default ../shared/data/test), each kind of `damage.KINDS` alone, seeded by the
picture's name; whole pictures. Overlap is intersection over union of all pictures' pixels together,
and the mean over the pictures. `given` and `found`: PSNR of `tiny` with the true mask and with the
detector's, on solid blocks and on lost blocks of the protocol (black, 10 % of 16 px cells).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from fastrestore.batch import GROW_PX
from fastrestore.damage import KINDS, draw_damage
from fastrestore.degrade import make_mask, punch, seed_for
from fastrestore.detect import Detector, damage_mask
from fastrestore.environment import describe
from fastrestore.images import read_picture
from fastrestore.masks import grow
from fastrestore.metrics import psnr
from fastrestore.restore import Restorer

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("DATA", HERE.parents[1] / "shared" / "data" / "test")) / "kodak24"
RESULTS = HERE / "results" / "detector.json"
THRESHOLDS = (0.3, 0.5, 0.7)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="detector")
    a = parser.parse_args()
    pictures = [(p.stem, read_picture(p).rgb) for p in sorted(DATA.glob("*.webp"))]
    found: dict[str, Any] = {"n": len(pictures), "env": describe(), "iou": {}, "mean_iou": {}}
    with Detector(a.model, threads=1) as detector, Restorer("tiny", threads=1) as restorer:
        clean = [detector.probability(rgb) for _, rgb in pictures]
        for t in THRESHOLDS:
            share = float(np.mean([damage_mask(p, t).mean() for p in clean]))
            found.setdefault("false_alarms_percent", {})[str(t)] = round(100 * share, 4)
        for kind in KINDS:
            counts = []
            for name, rgb in pictures:
                damaged, mask = draw_damage(rgb, seed_for(name + kind, 0.1), [kind])
                p = detector.probability(damaged)
                counts.append([_counts(damage_mask(p, t) > 0, mask > 0) for t in THRESHOLDS])
            table = np.array(counts, np.float64)  # picture, threshold, (both, either)
            pooled = table.sum(0)
            mean = (table[..., 0] / np.maximum(table[..., 1], 1)).mean(0)
            for i, t in enumerate(THRESHOLDS):
                found["iou"].setdefault(str(t), {})[kind] = round(pooled[i, 0] / pooled[i, 1], 4)
                found["mean_iou"].setdefault(str(t), {})[kind] = round(float(mean[i]), 4)
        found["restored"] = _restored(pictures, detector, restorer)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(_table(found))
    print(_table(found))


def _counts(found: Any, true: Any) -> tuple[int, int]:
    return int((found & true).sum()), int((found | true).sum())


def _restored(pictures: Any, detector: Detector, restorer: Restorer) -> dict[str, Any]:
    """Mean PSNR with the true mask and with the one found."""
    out: dict[str, Any] = {}
    for what in ("solid", "lost blocks"):
        given, blind = [], []
        for name, rgb in pictures:
            rng = seed_for(name + "solid", 0.1)
            if what == "solid":
                damaged, mask = draw_damage(rgb, rng, ["solid"])
            else:
                mask = make_mask("grid", rng, *rgb.shape[:2], 0.1)
                damaged = punch(rgb, mask)
            seen = detector.mask(damaged)
            given.append(psnr(restorer(damaged, mask), rgb))
            if grow(seen, GROW_PX).all():
                seen[:] = 0
            blind.append(psnr(restorer(damaged, seen, grow_px=GROW_PX), rgb))
        out[what] = {
            "given": round(float(np.mean(given)), 2),
            "found": round(float(np.mean(blind)), 2),
        }
    return out


def _table(found: dict[str, Any]) -> str:
    lines = [f"Kodak24, n = {found['n']}; pooled intersection over union (mean over pictures).", ""]
    heads = ["threshold", *KINDS, "false alarms on clean pictures, % of pixels"]
    lines += ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for t in map(str, THRESHOLDS):
        cells = [f"{found['iou'][t][k]:.2f} ({found['mean_iou'][t][k]:.2f})" for k in KINDS]
        alarms = f"{found['false_alarms_percent'][t]:.2f}"
        lines.append("| " + " | ".join([t, *cells, alarms]) + " |")
    lines += ["", "| PSNR of `tiny`, dB | mask given | mask found |", "| --- | --- | --- |"]
    for what, v in found["restored"].items():
        lines.append(f"| {what} | {v['given']:.2f} | {v['found']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
