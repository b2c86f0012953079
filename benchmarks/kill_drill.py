"""Kill `fastrestore restore --resume` at random moments and compare what comes out in the end.

    python benchmarks/kill_drill.py --kills 50    # writes results/kill-drill.json and kill-drill.md

Two jobs on one small seeded clip (variable frame rate, B-frames, open GOPs, two sounds, subtitles,
chapters, an attachment): lossless with noise removed, and H.264 with the damage looked for. Each is
begun, killed by SIGKILL after a random time, begun again by the same command, and so on until it
is through; then the result is compared with that of an uninterrupted run, packet by packet. As
joining and the final renaming are short, a share of the kills waits for them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from fastrestore.environment import describe
from fastrestore.journal import NAME, WorkFolder

HERE = Path(__file__).resolve().parent
SIZE = (112, 160)
JOBS = {
    "FFV1 in Matroska, noise removed": (".mkv", ["--encoder", "ffv1"]),
    "H.264 in MP4, damage looked for": (".mp4", ["--mask", "auto"]),
}
MODES = {"any moment": 0.75, "while joining": 0.15, "while renaming": 0.1}
_SECONDS = re.compile(r", [\d.]+ s\)")


def make_clip(path: Path, frames: int, seed: int) -> None:
    """Write the clip: a window that moves over a noisy texture, with scratches."""
    rng = np.random.default_rng(seed)
    h, w = SIZE
    wall = (
        rng.integers(40, 216, (h // 8 + 8, w // 8 + frames // 8 + 8, 3)).repeat(8, 0).repeat(8, 1)
    )
    with av.open(str(path), "w") as c:
        v: Any = c.add_stream("libx264", rate=25)
        v.width, v.height, v.pix_fmt = w, h, "yuv420p"
        v.options = {"g": "20", "bf": "3", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}
        v.codec_context.time_base = Fraction(1, 1000)
        sounds: list[Any] = [c.add_stream("aac", rate=16000, layout="mono") for _ in range(2)]
        text: Any = c.add_mux_stream("subrip")
        text.time_base = Fraction(1, 1000)
        c.add_attachment("font.ttf", "font/ttf", bytes(range(256)))
        c.set_chapters(
            [
                {"id": i, "start": 2000 * i, "end": 2000 * i + 2000, "time_base": Fraction(1, 1000),
                 "metadata": {"title": f"part {i}"}}
                for i in range(2)
            ]
        )  # fmt: skip
        c.metadata["title"] = "drill"
        steps = rng.choice([33, 40, 50], frames)
        for i, pts in enumerate(np.cumsum(steps) - steps[0]):
            picture = wall[i % 8 : i % 8 + h, i : i + w] + rng.normal(0, 12, (h, w, 3))
            picture[20:90, 30 + i % 5 : 32 + i % 5] = 255
            f = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), "rgb24")
            f = f.reformat(format="yuv420p")
            f.pts, f.time_base = int(pts), Fraction(1, 1000)
            c.mux(v.encode(f))
        c.mux(v.encode(None))
        for k, sound in enumerate(sounds):
            for i in range(int(steps.sum() * 16 / 1024)):
                wave = np.sin(np.arange(1024) * (0.1 + 0.1 * k)) * 0.3
                a = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], "fltp", "mono")
                a.sample_rate, a.pts, a.time_base = 16000, 1024 * i, Fraction(1, 16000)
                c.mux(sound.encode(a))
            c.mux(sound.encode(None))
        for at in (300, 2500):
            p = av.Packet(b"hello")
            p.stream, p.pts, p.dts, p.duration, p.time_base = text, at, at, 900, Fraction(1, 1000)
            c.mux(p)


def contents(path: Path) -> dict[str, Any]:
    """Return all that must be equal in two files, by name."""
    found: dict[str, Any] = {}
    with av.open(str(path)) as c:
        found["tags, chapters, streams, attachments"] = (
            dict(c.metadata),
            [(x["start"] * x["time_base"], x["metadata"]) for x in c.chapters()],
            [(s.type, s.name, s.time_base, s.duration, dict(s.metadata)) for s in c.streams],
            [bytes(s.data) for s in c.streams if s.type == "attachment"],
            c.duration,
        )
        packets = [(p, p.stream) for p in c.demux() if p.size]
        for kind in ("video", "audio", "subtitle"):
            own = [(s.index, p) for p, s in packets if s.type == kind]
            stamps = [(i, p.pts, p.dts, p.duration, p.is_keyframe) for i, p in own]
            found[f"{kind} packets"] = [(i, _hash(bytes(p))) for i, p in own]
            found[f"{kind} time stamps"] = stamps
    with av.open(str(path)) as c:
        found["decoded frames"] = [
            (f.pts, _hash(f.to_ndarray().tobytes())) for f in c.decode(video=0)
        ]
    return found


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Job:
    """One kind of restoration, and its uninterrupted result."""

    def __init__(self, name: str, clip: Path, folder: Path, model: str) -> None:
        """Run it once without a break."""
        self.name = name
        suffix, options = JOBS[name]
        self.target, self._whole = folder / f"drill{suffix}", folder / f"whole{suffix}"
        self._command = [
            sys.executable, "-m", "fastrestore", "restore", str(clip), "--model", model,
            "--resume", "--segment", "0.5", *options, "-o",
        ]  # fmt: skip
        began = time.monotonic()
        self.notes, self.wanted = self.uninterrupted()
        self.seconds = time.monotonic() - began

    def uninterrupted(self) -> tuple[list[str], dict[str, Any]]:
        """Run without a break; return what was said, and what came out."""
        self._whole.unlink(missing_ok=True)
        return _notes(self.start(self._whole)), contents(self._whole)

    def start(self, target: Path) -> subprocess.Popen[str]:
        """Begin a run, or go on."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(  # noqa: S603  our own program
            [*self._command, str(target)], stderr=subprocess.PIPE, text=True, env=environment
        )

    def differences(self) -> list[str]:
        """Return what is not equal in the result."""
        found = contents(self.target)
        return [name for name, wanted in self.wanted.items() if found[name] != wanted]


