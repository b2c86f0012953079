"""What the state brings to video: clips with known truth and noise, PSNR per frame.

    python benchmarks/bench_temporal.py      # writes results/temporal-MODEL.json, prints a table

Every clip is restored twice with the same model: with its past (`video`) and frame by frame.
Stills and real clips come from DATA (default ../shared/data/test). Sigma is given; n, seeds and
machine stand in the results.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastrestore.arrays import U8
from fastrestore.degrade import add_noise
from fastrestore.environment import describe
from fastrestore.images import read_picture
from fastrestore.metrics import psnr
from fastrestore.restore import Restorer
from fastrestore.video_io import read_frames

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("DATA", HERE.parents[1] / "shared" / "data" / "test"))
SIDE = 192
STILLS = ("kodim01", "kodim07", "kodim23")
SIGMA = 25.0


def still(name: str) -> U8:
    """Return a Kodak picture."""
    return read_picture(DATA / "kodak24" / f"{name}.webp").rgb


def window(image: U8, x: float, y: float) -> U8:
    """Cut SIDE x SIDE at a sub-pixel position."""
    if x == int(x) and y == int(y):
        return np.ascontiguousarray(image[int(y) : int(y) + SIDE, int(x) : int(x) + SIDE])
    move = np.array([[1, 0, x], [0, 1, y]], np.float32)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image, move, (SIDE, SIDE), flags=flags), np.uint8)


def clip(kind: str, name: str, n: int) -> list[U8]:
    """Make `n` clean frames: static, pan3 (3 px a frame), sub (sub-pixel pan), cut, or real."""
    if kind in ("bikes", "nasa_13013", "cockatoo"):
        frames = islice(read_frames(DATA / "video" / f"{kind}.mp4"), 30, 30 + n)
        centre = [f[(f.shape[0] - 176) // 2 :, (f.shape[1] - SIDE) // 2 :] for f in frames]
        return [np.ascontiguousarray(f[:176, :SIDE]) for f in centre]
    image = still(name)
    if kind == "pan3":
        return [window(image, 10 + 3 * t, 100) for t in range(n)]
    if kind == "sub":
        return [window(image, 10 + 1.5 * t, 100 + 0.4 * t) for t in range(n)]
    other = still(STILLS[(STILLS.index(name) + 1) % len(STILLS)])
    return [window(other if kind == "cut" and t >= n // 2 else image, 40, 100) for t in range(n)]


def run(restorer: Restorer, frames: list[U8], seed: int) -> dict[str, list[float]]:
    """Return PSNR per frame with and without the past."""
    rng = np.random.default_rng(seed)
    noisy = [add_noise(f, SIGMA, rng) for f in frames]
    restorer.reset()
    past = [
        psnr(out, clean)
        for out, clean in zip(restorer.video(noisy, sigma=SIGMA), frames, strict=True)
    ]
    single = [psnr(restorer(f, sigma=SIGMA), clean) for f, clean in zip(noisy, frames, strict=True)]
    return {"video": past, "single": single}


def main() -> None:
    """Run all clips."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--long", type=int, default=301, help="frames of the drift test")
    a = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"{DATA}: no test data there; set DATA to its folder")
    out: dict[str, Any] = {"env": describe(), "model": a.model, "sigma": SIGMA, "clips": {}}
    with Restorer(a.model, backend="ort", threads=1) as restorer:
        for kind in ("static", "pan3", "sub", "cut", "bikes", "nasa_13013", "cockatoo"):
            names = STILLS if kind in ("static", "pan3", "sub", "cut") else ("",)
            runs = [run(restorer, clip(kind, n, a.frames), i) for i, n in enumerate(names)]
            out["clips"][kind] = {
                k: np.mean([r[k] for r in runs], 0).round(3).tolist() for k in runs[0]
            }
        drift = run(restorer, clip("static", STILLS[0], a.long), 0)["video"]
        out["drift"] = {str(t): round(drift[t], 3) for t in (0, 1, 5, 10, 20, 60, a.long - 1)}
    (HERE / "results" / f"temporal-{a.model}.json").write_text(json.dumps(out, indent=1) + "\n")
    print("| clip, sigma 25 | n | frame by frame | with state, mean | gain | gain at frame 10 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind, c in out["clips"].items():
        gain = np.subtract(c["video"], c["single"])[1:]
        n = len(STILLS) if kind in ("static", "pan3", "sub", "cut") else 1
        print(
            f"| {kind} | {n} | {np.mean(c['single'][1:]):.2f} | {np.mean(c['video'][1:]):.2f} "
            f"| {gain.mean():+.2f} | {gain[9]:+.2f} |"
        )
    print("static clip, frame: PSNR", out["drift"])


if __name__ == "__main__":
    main()
