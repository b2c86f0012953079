"""What the past is worth after frames were lost: kept as it is, aged by the gap, or forgotten.

    python benchmarks/bench_gaps.py      # writes results/live-gaps.md, about 2 minutes on one core

Noise of sigma 25, given; clips of bench_temporal. Of every clip one frame in k is lost, or all but
one in k. PSNR in dB, mean over the frames shown but the first, less that of the same frames
restored one by one; `worst` is the frame that gained least by keeping the past. Beside it holes:
free of noise, under strokes that move 3 px a frame, PSNR of the hole alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from bench_temporal import SIGMA, clip

from fastrestore.arrays import U8
from fastrestore.degrade import add_noise
from fastrestore.environment import describe
from fastrestore.metrics import psnr
from fastrestore.restore import Restorer

HERE = Path(__file__).resolve().parent
CLIPS = (
    ("static", "kodim01"),
    ("pan3", "kodim07"),
    ("bikes", ""),
    ("nasa_13013", ""),
    ("cockatoo", ""),
)
WAYS = ("keep", "age", "forget")


class Case(NamedTuple):
    """One clip as it comes, what it should be, and its mask per frame (None: noise, no hole)."""

    damaged: list[U8]
    clean: list[U8]
    masks: list[U8] | None

    def score(self, t: int, out: U8) -> float:
        if self.masks is None:
            return psnr(out, self.clean[t])
        error = (out.astype(float) - self.clean[t])[self.masks[t] > 0]
        return float(10 * np.log10(255**2 / np.mean(error**2)))

    def restore(self, restorer: Restorer, t: int, *, alone: bool) -> float:
        mask = None if self.masks is None else self.masks[t]
        sigma = SIGMA if self.masks is None else 0.0
        run = restorer if alone else restorer.frame
        return self.score(t, run(self.damaged[t], mask, sigma=sigma))


def strokes(height: int, width: int, n: int) -> list[U8]:
    """Return masks of strokes that move to the right."""
    rng = np.random.default_rng(1)
    drawn = np.zeros((height, 2 * width), np.uint8)
    for _ in range(24):
        x, y = int(rng.integers(0, 2 * width)), int(rng.integers(0, height))
        dx, dy = (int(d) for d in rng.integers(-50, 50, 2))
        cv2.line(drawn, (x, y), (x + dx, y + dy), 1, 7)
    return [np.ascontiguousarray(np.roll(drawn, 3 * t, 1)[:, :width]) for t in range(n)]


def aged(state: U8, gap: int) -> U8:
    """Return a state that counts for `gap` times fewer frames."""
    a = state[..., 3].astype(np.float32) / 255
    n = a / np.maximum(1 - a, 1e-3) / gap
    out = state.copy()
    out[..., 3] = np.rint(255 * n / (n + 1))
    return out


def gains(restorer: Restorer, case: Case, shown: list[int], alone: list[float]) -> dict[str, float]:
    """Return the mean gain of each way, and the worst one of `keep`."""
    out = {}
    for way in WAYS:
        restorer.reset()
        found, last = [], shown[0]
        for t in shown:
            if t - last > 1 and restorer.past is not None:
                if way == "age":
                    restorer.past = aged(restorer.past, t - last)
                elif way == "forget":
                    restorer.reset()
            last = t
            found.append(case.restore(restorer, t, alone=False) - alone[t])
        out[way] = float(np.mean(found[1:]))
        if way == "keep":
            out["worst"] = float(min(found[1:]))
    return out


def main() -> None:
    """Run all clips, patterns and ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--frames", type=int, default=64)
    a = parser.parse_args()
    env, n = describe(), a.frames
    patterns = {f"1 in {k} lost": [t for t in range(n) if t % k != k - 1] for k in (2, 4, 8)}
    patterns |= {f"1 in {k} left": list(range(0, n, k)) for k in (4, 8, 16)}
    head = "| clip | " + " | ".join(("frames", "alone", *WAYS, "worst kept")) + " |"
    lines = [
        f"# The past after a gap\n\n`bench_gaps.py`: {a.model}, n = {n} frames of 192x192 (real "
        f"clips 192x176), one clip a row, seed 0. {env['cpu']}; version {env['version']}.\n"
    ]
    with Restorer(a.model, backend="ort", threads=1) as restorer:
        for title in ("noise, sigma 25", "holes, no noise"):
            lines += [f"\n## {title.capitalize()}\n", head, "|" + " --- |" * 7]
            for kind, name in CLIPS:
                clean = clip(kind, name, n)
                rng = np.random.default_rng(0)
                if title.startswith("noise"):
                    case = Case([add_noise(f, SIGMA, rng) for f in clean], clean, None)
                else:
                    case = Case(clean, clean, strokes(*clean[0].shape[:2], n))
                alone = [case.restore(restorer, t, alone=True) for t in range(n)]
                for pattern, shown in patterns.items():
                    g = gains(restorer, case, shown, alone)
                    single = np.mean([alone[t] for t in shown[1:]])
                    row = " | ".join(f"{g[k]:+.2f}" for k in (*WAYS, "worst"))
                    lines.append(f"| {kind} | {pattern} | {single:.2f} | {row} |")
                    print(lines[-1], flush=True)
    (HERE / "results" / "live-gaps.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