def _notes(run: subprocess.Popen[str]) -> list[str]:
    """Wait for a run that must go well; return what it said beside the file's name."""
    _, said = run.communicate()
    if run.returncode:
        raise SystemExit(f"a run ended with {run.returncode}: {said}")
    return said.splitlines()[1:]


def kill(
    run: subprocess.Popen[str], job: Job, mode: str, rng: np.random.Generator
) -> dict[str, Any] | None:
    """Kill a run at a moment of the given kind; return when that was, None = it was through."""
    began, old = time.monotonic(), _joined(job)
    after_s = rng.uniform(0, job.seconds) if mode == "any moment" else 0.0
    lag_s = rng.uniform(0, 0.02) if mode == "while joining" else 0.0
    while run.poll() is None:
        is_time = {
            "any moment": time.monotonic() - began > after_s,
            "while joining": _joined(job) not in (None, old),
            "while renaming": job.target.exists(),
        }[mode]
        if is_time:
            time.sleep(lag_s)
            run.send_signal(signal.SIGKILL)
            run.communicate()
            if run.returncode != -signal.SIGKILL:
                return None
            seconds = round(time.monotonic() - began, 3)
            return {"mode": mode, "after_s": seconds, "phase": phase(job, old)}
        time.sleep(0.0003)
    return None


def _joined(job: Job) -> int | None:
    """Return what tells the file that is being joined from the next one; None = there is none."""
    try:
        return WorkFolder(job.target).joined(job.target.suffix).stat().st_ino
    except FileNotFoundError:
        return None


def phase(job: Job, old: int | None = None) -> str:
    """Say how far a killed job was.

    Args:
        job: The job.
        old: A joined file that an earlier run had left.
    """
    folder = WorkFolder(job.target)
    if job.target.exists():
        return "named" if (folder.path / NAME).exists() else "through"
    if _joined(job) not in (None, old):
        return "joining"
    journal = folder.load()
    if journal is None:
        return "not begun"
    return "all segments done" if journal.end else f"{len(journal.sizes)} segments done"


