"""What the motion step brings to video: pans, objects, real clips, holes, noise that is not white.

    python benchmarks/bench_motion.py      # writes results/motion.json and motion.md; 8 minutes

Every clip is restored by the same model frame by frame, with the state but no motion, and with the
state moved by the motion step, by parts of it and by rivals. PSNR is a mean over the frames from
the second on, then over the variants of a clip (n stills; real clips have one). Sigma is given.
Stills and real clips come from DATA (default ../shared/data/test). What it costs is the
processor time of the one thread, frame by frame between the runs of the network, as in use.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from bench_temporal import DATA, STILLS
from motion_clips import NOISES, PATCH, REAL, TEXTURES, clip, hidden, real, strokes, white
from motion_rivals import MOVERS

from fastrestore.arrays import U8
from fastrestore.atomic import write_file
from fastrestore.environment import describe
from fastrestore.metrics import hole_psnr, psnr
from fastrestore.restore import Restorer

HERE = Path(__file__).resolve().parent
ALONE, STATE, MOTION = "frame by frame", "state", "motion"
THREE = (ALONE, STATE, MOTION)
ALL = (ALONE, STATE, *MOVERS, MOTION)
MADE = ("static", "pan1", "pan3", "pan7", "sub", "slow", "zoom", "object", "object on pan3", "cut")
HOLED = (
    *(("static", 3), ("pan1", 0), ("pan1", 3), ("pan3", 0), ("pan7", 0), ("pan7", 3), ("sub", 0)),
    *(("object", 3), *((kind, step) for kind in REAL for step in (0, 3))),
)
UNEVEN = ("static", "pan3", "sub", "slow", "object", *REAL)
SIZES = ((176, 192), (256, 256), (512, 512), (720, 1280))
Row = dict[str, Any]


def restored(
    restorer: Restorer, way: str, frames: list[U8], masks: list[U8] | None, sigma: float
) -> Iterator[U8]:
    """Yield the frames, restored one way."""
    restorer.reset()
    restorer.motion = way == MOTION
    for t, frame in enumerate(frames):
        mask = None if masks is None else masks[t]
        if mask is not None:
            frame = frame * (1 - mask)[..., None]
        if way == ALONE:
            restorer.reset()
        elif way in MOVERS and restorer.past is not None:
            restorer.past = MOVERS[way](restorer.past, frame, mask, sigma)
        yield restorer.frame(frame, mask, sigma=sigma)


def score(
    restorer: Restorer,
    ways: Sequence[str],
    clips: Sequence[tuple[list[U8], list[U8], list[U8] | None, list[U8] | None]],
    sigma: float,
) -> Row:
    """Restore clips in every way.

    Args:
        restorer: The model.
        ways: How.
        clips: Clean frames, damaged ones, masks, and what is scored (1 = that; None: everything).
        sigma: Noise that is to be removed.

    Returns:
        For each way PSNR per frame, mean over the clips, from the second frame on.
    """
    out: Row = {}
    for way in ways:
        runs = []
        for clean, damaged, masks, scored in clips:
            run = []
            for t, image in enumerate(restored(restorer, way, damaged, masks, sigma)):
                where = None if scored is None else scored[t]
                if where is not None and not where.any():
                    run.append(np.nan)
                else:
                    a, b = image, clean[t]
                    run.append(psnr(a, b) if where is None else hole_psnr(a, b, where))
            runs.append(run[1:])
        with np.errstate(invalid="ignore"):
            out[way] = np.mean(runs, 0).round(3).tolist()
    return out


def variants(kind: str) -> range:
    return range(1 if kind in REAL else len(STILLS))


def noise_rows(restorer: Restorer, n: int, sigma: float, ways: Sequence[str]) -> Iterator[Row]:
    """White noise, no holes."""
    for kind in (*MADE, *REAL) if len(ways) > len(THREE) or sigma == 25 else REAL:
        sets = [clip(kind, i, n) for i in variants(kind)]
        damaged = [white(frames, sigma, i) for i, (frames, _) in enumerate(sets)]
        clips = [(s[0], d, None, None) for s, d in zip(sets, damaged, strict=True)]
        yield {"clip": kind, "n": len(sets), "psnr": score(restorer, ways, clips, sigma)}
        if sets[0][1] is not None:
            clips_2 = [(s[0], d, None, s[1]) for s, d in zip(sets, damaged, strict=True)]
            found = score(restorer, ways, clips_2, sigma)
            yield {"clip": f"{kind}: its region", "n": len(sets), "psnr": found}


def hole_rows(restorer: Restorer, n: int, _sigma: float, ways: Sequence[str]) -> Iterator[Row]:
    """Holes over a fifth, no noise: strokes that stay, or move 3 px a frame."""
    for kind, step in HOLED:
        clips = []
        for i in variants(kind):
            frames = clip(kind, i, n)[0]
            masks = strokes(i, n, frames[0].shape, step)
            clips.append((frames, frames, masks, masks))
        name = f"{kind}, strokes {'stay' if step == 0 else 'move'}"
        yield {"clip": name, "n": len(clips), "psnr": score(restorer, ways, clips, 0.0)}


def uneven_rows(restorer: Restorer, n: int, sigma: float, ways: Sequence[str]) -> Iterator[Row]:
    """Noise that is not white, told as if it were."""
    for noise in ("demosaiced", "H.264 crf 28"):
        for kind in UNEVEN:
            sets = [clip(kind, i, n)[0] for i in variants(kind)]
            clips = [(f, NOISES[noise](f, sigma, i), None, None) for i, f in enumerate(sets)]
            found = score(restorer, ways, clips, sigma)
            yield {"clip": f"{noise}: {kind}", "n": len(clips), "psnr": found}


def hidden_rows(restorer: Restorer, n: int, sigma: float, ways: Sequence[str]) -> Iterator[Row]:
    """Texture that moves behind a hole with a still rim; scored where it is hidden."""
    for how in ("stays", "passes"):
        for speed in (0, 1, 4):
            for texture in TEXTURES:
                clips = []
                for i in (0, 2):
                    frames, masks = hidden(texture, how, speed, i, n)
                    square = np.zeros_like(masks[0])
                    square[PATCH, PATCH] = 1
                    damaged = white(frames, sigma, i) if sigma else frames
                    clips.append((frames, damaged, masks, [m * square for m in masks]))
                name = f"{texture} moves {speed} px, hole {how}"
                found = score(restorer, ways, clips, sigma)
                yield {"clip": name, "n": len(clips), "psnr": found}


def cost_rows(restorer: Restorer, n: int, sigma: float, _ways: Sequence[str]) -> Iterator[Row]:
    """Time of the motion step beside that of everything else, with and without a hole."""
    from fastrestore import restore

    spent = [0.0]

    def timed(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*a: Any) -> Any:
            began = time.thread_time()
            try:
                return step(*a)
            finally:
                spent[0] += time.thread_time() - began

        return run

    names = ("carry", "carry_within", "doubt")
    kept = {name: getattr(restore, name) for name in names}
    for name in names:
        setattr(restore, name, timed(kept[name]))
    try:
        for kind in ("nasa_13013", "bikes", "cockatoo"):
            for size in SIZES[: 4 if kind == "cockatoo" else 2]:
                frames = real(kind, 12 if size[0] <= 256 else 6, *size)
                for hole in (False, True):
                    masks = strokes(0, len(frames), frames[0].shape, 0) if hole else None
                    if masks is not None:
                        masks = [m * (np.arange(m.shape[1]) < 64).astype(np.uint8) for m in masks]
                    noisy = frames if hole else white(frames, sigma, 0)
                    both = []
                    images = restored(restorer, MOTION, noisy, masks, 0 if hole else sigma)
                    while True:
                        spent[0], began = 0.0, time.thread_time()
                        if next(images, None) is None:
                            break
                        both.append((spent[0], time.thread_time() - began - spent[0]))
                    step, rest = 1e3 * np.median(both[1:], 0)
                    name = f"{kind} {size[1]}x{size[0]}" + (", hole at the left" if hole else "")
                    yield {"clip": name, "n": len(both) - 1, "ms": [float(step), float(rest)]}
    finally:
        for name in names:
            setattr(restore, name, kept[name])


PARTS: tuple[tuple[str, Any, str, float, tuple[str, ...]], ...] = (
    ("noise", noise_rows, "tiny", 25.0, ALL),
    ("noise", noise_rows, "tiny", 10.0, THREE),
    ("noise", noise_rows, "nano", 25.0, THREE),
    ("noise", noise_rows, "nano", 10.0, THREE),
    ("holes", hole_rows, "tiny", 0.0, ALL),
    ("noise that is not white", uneven_rows, "nano", 25.0, THREE),
    ("noise that is not white", uneven_rows, "nano", 10.0, THREE),
    ("hidden texture", hidden_rows, "nano", 0.0, THREE),
    ("hidden texture", hidden_rows, "nano", 25.0, THREE),
    ("cost", cost_rows, "tiny", 25.0, ()),
    ("cost", cost_rows, "nano", 25.0, ()),
)


def table(part: Row) -> list[str]:
    """Return one part of the results as Markdown."""
    lines = ["", f"## {part['title']}, sigma {part['sigma']:g}, `{part['model']}`", ""]
    if part["title"] == "cost":
        lines += ["| clip | n | motion, ms | all else, ms | share |", "| --- " * 5 + "|"]
        for r in part["rows"]:
            a, b = r["ms"]
            lines.append(f"| {r['clip']} | {r['n']} | {a:.1f} | {b:.1f} | {100 * a / b:.0f} % |")
        return lines
    ways = list(part["rows"][0]["psnr"])
    heads = ("clip", "n", *ways, "motion gains over state", "over frame by frame", "worst frame")
    lines += ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for r in part["rows"]:
        runs = {w: np.array(v, float) for w, v in r["psnr"].items()}
        mean = {w: float(np.nanmean(v)) for w, v in runs.items()}
        gain = runs[MOTION] - runs[ALONE]
        numbers = [f"{mean[w]:.2f}" for w in ways]
        numbers += [f"{mean[MOTION] - mean[w]:+.2f}" for w in (STATE, ALONE)]
        numbers.append(f"{np.nanmin(gain):+.2f}")
        lines.append(f"| {r['clip']} | {r['n']} | " + " | ".join(numbers) + " |")
    return lines


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--only", help="titles that contain this; the results are only printed")
    a = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"{DATA}: no test data there; set DATA to its folder")
    cv2.setNumThreads(1)
    parts: list[Row] = []
    env, began = describe(), time.perf_counter()
    for title, rows, model, sigma, ways in PARTS:
        if a.only and a.only not in title:
            continue
        with Restorer(model, backend="ort", threads=1) as restorer:
            found = list(rows(restorer, a.frames, sigma, ways))
        parts.append({"title": title, "sigma": sigma, "model": model, "rows": found})
        print("\n".join(table(parts[-1])), flush=True)
    if a.only:
        return
    seconds = round(time.perf_counter() - began)
    result = {"env": env, "frames": a.frames, "stills": STILLS, "seconds": seconds, "parts": parts}
    write_file(HERE / "results" / "motion.json", (json.dumps(result) + "\n").encode())
    head = [
        f"`python benchmarks/bench_motion.py`: PSNR, dB, mean of frames 2 to {a.frames}; 192x192,",
        f"stills {', '.join(STILLS)}, seed of the noise = variant. {env['cpu']}, one thread, load",
        f"average at the start {env['load_average'][0]}, {seconds} s. `blocks` and `DIS bare` are",
        "rivals, `shift` and `flow` parts of `motion`; regions and holes are scored alone.",
    ]
    text = "\n".join(head + [line for part in parts for line in table(part)]) + "\n"
    write_file(HERE / "results" / "motion.md", text.encode())


if __name__ == "__main__":
    main()
