"""A long live run: does memory stay flat, does latency stay as it was, what happens when late.

    python benchmarks/soak.py --minutes 20                  # nano at 256x256, 90 % of its rate
    python benchmarks/soak.py --paced 30 --model tiny --size 512x512 --minutes 1    # too slow

A paced source shows a real clip (CLIP, default ../shared/data/test/video/bikes.mp4) with noise,
over and over, as a camera would: it waits for nobody. Frames go through the live loop to nowhere.
Written are results/soak.json or, with --paced, results/soak-paced.json: resident memory once a
second, latencies, drops, the machine; one line on stdout. Ages, from when the source shows a frame:

- waiting: until restoring starts. What the queue adds; at --paced it must stay under two frames.
- shown: until the sink has it: waiting, restoring, handing over.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastrestore.arrays import U8
from fastrestore.degrade import add_noise
from fastrestore.environment import describe
from fastrestore.live.frame import LiveFrame
from fastrestore.live.repair import Repair
from fastrestore.live.run import Live
from fastrestore.live.sinks import open_sink
from fastrestore.live.status import Status
from fastrestore.live.stream import Stream
from fastrestore.restore import Restorer
from fastrestore.video_io import read_frames

HERE = Path(__file__).resolve().parent
CLIP = Path(os.environ.get("CLIP", HERE.parents[1] / "shared/data/test/video/bikes.mp4"))
FRAMES, SIGMA = 48, 15.0
SETTLED_S = 30  # after which memory counts: allocators and threads have what they need


class PacedSource:
    """Shows frames at a rate, forth and back; what nobody takes in time is lost."""

    name, live = "paced", True

    def __init__(self, frames: list[U8], fps: float) -> None:
        self._frames = frames + frames[-2:0:-1]
        self.rate: Fraction | None = Fraction(fps).limit_denominator(1000)
        self.notes: list[str] = []
        self._fps, self._closed = fps, threading.Event()
        self._start: float | None = None
        self._next = 0

    def read(self) -> LiveFrame | None:
        now = time.monotonic()
        self._start = self._start or now
        self._next = max(self._next, int((now - self._start) * self._fps))
        due = self._start + self._next / self._fps
        if self._closed.wait(max(0.0, due - now)):
            return None
        number, self._next = self._next, self._next + 1
        picture = self._frames[number % len(self._frames)].copy()  # as a camera's would be
        return LiveFrame(picture, number, time.monotonic(), None)

    def close(self) -> None:
        self._closed.set()


def clip(width: int, height: int) -> list[U8]:
    """Return frames of the clip, scaled and cut to a size, with noise."""
    rng = np.random.default_rng(0)
    out = []
    for frame in islice(read_frames(CLIP), FRAMES):
        h, w = frame.shape[:2]
        scale = max(width / w, height / h)
        size = (max(width, round(w * scale)), max(height, round(h * scale)))
        large = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
        out.append(add_noise(np.ascontiguousarray(large[:height, :width]), SIGMA, rng))
    return out


def rate_of(restorer: Restorer, frames: list[U8], seconds: float = 8.0) -> float:
    """Return frames a second that the model restores, one after the other."""
    for frame in frames[:4]:
        restorer.frame(frame)
    n, start = 0, time.monotonic()
    while time.monotonic() < start + seconds:
        restorer.frame(frames[n % len(frames)])
        n += 1
    return n / (time.monotonic() - start)


def resident_mb() -> float:
    """Return the memory of this process that lies in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def sample(stream: Stream, rows: list[dict[str, Any]], over: threading.Event) -> None:
    """Note memory every second, latency every ten."""
    start = time.monotonic()
    while not over.wait(1.0):
        row: dict[str, Any] = {
            "s": round(time.monotonic() - start, 1),
            "mb": round(resident_mb(), 2),
        }
        if len(rows) % 10 == 9:
            f = stream.stats.recent()
            row |= {"fps": f.fps, "p50_ms": f.p50, "p99_ms": f.p99, "dropped": f.dropped}
        rows.append(row)


def growth(rows: list[dict[str, Any]]) -> float | None:
    """Return how much more memory there was in the last tenth than after settling, MB, medians."""
    settled = [r["mb"] for r in rows if r["s"] >= SETTLED_S]
    tenth = max(1, len(settled) // 10)
    if len(settled) < 10:
        return None
    return float(np.median(settled[-tenth:]) - np.median(settled[:tenth]))


def main() -> None:
    """Measure the rate, run, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--backend", default="ort")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--size", default="256x256", metavar="WxH")
    parser.add_argument("--fps", default="auto", help="auto = 90 %% of what the model reaches")
    parser.add_argument("--paced", type=float, metavar="FPS", help="a rate that may be too high")
    a = parser.parse_args()
    if not CLIP.is_file():
        sys.exit(f"{CLIP}: no clip there; set CLIP to a video")
    width, height = (int(n) for n in a.size.split("x"))
    frames, env = clip(width, height), describe()
    with Restorer(a.model, backend=a.backend, threads=a.threads) as restorer:
        reached = rate_of(restorer, frames)
        fps = a.paced or (0.9 * reached if a.fps == "auto" else float(a.fps))
        restorer.reset()
        source = PacedSource(frames, fps)
        stream = Stream(source, open_sink("none", rate=source.rate))
        rows: list[dict[str, Any]] = []
        over = threading.Event()
        sampler = threading.Thread(target=sample, args=(stream, rows, over))
        live = Live([stream], Repair(restorer), Status(), seconds=60 * a.minutes)
        sampler.start()
        try:
            live.run()
        finally:
            over.set()
            sampler.join()
    figures = stream.stats.figures()
    grown = growth(rows)
    out = {
        "env": env,
        "model": a.model,
        "backend": restorer.backend,
        "size": [width, height],
        "noise": {"sigma": SIGMA, "seed": 0, "estimated": True},
        "source_fps": fps,
        "model_fps": reached,
        "frame_ms": 1e3 / fps,
        **figures.to_json(),
        "grown_mb": grown,
        "settled_s": SETTLED_S,
        "rows": rows,
    }
    path = HERE / "results" / ("soak-paced.json" if a.paced else "soak.json")
    path.write_text(json.dumps(out, indent=1) + "\n")
    print(
        f"{a.model} {width}x{height}, source {fps:.1f} fps, model {reached:.1f} fps: "
        f"{figures.frames} frames in {figures.seconds:.0f} s, {figures.dropped} dropped; "
        f"shown p50 {figures.p50:.1f} p99 {figures.p99:.1f} ms, "
        f"waiting p99 {figures.wait_p99:.1f} max {figures.wait_max:.1f} ms "
        f"({figures.wait_max * fps / 1e3:.2f} frame times), "
        f"restoring p50 {figures.work_p50:.1f} ms; "
        f"memory {rows[-1]['mb']:.0f} MB, grown {'-' if grown is None else f'{grown:+.1f} MB'}"
    )


if __name__ == "__main__":
    main()