def _refused(run: subprocess.Popen[str]) -> bool:
    """Wait for a run after one that was killed when nothing but its exit was left."""
    _, said = run.communicate()
    return run.returncode == 5 and "exists" in said


def drill(jobs: list[Job], kills: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Run the jobs in turn until there were so many kills; return what became of each."""
    told: list[dict[str, Any]] = []
    while (done := sum(len(t["kills"]) for t in told)) < kills:
        job = jobs[len(told) % len(jobs)]
        job.target.unlink(missing_ok=True)
        record: dict[str, Any] = {"job": job.name, "kills": [], "notes": True}
        for turn in range(20):
            is_through = job.target.exists() and phase(job) == "through"
            run = job.start(job.target)
            mode = str(rng.choice(list(MODES), p=list(MODES.values())))
            if job.target.exists():  # it was named before it was killed
                mode = "any moment"
            if not is_through and turn < 8 and done + len(record["kills"]) < kills:
                killed = kill(run, job, mode, rng)
                if killed is not None:
                    record["kills"].append(killed)
                    continue
            record["notes"] = _refused(run) if is_through else _notes(run) == job.notes
            break
        record["unequal"] = job.differences() + ([] if record.pop("notes") else ["notes"])
        record["left_over"] = WorkFolder(job.target).path.exists()
        told.append(record)
        print(f"{done + len(record['kills'])}/{kills} {json.dumps(record)}", flush=True)
    return told


def report(result: dict[str, Any]) -> str:
    """Return the Markdown text."""
    env, runs = result["environment"], result["runs"]
    kills = [k for r in runs for k in r["kills"]]
    bad = [r for r in runs if r["unequal"]]
    phases = Counter(re.sub(r"^[1-9]\d* seg", "some seg", k["phase"]) for k in kills)
    lines = [
        f"{len(kills)} kills by SIGKILL in {len(runs)} jobs; seed {result['seed']}, "
        f"`{result['model']}`, {result['frames']} frames of {SIZE[1]}x{SIZE[0]}, {env['cpu']}, "
        f"{env['usable_cores']} cores, {env['python']}, PyAV {env['packages']['av']}, "
        f"onnxruntime {env['packages']['onnxruntime']}.",
        "",
        f"Jobs whose result differs from the uninterrupted run: **{len(bad)} of {len(runs)}**.",
        "Compared: "
        + ", ".join(result["compared"])
        + ". The uninterrupted runs, done again at the "
        f"end, {'gave the same' if result['uninterrupted_repeats'] else 'DIFFERED THEMSELVES'}.",
        "",
        "| killed when | times |\n| --- | --- |",
        *(f"| {name} | {n} |" for name, n in sorted(phases.items())),
        "",
        "| job | times | kills | uninterrupted, s | unequal |\n| --- | --- | --- | --- | --- |",
    ]
    for name in JOBS:
        own = [r for r in runs if r["job"] == name]
        lines.append(
            f"| {name} | {len(own)} | {sum(len(r['kills']) for r in own)} "
            f"| {result['seconds'][name]:.1f} | {sum(bool(r['unequal']) for r in own)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the drill; 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=160)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "kill-drill")
    a = parser.parse_args()
    environment = describe()
    with tempfile.TemporaryDirectory() as scratch:
        folder = a.dir or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        clip = folder / "clip.mkv"
        make_clip(clip, a.frames, a.seed)
        jobs = [Job(name, clip, folder, a.model) for name in JOBS]
        runs = drill(jobs, a.kills, np.random.default_rng(a.seed))
        repeats = all(job.uninterrupted() == (job.notes, job.wanted) for job in jobs)
    result = {
        "environment": environment,
        "seed": a.seed,
        "model": a.model,
        "frames": a.frames,
        "compared": [*jobs[0].wanted, "notes"],
        "seconds": {job.name: job.seconds for job in jobs},
        "uninterrupted_repeats": repeats,
        "runs": runs,
    }
    a.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    a.output.with_suffix(".md").write_text(report(result))
    print(report(result))
    return int(not repeats or any(r["unequal"] or r["left_over"] for r in runs))


if __name__ == "__main__":
    sys.exit(main())
