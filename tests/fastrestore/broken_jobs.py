"""A clip, a stand-in for a Restorer, and jobs on them that are broken; no test.

`kill_everywhere` is run in a process of its own by `test_resume_killed`.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from fastrestore.errors import OutputError
from fastrestore.journal import WorkFolder
from fastrestore.video import Resume, VideoReport, restore_video

H, W, N, GOP = 48, 64, 60, 12
SEGMENT_S = 0.4
CFR = [512 * i for i in range(N)]
VFR = list(np.cumsum(np.random.default_rng(1).integers(200, 900, N)) - 200)
OPEN = {"g": str(GOP), "bf": "3", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}
SIDEWAYS = (0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30)


def make_clip(
    path: Path,
    codec: str = "libx264",
    *,
    pts: list[int] = CFR,
    clock: int = 12800,
    options: dict[str, str] | None = None,
    matrix: tuple[int, ...] | None = None,
    sound: bool = True,
    seed: int = 0,
) -> Path:
    """Write noise that drifts, with sound beside it."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as c:
        v: Any = c.add_stream(codec, rate=25)
        v.height, v.width, v.pix_fmt = H, W, "yuv420p"
        v.options = options if options is not None else OPEN
        v.codec_context.time_base = Fraction(1, clock)
        if matrix:
            v.set_display_matrix(matrix)
        a: Any = c.add_stream("aac", rate=8000, layout="mono") if sound else None
        for i, t in enumerate(pts):
            rgb = (rng.normal(40 + 3 * i, 12, (H, W, 3))).clip(0, 255).astype(np.uint8)
            f = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format="yuv420p")
            f.pts, f.time_base = int(t), Fraction(1, clock)
            c.mux(v.encode(f))
        c.mux(v.encode(None))
        for i in range(18 if sound else 0):
            wave = (np.sin(np.arange(1024) * 0.3 + i) * 0.3).astype(np.float32)[None]
            s = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            s.sample_rate, s.pts, s.time_base = 8000, 1024 * i + 400, Fraction(1, 8000)
            c.mux(a.encode(s))
        if sound:
            c.mux(a.encode(None))
    return path


class Blend:
    """Stands for a Restorer: every frame depends on all before it."""

    def __init__(self, stop_at: int | None = None, error: BaseException | None = None) -> None:
        self.past: Any = None
        self.calls = 0
        self._stop_at, self._error = stop_at, error

    def __call__(self, rgb: Any) -> Any:
        if self.calls == self._stop_at:
            raise self._error or KeyboardInterrupt
        self.calls += 1
        old = rgb if self.past is None else self.past
        self.past = ((rgb.astype(np.uint16) + 3 * old) // 4).astype(np.uint8)
        return self.past

    def remember(self) -> dict[str, Any]:
        return {} if self.past is None else {"past": self.past}

    def recall(self, past: Any) -> None:
        self.past = past.get("past")


def restore(
    source: Path, target: Path, blend: Blend | None = None, resume: bool = True, **options: Any
) -> VideoReport:
    blend = blend or Blend()
    work = options.pop("work", {"model": "blend"})
    how = Resume(blend, work, SEGMENT_S, "fastrestore again") if resume else None
    options.setdefault("encoder", "ffv1")
    return restore_video(source, target, blend, resume=how, **options)


def contents(path: Path) -> dict[str, Any]:
    """All of a file that must be the same."""
    with av.open(str(path)) as c:
        packets = [
            (p.stream.index, bytes(p), p.pts, p.dts, p.duration, p.is_keyframe)
            for p in c.demux()
            if p.size
        ]
        streams = [(s.type, s.name, s.time_base, s.duration) for s in c.streams]
        length = c.duration
    packets.sort(key=lambda p: p[0])
    return {"packets": packets, "streams": streams, "length": length, "frames": frames(path)}


def frames(path: Path) -> list[tuple[int, str]]:
    with av.open(str(path)) as c:
        return [
            (f.pts, hashlib.sha256(f.to_ndarray().tobytes()).hexdigest()) for f in c.decode(video=0)
        ]


def kept(target: Path) -> int:
    journal = WorkFolder(target).load()
    return journal.frames if journal else 0


CHANGES = ("replace", "unlink", "rmdir")


def in_child(source: Path, target: Path, kill_at: int = 0) -> int:
    """Run in a child, killed at the so-manieth step; return 0 if it came through."""
    child = os.fork()
    if child == 0:
        steps = iter(range(1, 1_000_000))

        def counted(change: Any) -> Any:
            def step(*args: Any, **options: Any) -> Any:
                if next(steps) == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return change(*args, **options)

            return step

        for name in CHANGES:
            setattr(os, name, counted(getattr(os, name)))
        os.fsync = lambda _fd: None  # type: ignore[assignment]  # no power is cut here
        try:
            restore(source, target)
        except OutputError as e:
            os._exit(5 if "exists already" in str(e) else 1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_everywhere(folder: Path) -> None:
    """Kill a job at its first step and go on, at its second and go on, and so on.

    In a process of its own, which starts no thread and opens no clip: else a child could not.
    """
    for n in range(1, 1000):
        target = folder / f"{n}.mkv"
        killed = in_child(folder / "in.mp4", target, n)
        if killed == 0:
            return
        was_named = target.exists()
        went_on = in_child(folder / "in.mp4", target)
        sys.stdout.write(f"{n} {killed} {was_named} {went_on}\n")


if __name__ == "__main__":
    kill_everywhere(Path(sys.argv[1]))
