"""What holding found damage over frames brings: overlap, flicker, false alarms, on real clips.

    python benchmarks/bench_hold.py      # writes results/hold.json and .md, prints the table

Crops of 256x256, 32 frames, of the clips in DATA (default ../shared/data/test); damage of
`damage.draw_damage`, seeded by the crop's name: `static` (stays in place), `moving` (2 to 5 px a
frame), `flash` (new dust in every frame), `none`. Damaged clips are coded as H.264 (crf 23) and
searched once; every row sees the same probabilities. Overlap is intersection over union, the mean
over frames from the second on; flicker is the share of pixels whose error (found against true)
changed from frame to frame, in % of the damaged pixels; false alarms are in % of all pixels.
"""

from __future__ import annotations

import json
import os
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from fastrestore import found_masks
from fastrestore.arrays import U8
from fastrestore.batch import Options
from fastrestore.damage import draw_damage
from fastrestore.degrade import seed_for
from fastrestore.detect import Detector
from fastrestore.environment import describe
from fastrestore.found_masks import FoundMasks
from fastrestore.video_io import read_frames, write_frames

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("DATA", HERE.parents[1] / "shared" / "data" / "test")) / "video"
RESULTS = HERE / "results" / "hold.json"
N, SIDE = 32, 256
CROPS = (  # clip, first frame, top, left
    ("bikes", 60, 8, 200),
    ("cockatoo", 40, 200, 500),
    ("cockatoo", 170, 300, 200),
    ("nasa_13013", 100, 7, 120),
    ("nasa_13013", 250, 7, 200),
    ("nasa_vfr", 40, 7, 60),
)
DAMAGE = {
    "static": ("scratches", "dust", "solid", "freeform"),
    "moving": ("scratches", "dust", "solid", "freeform"),
    "flash": ("dust",),
    "none": (None,),
}
# Row -> hold in frames, and whether a held pixel must look as it did when it was found.
ROWS = {"every frame by itself": (0, True), "2": (2, True), "4": (4, True), "8": (8, True),
        "16": (16, True), "8, whatever it looks like": (8, False)}  # fmt: skip


class Replay:
    """Stands for a detector: its answers are known."""

    def __init__(self, likely: list[U8]) -> None:
        self._next = iter(likely)

    def probability(self, _image: U8) -> U8:
        """Return the next frame's."""
        return next(self._next)


def damaged(clean: list[U8], way: str, kind: str | None, name: str) -> tuple[list[U8], list[U8]]:
    """Damage a crop; return its frames and their true masks."""
    rng = seed_for(f"{name} {kind}", 0.1)
    if kind is None:
        return clean, [np.zeros((SIDE, SIDE), np.uint8)] * N
    coat, mask = draw_damage(clean[0], rng, [kind])
    step = (int(rng.integers(-3, 4)), int(rng.choice([-5, -3, -2, 2, 3, 5])))
    frames, truth = [], []
    for i, frame in enumerate(clean):
        layer, hole = coat, mask
        if way == "moving":
            layer, hole = (np.roll(a, (i * step[0], i * step[1]), (0, 1)) for a in (coat, mask))
        elif way == "flash":
            layer, hole = draw_damage(frame, rng, [kind])
        frames.append(np.where(hole[..., None] > 0, layer, frame))
        truth.append(hole)
    return frames, truth


def score(found: U8, truth: U8) -> dict[str, float]:
    """Compare masks `(N, H, W)`; see the head of this file."""
    f, t = found[1:] > 0, truth[1:] > 0
    either = (f | t).sum((1, 2))
    overlap = np.where(either > 0, (f & t).sum((1, 2)) / np.maximum(either, 1), 1.0)
    wrong = f ^ t
    changed = (wrong[1:] ^ wrong[:-1]).mean()
    return {
        "overlap": float(overlap.mean()),
        "flicker_percent": float(100 * changed / t.mean()) if t.any() else float("nan"),
        "false_percent": float(100 * (f & ~t).mean()),
    }


def main() -> None:
    """Measure, write and print."""
    scores: dict[str, dict[str, list[dict[str, float]]]] = {
        r: {w: [] for w in DAMAGE} for r in ROWS
    }
    with Detector(threads=1) as detector, tempfile.TemporaryDirectory() as folder:
        for clip, first, y, x in CROPS:
            whole = islice(read_frames(DATA / f"{clip}.mp4"), first, first + N)
            clean = [np.ascontiguousarray(f[y : y + SIDE, x : x + SIDE]) for f in whole]
            for way, kinds in DAMAGE.items():
                for kind in kinds:
                    frames, truth = damaged(clean, way, kind, f"{clip} {first}")
                    path = Path(folder) / "coded.mkv"
                    write_frames(path, frames, fps=25, codec="libx264")
                    coded = list(read_frames(path))
                    likely = [detector.probability(f) for f in coded]
                    for row, (hold, looks) in ROWS.items():
                        found = search(coded, likely, hold, looks)
                        scores[row][way].append(score(found, np.stack(truth)))
    means = {
        row: {
            w: {k: round(float(np.mean([s[k] for s in ss])), 3) for k in ss[0]}
            for w, ss in v.items()
        }
        for row, v in scores.items()
    }
    n = {way: len(CROPS) * len(kinds) for way, kinds in DAMAGE.items()}
    found_all: dict[str, Any] = {"crops_n": n, "frames": N, "rows": means, "env": describe()}
    RESULTS.write_text(json.dumps(found_all, indent=1).replace("NaN", "null") + "\n")
    RESULTS.with_suffix(".md").write_text(table(found_all))
    print(table(found_all))


def search(frames: list[U8], likely: list[U8], hold: int, looks: bool) -> U8:
    """Return the masks `(N, H, W)` of a sequence."""
    with mock.patch.object(found_masks, "_SAME", found_masks._SAME if looks else 255):
        masks = FoundMasks(Replay(likely), Options(mask="auto", hold=hold, grow_px=0))  # type: ignore[arg-type]
        return np.stack([masks(f, i) for i, f in enumerate(frames)])


def table(found: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    heads = [f"{way} (n = {n})" for way, n in found["crops_n"].items()]
    lines = ["Overlap / flicker % / false alarms %, means over sequences of 32 frames.", ""]
    lines += ["| hold, frames | " + " | ".join(heads) + " |", "| --- " * (len(heads) + 1) + "|"]
    for row, ways in found["rows"].items():
        cells = []
        for way, s in ways.items():
            parts = f"{s['overlap']:.3f} / {s['flicker_percent']:.1f} / {s['false_percent']:.2f}"
            cells.append(f"{s['false_percent']:.2f}" if way == "none" else parts)
        lines.append("| " + " | ".join([row, *cells]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
